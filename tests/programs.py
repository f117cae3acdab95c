"""What a compiled program is made of, read from its text: operations, kernels, messages between devices.

What runs only where the data are unusual is left out: batch norm has a loop for them.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from jax.stages import Compiled

from experiments._programs import usual_path

# An asynchronous one is a pair, -start and -done, and counts once.
_MESSAGE = re.compile(r" (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")
_OPERATION = re.compile(r" = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")


def collectives(program: Compiled) -> Counter[str]:
    """How many messages there are of each kind, by XLA's names."""
    return Counter(_MESSAGE.findall(_text(program)))


def opcodes(program: Compiled, at_least: int = 0) -> set[str]:
    """The opcodes of all operations, those in kernels included, with at least this many elements in their result."""
    operations = _OPERATION.findall(_text(program))
    return {opcode for shapes, opcode in operations if max(_sizes(shapes), default=0) >= at_least}


def launched(program: Compiled) -> Iterator[tuple[str, list[int]]]:
    """(opcode, elements of each array it writes) of what the program runs one after the other."""
    for line in _entry(program):
        found = _OPERATION.search(line)
        if found and found[2] not in _FREE:
            yield found[2], _sizes(found[1])


def traffic(program: Compiled) -> int:
    """Bytes that its kernels read and write."""
    moved, size = 0, {}
    for line in _entry(program):
        name, found = re.match(r"\s*(?:ROOT )?(%[\w.-]+) = ", line), _OPERATION.search(line)
        if name and found:
            shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", found[1])
            size[name[1]] = sum(_BYTES[dtype] * _elements(shape) for dtype, shape in shapes)
            if found[2] not in (*_FREE, "conditional", "while"):
                operands = set(re.findall(r"%[\w.-]+", line[found.end() :].split("), ")[0]))
                moved += size[name[1]] + sum(size.get(operand, 0) for operand in operands)
    return moved


def writers(program: Compiled, shape: tuple[int, ...], kind: str = r"k\w+") -> list[str]:
    """The operations of each kernel (of this kind) whose first result has this shape, as text."""
    text, name = _text(program), re.escape(f"[{','.join(map(str, shape))}]")
    calls = re.findall(rf" = \(?\w+{name}\S* .*?\bfusion\(.*\bkind={kind}, calls=(%[\w.-]+)", text)
    return [text[start : text.index("\n}", start)] for start in (text.index(f"\n{call} ") for call in calls)]


def _sizes(shapes: str) -> list[int]:
    return [_elements(shape) for shape in re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", shapes)]


def _elements(shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n)


def _entry(program: Compiled) -> list[str]:
    text = _text(program)
    return text[text.index("\nENTRY") :].splitlines()


@lru_cache(maxsize=16)
def _text(program: Compiled) -> str:
    whole = program.as_text()
    assert whole is not None
    return usual_path(whole)
