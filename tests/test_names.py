"""What is public: one list of layers under three names, nothing else in `dir`, and what is imported when."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bnderiv
import bnderiv.reference
from bnderiv import _layers, forward_mode, steps
from bnderiv.normalization import running_stats

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
ADAPTERS = {"linen", "nnx", "equinox", "haiku"}
NAMES = [*_layers.__all__, *running_stats.__all__]
MODULES = {"reference", "forward_mode", "steps", "check", "models"}


def parameters(function):
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("twin", [bnderiv.reference, forward_mode], ids=lambda m: m.__name__)
def test_one_list(twin):
    assert set(twin.__all__) - {"enabled"} == set(NAMES) == set(bnderiv.__all__) - MODULES
    for name in NAMES:
        ours, theirs = getattr(bnderiv, name), getattr(twin, name)
        if isinstance(ours, type):
            assert theirs is ours
        else:
            assert parameters(theirs) == parameters(ours), name


@pytest.mark.parametrize("name", [n for n in NAMES if not isinstance(getattr(bnderiv, n), type)])
def test_a_reference_stands_in_the_room_of_its_layer(name):
    room = getattr(bnderiv, name).__module__.rpartition(".")[0]
    assert getattr(bnderiv.reference, name).__module__ == f"{room}.reference"


def test_every_layer_has_steps():
    assert set(steps.__all__) > set(_layers.__all__)
    assert all(callable(getattr(steps, name)) for name in steps.__all__)


def test_dir_shows_the_public_names_and_no_others():
    shown = {name for name in dir(bnderiv) if not name.startswith("__")}
    assert shown == set(NAMES) | MODULES | ADAPTERS
    assert "__version__" in dir(bnderiv)


def test_every_name_is_there():
    assert len(set(bnderiv.__all__)) == len(bnderiv.__all__)
    for name in bnderiv.__all__:
        assert getattr(bnderiv, name) is not None


def test_the_version_has_one_source():
    """`bnderiv/__init__.py`, where the build reads it and where it is known without an installation."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in settings["project"]["dynamic"]
    assert settings["tool"]["hatch"]["version"]["path"] == "bnderiv/__init__.py"
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert bnderiv.__version__ == released[0]


def test_what_is_imported_with_the_package():
    program = """
import sys, bnderiv
print(sorted(m for m in sys.modules if m.startswith("bnderiv.") and m.split(".")[1] in set(sys.argv[1:])))
dir(bnderiv), bnderiv.__version__
print(sorted(m for m in sys.modules if m.startswith("bnderiv.") and m.split(".")[1] in set(sys.argv[1:])))
bnderiv.forward_mode
print("bnderiv.forward_mode" in sys.modules)
"""
    names = ["forward_mode", "steps", "check", *sorted(ADAPTERS)]
    out = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split("\n")[:3] == ["[]", "[]", "True"]
