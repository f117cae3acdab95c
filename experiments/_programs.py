"""The text of a compiled program: its usual path, and what each kernel of it reads and writes."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# The branches of a conditional (batch norm measures again in one), and the body of a loop whose trips are not known.
_ASIDE = re.compile(
    r"(branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.-]+)"
    r"|body=%[\w.-]+(?!.*known_trip_count)"
)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.-]+)"
)
_CALLS = ("call", "while", "conditional", "async-start")  # run other computations, and nothing themselves
# XLA's own GPU and TPU backends launch nothing for these.
_FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "opt-barrier", "copy-done",
    "slice-done", "async-done", "async-update", "partition-id", "replica-id",
}  # fmt: skip
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_FAST = "S(1)"  # a layout in a TPU's vector memory


# A name, the shape of the result, an opcode, what stands between its parentheses, and attributes.
_OPERATION = re.compile(
    r"^\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([\w-]+)\(((?:[^()\n]*\([^()\n]*\))*[^()\n]*)\)(.*)$", re.MULTILINE
)


class Array(NamedTuple):
    """What a kernel reads or writes of an array in main memory."""

    dtype: str
    elements: int

    @property
    def bytes(self) -> int:
        return self.elements * _BYTES.get(self.dtype, 4)


class Kernel(NamedTuple):
    """One launch: an operation of a compiled program that is not within another one."""

    opcode: str
    times: int  # the trips of the loops around it
    usual: bool  # not in the branch of a conditional, nor in a loop of unknown length
    reads: list[Array]
    writes: list[Array]
    cycles: int  # the TPU compiler's own estimate; 0 where there is none

    @property
    def bytes(self) -> int:
        return self.times * sum(array.bytes for array in self.reads + self.writes)


class _Operation(NamedTuple):
    name: str
    shape: str
    opcode: str
    inner: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return list(dict.fromkeys(re.findall(r"%[\w.-]+", self.inner)))


def usual_path(program: str) -> str:
    """The computations of an HLO module that are reached without a conditional or a loop of unknown length."""
    parts, entry = _computations(program)
    reached, left = set(), [entry]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            called = re.findall(r"%[\w.-]+", _ASIDE.sub("", parts[name]))
            left += [other for other in called if other in parts]
    return "\n\n" + "\n\n".join(part for name, part in parts.items() if name in reached)


def kernels(program: str) -> Iterator[Kernel]:
    """The launches of an HLO module that a backend has scheduled, each array at what is read of it.

    Arrays in a TPU's vector memory cost no traffic. An array of which a fusion takes slices alone is read in part.
    """
    parts, entry = _computations(program)
    all_operations = {name: operations(part) for name, part in parts.items()}

    def walk(name: str, times: int, usual: bool) -> Iterator[Kernel]:
        here = all_operations[name]
        for operation in here.values():
            if operation.opcode in _CALLS:
                aside = " ".join(m[0] for m in _ASIDE.finditer(operation.attributes))
                trips = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', operation.attributes)
                for called in _CALLED.finditer(operation.attributes):
                    for other in re.findall(r"%[\w.-]+", called[1]):
                        yield from walk(other, times * int(trips[1] if trips else 1), usual and called[0] not in aside)
            elif operation.opcode not in _FREE:
                fused = re.search(r"\bcalls=(%[\w.-]+)", operation.attributes)
                inside = all_operations[fused[1]] if fused and operation.opcode == "fusion" else {}
                cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
                yield Kernel(
                    operation.opcode,
                    times,
                    usual,
                    _reads(operation, here, inside),
                    _arrays(_destination(operation) or operation.shape),
                    times * int(cycles[1] if cycles else 0),
                )

    return walk(entry, 1, True)


def convolutions(program: str) -> Iterator[tuple[str, ...]]:
    """The dtypes of the operands of each convolution: XLA's own, or cuDNN's."""
    for part in _computations(program)[0].values():
        here = operations(part)
        for operation in here.values():
            if operation.opcode == "convolution" or '"__cudnn$conv' in operation.attributes:
                shapes = (here[name].shape for name in operation.operands if name in here)
                yield tuple(found[1] for found in map(ARRAY.search, shapes) if found)


def _computations(program: str) -> tuple[dict[str, str], str]:
    """The text of each computation, and the name of the one that is run."""
    parts = {m[2]: m[0] for m in re.finditer(r"^(ENTRY )?(%[\w.-]+) .*?^}", program, re.DOTALL | re.MULTILINE)}
    (entry,) = (name for name, part in parts.items() if part.startswith("ENTRY"))
    return parts, entry


def operations(computation: str) -> dict[str, _Operation]:
    """Those of a computation, or of all in a text, by name."""
    return {found[1]: _Operation(*found.groups()) for found in _OPERATION.finditer(computation)}


def _arrays(shape: str) -> list[Array]:
    """Those of a result that lie in main memory."""
    return [
        Array(dtype, math.prod(int(n) for n in lengths.split(",") if n))
        for dtype, lengths, layout in ARRAY.findall(shape)
        if _FAST not in layout
    ]


def _destination(operation: _Operation) -> str | None:
    """Of a transfer that a TPU has started: (to, from, context) of a copy, ((from), to, context) of a slice."""
    place = {"copy-start": 0, "slice-start": 1}.get(operation.opcode)
    return None if place is None else list(ARRAY.finditer(operation.shape))[place][0]


def _reads(operation: _Operation, here: dict[str, _Operation], inside: dict[str, _Operation]) -> list[Array]:
    if operation.opcode == "slice-start":
        return _arrays((_destination(operation) or "").replace(_FAST, ""))
    parameters = {o.inner.strip(): o.name for o in inside.values() if o.opcode == "parameter"}
    found, seen = [], set()
    for number, name in enumerate(re.findall(r"%[\w.-]+", operation.inner)):
        while name in here and here[name].opcode == "bitcast":
            (name,) = here[name].operands
        if name not in here or name in seen or here[name].shape.startswith("("):
            continue
        seen.add(name)
        for array in _arrays(here[name].shape):
            parameter = parameters.get(str(number))
            users = [o for o in inside.values() if parameter in o.operands]
            if users and all(o.opcode in ("slice", "dynamic-slice", "gather") for o in users):
                taken = sum(_arrays(o.shape)[0].elements for o in users)
                array = array._replace(elements=min(array.elements, taken))
            found.append(array)
    return found
