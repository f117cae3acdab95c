"""The benchmark's own arithmetic: who is timed how, what is counted, and that the tables say what the numbers do."""

import contextlib
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import _report
from experiments.benchmark import allocator, clock, memory, run, steps, tables, torch_peer

FOLDER = Path(steps.__file__).parent
RESULTS = sorted((FOLDER / "results").glob("*.json"))


def test_in_turns_and_what_comes_before_it_is_warm_does_not_count(monkeypatch):
    monkeypatch.setattr(clock, "PAUSE", 0)
    calls = []

    def contestant(name, seconds):
        cold = math.ceil(0.25 / seconds)

        def run(times):
            calls.append((name, times))
            return [*[99.0] * cold, *[seconds] * (times - cold)] if times > 2 else [99.0, seconds][:times]

        return run

    def missing(times):
        raise clock.Absent("not installed")

    effort = clock.Effort(quick=False, rounds=3, burst=2, warming=0.25)
    contestants = {"slow": contestant("slow", 0.2), "missing": missing, "fast": contestant("fast", 0.1)}
    times = clock.interleaved(contestants, effort, per=10)
    assert list(times) == ["slow", "missing", "fast"]
    assert times["missing"] == {"absent": "not installed"}
    assert times["slow"] == {"ms": [20, 20, 20], "runs": 6}
    assert times["fast"] == {"ms": [10, 10, 10], "runs": 6}
    assert calls == [("slow", 1), ("slow", 2), ("fast", 1), ("fast", 2)] + [("slow", 2 + 2), ("fast", 3 + 2)] * 3


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_process_that_keeps_its_memory_starts_once_and_faults_no_pages(tmp_path):
    """A large array again and again: with the default each is new pages, kept it is the same ones."""
    (tmp_path / "program.py").write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER.parents[1])!r})\n"
        "from experiments.benchmark import allocator\n"
        "allocator.start_again(keeping=sys.argv[1] == 'kept')\n"
        "import resource; faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "touch = lambda: bytearray(2**26).count(1)\n"
        "touch(); before = faults(); touch(); print(allocator.keeps(), faults() - before)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in allocator.KEEPING}
    for how in ("kept", "fresh"):
        command = [sys.executable, str(tmp_path / "program.py"), how]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        assert printed[0] == str(how == "kept")
        assert (int(printed[1]) < 100) == (how == "kept")


def test_saved_counts_the_bytes_that_are_read_and_each_array_once():
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    assert memory.saved(jnp.sin, x) == x.size * 4
    assert memory.saved(lambda x: x * jnp.ones_like(x), x) == x.size * 4
    assert memory.saved(lambda x: (x + 1, x[0]), x) == 0

    @jax.custom_vjp
    def twice(x):
        return x

    twice.defvjp(lambda x: (x, (x, x, 2 * x)), lambda kept, delta: (delta * kept[0] + kept[1],))
    assert memory.saved(twice, x) == x.size * 4


def test_flops_are_those_of_the_products():
    """Counted by hand, batch 1: forward 235,200 + 480,000 + 96,000 + 20,160 + 1,680; the first has no ∂J/∂a."""
    forward = 235_200 + 480_000 + 96_000 + 20_160 + 1_680
    assert steps.flops(1) == 3 * forward - 235_200
    assert steps.flops(32) == 32 * steps.flops(1)


def test_the_numbers_say_how_they_were_last_measured(tmp_path, monkeypatch):
    """A part again by other options: the other part keeps its numbers, and the page says these options."""
    monkeypatch.setattr(run, "SECTIONS", {name: tables.Section(name, lambda *_: {"cases": []}) for name in "ab"})
    monkeypatch.setattr(run, "Torch", lambda: contextlib.ExitStack())
    file = tmp_path / "numbers.json"
    run.run(["a"], clock.QUICK, file, run.Settings(quick=True))
    run.run(["b"], clock.FULL, file, run.Settings(fresh_memory=True))
    content = _report.numbers(file)
    assert list(content["sections"]) == ["a", "b"]
    assert content["configuration"] == {"quick": False, "fresh_memory": True}
    assert content["command"] == "python -m experiments.benchmark.run --fresh-memory"


