"""The text of a compiled program, without what it runs only where the data are unusual."""

import re

# The branches of a conditional, and the body of a loop whose trips are not known: batch norm measures again in one.
_ASIDE = re.compile(
    r"(branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.-]+)"
    r"|body=%[\w.-]+(?!.*known_trip_count)"
)


def usual_path(program: str) -> str:
    """The computations of an HLO module that are reached without a conditional or a loop of unknown length."""
    parts = {m[2]: m[0] for m in re.finditer(r"^(ENTRY )?(%[\w.-]+) .*?^}", program, re.DOTALL | re.MULTILINE)}
    (entry,) = (name for name, part in parts.items() if part.startswith("ENTRY"))
    reached, left = set(), [entry]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            called = re.findall(r"%[\w.-]+", _ASIDE.sub("", parts[name]))
            left += [other for other in called if other in parts]
    return "\n\n" + "\n\n".join(part for name, part in parts.items() if name in reached)
