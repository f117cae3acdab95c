"""Our docstrings, as griffe reads them."""

import re

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
NAMES = re.compile(r"^( +)((?:\w+, )+\w+): ", re.MULTILINE)


class OurDocstrings(Extension):
    """An "Example:" is a section, not a note; "a, b: ..." are two names, not one and its type."""

    def on_instance(self, *, obj: Object, **_) -> None:
        if obj.docstring:
            text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = NAMES.sub(lambda m: f"{m[1]}{m[2].replace(' ', chr(0xA0))}: ", text)