def ms(median):
    return {"ms": [median * 0.9, median, median * 1.1], "runs": 3}


def written(content):
    return _report.markdown(tables.present(content, "stem").parts)


MEASURED = {"date": "d", "processor": "p", "seconds": 1}


def test_pytorch_at_its_best_and_losses_in_bold():
    times = {
        "bnderiv": ms(2.0),
        "Flax": ms(1.0),
        "PyTorch eager, 1 thread": ms(8.0),
        "PyTorch compiled, 2 threads": ms(6.0),
        "PyTorch compiled, 1 thread": {"absent": "no compiler"},
        "4 copies": ms(1.0),
    }
    assert list(tables.best_of_torch(times)) == ["bnderiv", "Flax", "4 copies", "PyTorch"]
    assert tables.best_of_torch(times)["PyTorch"]["how"] == "compiled, 2 threads"
    about = {"machine": "m", "backend": "cpu", "memory": "kept"}
    section = {"cases": [{"case": "a case", "times": times}], "versions": {"torch": None}, **MEASURED}
    text = written({**about, "sections": {"batch_norm": section}})
    assert "1 (0.9–1.1), **0.50×**" in text  # Flax
    assert "6 (5.4–6.6), 3.00×, compiled, 2 threads" in text
    assert "1 (0.9–1.1), 0.50×" in text  # a limit is no peer
    assert "In 1 of 2 comparisons" in text
    assert "| a case | Flax | 0.50 |" in text
    assert "d, p, 1 s; torch absent" in text


def test_without_a_gpu_the_table_says_so():
    section = {"cases": [], "absent": "no GPU measured", "versions": {}, **MEASURED}
    content = {"machine": "m", "backend": "cpu", "memory": "kept", "sections": {"gpu": section}}
    assert "no GPU measured" in written(content)


def test_the_picture_names_every_layer(monkeypatch):
    """A label leaves out of a case's name only what its heading says."""
    drawn = {}
    monkeypatch.setattr(tables.picture, "draw", lambda groups, *_: drawn.update(groups))
    cases = {"batch_norm_relu": "batch norm + relu, 4×4", "max_pool": "max pool 2×2, 4×4", "other": "softmax, 4×4"}
    sections = {name: {"cases": [{"case": case, "times": {"bnderiv": ms(1.0)}}]} for name, case in cases.items()}
    tables.draw({"machine": "m", "sections": sections})
    labels = {heading: next(iter(group)).partition("   ")[0] for heading, group in drawn.items()}
    assert labels == {"Batch norm and ReLU": "4×4", "Max pool": "2×2, 4×4", "The other layers": "softmax, 4×4"}


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ('print(\'{"torch": "2"}\', flush=True); input(); print(\'{"seconds": [1.0]}\', flush=True)', [1.0]),
        ('print(\'{"torch": "2"}\', flush=True); input(); print(\'{"error": "Oh: no"}\', flush=True)', "Oh: no"),
        ('print(\'{"torch": "2"}\', flush=True); input()', "the process ended"),
        ("raise ModuleNotFoundError('torch')", "torch is not installed"),
    ],
    ids=["answers", "fails", "dies", "is absent"],
)
def test_a_process_that(says, expected, tmp_path, monkeypatch):
    (tmp_path / "torch_process.py").write_text(says)
    monkeypatch.setattr(torch_peer, "__file__", str(tmp_path / "torch_peer.py"))
    monkeypatch.setattr(torch_peer, "THREADS", (1,))
    assert sys.executable
    with contextlib.closing(torch_peer.Torch()) as torch:
        run = torch.contestants("pool", compiled=False)["PyTorch eager, 1 thread"]
        if isinstance(expected, list):
            assert run(1) == expected
        else:
            with pytest.raises(clock.Absent, match=expected):
                run(1)


def test_the_readme_quotes_the_tables():
    """Row by row; its first cells may be worded otherwise in no row."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| ---")]
    written = "\n".join(path.with_suffix(".md").read_text() for path in RESULTS).splitlines()
    assert rows
    assert not [row for row in rows if row not in written]
