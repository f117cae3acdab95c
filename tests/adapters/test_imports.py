"""The core imports no framework; an adapter without its framework says which extra to install."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

EXTRAS = {"linen": "flax", "nnx": "flax", "equinox": "equinox", "haiku": "haiku"}


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_core_imports_no_framework():
    assert run("import sys, bnderiv; print({'flax', 'equinox', 'haiku'} & set(sys.modules))").strip() == "set()"


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("adapter", EXTRAS)
def test_an_adapter_without_its_framework_names_the_extra(adapter):
    extra = EXTRAS[adapter]
    program = f"""
import sys
sys.modules[{extra!r}] = None  # as if it were not installed
try:
    import bnderiv.{adapter}
except ImportError as error:
    print(error)
"""
    error = run(program)
    assert error.startswith(f"bnderiv.{adapter} needs ")
    command = shlex.split(error.partition(": ")[2])
    assert command[:4] == ["python", "-m", "pip", "install"]
    requirement = Requirement(command[4])
    assert (requirement.name, requirement.extras) == ("bnderiv", {extra})
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
    assert requirement.url == "git+https://github.com/bnderiv/bnderiv"


def test_by_attribute():
    pytest.importorskip("flax", reason="needs the extra flax")
    import bnderiv

    assert bnderiv.linen.BatchNorm.__module__ == "bnderiv.linen"
    with pytest.raises(AttributeError, match="module 'bnderiv' has no attribute 'torch'"):
        _ = bnderiv.torch
