"""What a user installs: the wheel and the sdist, built from this tree."""

import email
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.compiling import of_a_user

pytest.importorskip("hatchling", reason="builds the distributions; in the extra `test`")
pytest.importorskip("hatch_fancy_pypi_readme", reason="makes the links of the README absolute; in the extra `test`")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
URL = "https://github.com/bnderiv/bnderiv"


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target, source, folder):
    """The wheel or the sdist of the tree at `source`."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    (top,) = (path for path in folder.iterdir() if path.is_dir())
    return top


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel):
    (text,) = (content for name, content in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """Without a network: this environment's packages follow those of the fresh one, which has bnderiv alone."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    (python,) = (tmp_path / name / "python" for name in ("bin", "Scripts") if (tmp_path / name).exists())
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel)
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    (packages / "this_environment.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    printed = run(python, ROOT / "tests" / "installed_program.py", cwd=tmp_path, env=of_a_user("PYTHONPATH"))
    assert printed.endswith("is installed\n")


def test_the_wheel_has_the_package_alone(wheel):
    names = {name.split("/")[0] for name in contents(wheel)}
    assert {name for name in names if not name.endswith(".dist-info")} == {"bnderiv"}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bnderiv").rglob("*.py")}
    assert files | {"bnderiv/py.typed"} <= set(contents(wheel))


def test_the_sdist_makes_the_same_wheel(wheel, unpacked, tmp_path):
    assert contents(build("wheel", unpacked, tmp_path)) == contents(wheel)


def test_the_sdist_has_its_tests_and_pages(unpacked):
    """Two that read all of the tree: a page or a test that was left out would be missed."""
    run(sys.executable, "-m", "pytest", "-q", "tests/test_names.py", "tests/test_formulas.py", cwd=unpacked)


def test_an_index_shows_the_readme_with_links_that_lead_somewhere(wheel):
    described = metadata(wheel)
    assert described["Description-Content-Type"] == "text/markdown"
    readme = str(described.get_payload())
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert len(targets) > 20
    for target in targets:
        assert re.match(r"https?://|#", target), target
        ours = re.fullmatch(rf"{URL}/(blob|raw)/main/([^#]+)(#.*)?", target)
        if ours:
            assert (ROOT / ours[2]).exists(), target
            assert (ours[1] == "raw") == (Path(ours[2]).suffix in (".png", ".svg")), target


def test_it_says_where_it_comes_from(wheel):
    urls = dict(url.split(", ") for url in metadata(wheel).get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Changelog", "Issues"} == set(urls)
    assert urls.pop("Documentation") == "https://bnderiv.github.io/bnderiv/"
    assert all(url.startswith(URL) for url in urls.values())
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert metadata(wheel)["Version"] == versions[0]
    assert f"version: {versions[0]}\n" in (ROOT / "CITATION.cff").read_text()
