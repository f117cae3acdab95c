"""griffe reads our docstrings: it knows "Examples:" only."""

from griffe import Extension, Object


class OneExample(Extension):
    """An "Example:" is a section, not a note."""

    def on_instance(self, *, obj: Object, **_) -> None:
        if obj.docstring:
            lines = obj.docstring.value.split("\n")
            obj.docstring.value = "\n".join("Examples:" if line.strip() == "Example:" else line for line in lines)
