"""What a compiled program is made of, read from its text: operations, kernels, messages between devices."""

import math
import re
from collections import Counter
from collections.abc import Iterator

from jax.stages import Compiled

# An asynchronous one is a pair, -start and -done, and counts once.
_MESSAGE = re.compile(r" (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")
_OPERATION = re.compile(r" = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_BRANCHES = re.compile(r"(branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.-]+)")
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")


def collectives(program: Compiled) -> Counter[str]:
    """How many messages there are of each kind, by XLA's names, but for those in the branches of conditionals."""
    return Counter(_MESSAGE.findall(_without_branches(_text(program))))


def _without_branches(text: str) -> str:
    computations = dict(re.findall(r"^(?:ENTRY )?(%[\w.-]+) (.*?)^}", text, re.DOTALL | re.MULTILINE))
    (entry,) = re.findall(r"^ENTRY (%[\w.-]+) ", text, re.MULTILINE)
    reached, left = set(), [entry]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            body = _BRANCHES.sub("", computations[name])
            left += [called for called in re.findall(r"%[\w.-]+", body) if called in computations]
    return "\n".join(computations[name] for name in reached)


def opcodes(program: Compiled) -> set[str]:
    """Of every operation, inside of kernels too."""
    return {opcode for _, opcode in _OPERATION.findall(_text(program))}


def launched(program: Compiled) -> Iterator[tuple[str, list[int]]]:
    """(opcode, elements of each array it writes) of what the program runs one after the other."""
    text = _text(program)
    for line in text[text.index("\nENTRY") :].splitlines():
        found = _OPERATION.search(line)
        if found and found[2] not in _FREE:
            shapes = re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", found[1])
            yield found[2], [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


def writers(program: Compiled, shape: tuple[int, ...], kind: str = r"k\w+") -> list[str]:
    """The operations of each kernel (of this kind) whose first result has this shape, as text."""
    text, name = _text(program), re.escape(f"[{','.join(map(str, shape))}]")
    calls = re.findall(rf" = \(?\w+{name}\S* .*?\bfusion\(.*\bkind={kind}, calls=(%[\w.-]+)", text)
    return [text[start : text.index("\n}", start)] for start in (text.index(f"\n{call} ") for call in calls)]


def _text(program: Compiled) -> str:
    text = program.as_text()
    assert text is not None
    return text
