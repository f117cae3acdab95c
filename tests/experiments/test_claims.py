"""The pages against the committed results that they name: the tables of the README cell by cell, bounds and dates."""

import json
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
TIMES = EXPERIMENTS / "benchmark" / "results" / "2-cpu-cores-x86_64-linux.md"
COUNTS = json.loads((EXPERIMENTS / "benchmark" / "results" / "ahead_of_time" / "ahead_of_time.json").read_text())
BLOCK, LENET = "bottleneck block", "LeNet-5's step"


def rows(text):
    """The rows of all tables: the first cell, then the others."""
    lines = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("|"))
    return [tuple(cell.strip() for cell in line) for line in lines if not set("".join(line)) <= set("-: ")]


README = (ROOT / "README.md").read_text()


def table(head):
    """The rows below the head whose cells are `head`."""
    (start,) = (i for i, line in enumerate(README.splitlines()) if rows(line) == [head])
    return rows("\n".join(README.splitlines()[start + 1 :]).partition("\n\n")[0])


def agree(shown, ratio):
    """`shown` is the ratio, rounded to as many decimals as it has; the results have two, which may round twice."""
    number = shown.strip("*").rstrip("×")
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    return abs(float(number) - ratio) <= half + 0.005 and (shown.startswith("**") == (ratio < 1))


def worse_of(cell):
    """Of "y / dx" what is worse: a word, NaN, or the larger number."""
    parts = [part.strip() for part in cell.split("/")]
    words = [part for part in parts if not re.match(r"[\d.]+e-?\d+$", part) and part != "exact"]
    return words[-1] if words else max((part for part in parts if part != "exact"), key=float, default="exact")


def test_the_errors():
    head = ("input", "bnderiv", "plain jnp", "Flax", "Equinox", "Haiku", "PyTorch")
    written = {
        row[0]: row for row in reversed(rows((EXPERIMENTS / "accuracy" / "results" / "accuracy.md").read_text()))
    }
    assert written["input"] == (*head[:4], "Flax, two-pass", *head[4:])
    shown = table(head)
    assert len(shown) == 10
    for name, *cells in shown:
        ours, plain, flax, _, *others = written[name][1:]
        assert cells == [worse_of(cell) for cell in (ours, plain, flax, *others)], name


def case(name):
    """As the benchmark's tables call it."""
    name = name.replace("LeNet-5 step with batch norm, ", "").replace("+ ReLU", "+ relu").replace("average", "avg")
    if name.startswith("batch norm"):
        return f"{name}, float32"
    if name.startswith("the same with avg pools and tanh, "):
        return f"{name.rpartition(', ')[2]}, avg pool, tanh"
    if re.fullmatch(r"batch \d+", name):
        return f"{name}, max pool, relu"
    return re.sub(r"/(\d)", r", stride \1", name).replace("entropy of", "entropy,")


def test_the_times():
    ratios = {}
    for name, *cells in rows(TIMES.read_text()):
        found = [re.search(r", (\*\*)?([\d.]+)×", cell) for cell in cells]
        if len(cells) > 2 and found[2]:  # the columns: bnderiv, plain autodiff, Flax, PyTorch
            # Bold marks what is slower by less than the decimals tell.
            ratios[name] = [min(float(f[2]), 0.999) if f[1] else float(f[2]) for f in found[2:4] if f]
    for name, shape, _, flax, _ in (
        row for row in rows((EXPERIMENTS / "norms/results/norms.md").read_text()) if len(row) == 5
    ):
        if "×" in flax:
            norm = name.replace("_", " ").replace("rms", "RMS")
            ratios[f"{norm}, {shape}"] = [float(flax.rstrip("×"))]
    shown = table(("", "Flax", "PyTorch"))
    assert len(shown) > 20
    for name, *cells in shown:
        cells = [cell for cell in cells if cell]
        found = ratios[case(name)][: len(cells)]
        assert len(found) == len(cells), name
        assert all(map(agree, cells, found)), (name, cells, found)
    slower = re.search(r"In (\d+) of (\d+) comparisons", TIMES.read_text())
    assert slower
    assert re.search(rf"{int(slower[2]) - int(slower[1])} of\s{slower[2]} comparisons", README)


def test_the_pools_of_random_windows():
    """How many the table of the results counts as slower: in a call, and in the first."""
    counted = {
        row[0]: int(row[3])
        for row in rows(TIMES.read_text())
        if re.match(r"(max|avg) pool, (a|the first) call", row[0])
    }
    assert len(counted) == 4
    calls = sum(n for name, n in counted.items() if ", a call" in name)
    most, average = (counted[f"{kind} pool, the first call, compilation included"] for kind in ("max", "avg"))
    page = " ".join((EXPERIMENTS / "benchmark" / "README.md").read_text().split())
    assert f"{calls or 'None'} of 100 pools of random windows is slower than Flax's once compiled" in page
    assert f"At the first call, compilation included, {most} max pools and {average} average pools are slower" in page
    front = " ".join(README.split())
    assert f"Of 100 random pools {most + average} take longer than Flax's at the first call, {average} of them" in front


def test_the_saved_bytes():
    saved = {row[0]: row[1:] for row in rows(TIMES.read_text()) if len(row) == 4 and re.fullmatch(r"[\d.]+", row[1])}
    names = {
        "batch norm with its ReLU, float32": "batch norm + relu, float32",
        "batch norm with its ReLU, bfloat16": "batch norm + relu, bfloat16",
        "max pool 2×2, float32": "max pool 2×2, stride 2, float32",
        "max pool 2×2, bfloat16": "max pool 2×2, stride 2, bfloat16",
        "average pool": "avg pool 2×2, stride 2, float32",
    }
    shown = table(("", "bnderiv", "Flax"))
    assert [row[0] for row in shown] == list(names)
    for name, *cells in shown:
        for cell, found in zip(cells, (saved[names[name]][0], saved[names[name]][2]), strict=True):
            number = cell.partition(";")[0].removesuffix("x").removesuffix(" × ")
            over, _, under = number.partition("/")
            value = {"nothing": 0.0, "": 1.0}[number] if number in ("nothing", "") else float(over) / float(under or 1)
            assert value == float(found), name


def counted(target, what, start, end="", peer="Flax"):
    """Ours over the peer's, for the cases of a target whose names start and end so."""
    found = [v for name, v in COUNTS["targets"][target].items() if name.startswith(start) and name.endswith(end)]
    assert found
    return [libraries["bnderiv"][what] / libraries[peer][what] for libraries in found]


def test_the_counts():
    starts = {
        "batch norm, 256×56×56×256, float32": ("batch norm, 256×56×56×256", "float32"),
        "batch norm + ReLU, 256×56×56×256, bfloat16": ("batch norm + relu, 256×56×56×256", "bfloat16"),
        "max pools, 256×112×112×64": ("max pool", ""),
        "average pools": ("avg pool", ""),
        "batch norm + ReLU, 4096×1024": ("batch norm + relu, 4096", ""),
        "group norm, 64×56×56×64": ("group norm, 64", ""),
        "group norm, 8×64×64×320, bfloat16": ("group norm, 8", "bfloat16"),
        "layer norm, 16×4096×1024": ("layer norm, 16", ""),
        "layer norm, 64×56×56×96": ("layer norm, 64", ""),
        "RMS norm, 8×2048×16×128": ("rms norm, 8", ""),
        "layer norm forward alone, 16×4096×1024, bfloat16": ("layer norm forward alone", "bfloat16"),
        "softmax, 8×12×512×512, float32": ("softmax", "float32"),
        "softmax, 8×12×512×512, bfloat16": ("softmax", "bfloat16"),
        "cross entropy of integer labels, 4096×1000": ("cross entropy of integer labels, 4096×1000,", ""),
        "two blocks of a transformer, a step, 32×197×768, bfloat16": ("transformer's step", "bfloat16"),
        "ResNet-50's bottleneck block, bfloat16": (f"{BLOCK}, ", "bfloat16"),
        "ResNet-50's step, batch 256, bfloat16": ("ResNet-50's step, 256", "bfloat16"),
        "LeNet-5's step with batch norm, batch 128, float32": (f"{LENET}, batch 128", "float32"),
    }
    shown = table(("", "H100, bytes", "TPU v5e, cycles"))
    assert [row[0] for row in shown] == list(starts)
    for name, *cells in shown:
        for cell, (target, what) in zip(cells, (("h100", "bytes"), ("v5e", "megacycles")), strict=True):
            ratios = [1 / r for r in counted(target, what, *starts[name])]
            ends = cell.replace("*", "").rstrip("×").split("–")
            for end, ratio in zip((ends[0], ends[-1]), (min(ratios), max(ratios)), strict=True):
                half = 0.5 * 10.0 ** -len(end.partition(".")[2])
                # 1 is what the tables of counts call equal: within half a percent.
                assert abs(float(end) - ratio) <= half + 1e-9, (name, cell, ratio)
                assert float(end) != 1 or ratio > 0.995, (name, cell, ratio)
            assert ("**" in cell) == (float(ends[0]) < 1), name


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            "with `bnderiv.linen.BatchNorm` and Flax's convolutions | 1.25 times",
            ("h100", "temporary MB", f"{BLOCK} with", "bfloat16"),
        ),
        ("bfloat16 on a TPU v5p | 1.02 times the cycles", ("v5p", "megacycles", f"{BLOCK}, ", "bfloat16")),
        ("times the cycles, 1.09 times the temporary memory", ("v5p", "temporary MB", f"{BLOCK}, ", "bfloat16")),
        ("bfloat16 on a TPU v6e | 1.02 times the cycles", ("v6e", "megacycles", f"{BLOCK}, ", "bfloat16")),
        ("float32 on a TPU v5e | 1.03 times the cycles", ("v5e", "megacycles", "ResNet-50's step", "float32")),
        ("small or narrow arrays on a TPU | up to 1.12 times", ("tpu", "megacycles", "batch norm")),
        ("LeNet-5's step on a TPU | up to 1.10 times the cycles", ("tpu", "megacycles", LENET)),
        ("LeNet-5's step in bfloat16 on a TPU v5p | 1.4 times the bytes", ("v5p", "bytes", LENET, "bfloat16")),
        ("layer norm of 96 features on a TPU | up to 1.35 times", ("tpu", "megacycles", "layer norm")),
        ("group and instance norm on a TPU | up to 1.09 times", ("tpu", "megacycles", ("group", "instance"))),
        (
            "two blocks of a transformer, a step, on a TPU | up to 1.05 times",
            ("tpu", "megacycles", "transformer's step"),
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_costs_more(row, found):
    assert row in README
    number = re.findall(r"([\d.]+) times", row)[-1]
    targets = ("v5e", "v6e", "v5p") if found[0] == "tpu" else (found[0],)
    ratio = max(max(counted(target, *found[1:])) for target in targets)
    assert f"{ratio:.{len(number.partition('.')[2])}f}" == number


def test_the_bounds_of_accuracy():
    rows = json.loads((EXPERIMENTS / "accuracy" / "results" / "accuracy.json").read_text())["rows"]
    page = " ".join((EXPERIMENTS / "accuracy" / "README.md").read_text().split())

    def worst(who, what, chosen):
        numbers = (e for row in rows if chosen(row) for q in what for e in row["outcomes"][who].get(q, []))
        return max(e for e in numbers if isinstance(e, float))

    def small(row):
        return row["dtype"] == "float32" and math.prod(row["shape"][:-1]) <= 262_144

    means = worst(
        "bnderiv", ("y", "dx"), lambda row: row["case"].startswith("mean") and row["shape"] == [32, 28, 28, 6]
    )
    sums = worst("bnderiv", ("dgamma", "dbeta"), small)
    others = max(worst(who, ("dbeta",), small) for who in ("plain jnp", "Flax", "Flax, two-pass", "Equinox", "Haiku"))
    said = [
        f"`bnderiv` is right to {means:.1e} at every mean",
        f"off by at most {sums:.1e} here. In the other JAX libraries dβ, the same sum, is off by up to {others:.1e}",
    ]
    for sentence in said:
        assert sentence.replace("e-0", "e-") in page
    assert f"off by at most {sums:.1e} in channels".replace("e-0", "e-") in " ".join(README.split())


@pytest.mark.parametrize("name", ["accuracy", "by_hand", "dropin", "norms"])
def test_the_dates(name):
    (said,) = re.findall(r"Measured on (\d{4}-\d\d-\d\d)", (EXPERIMENTS / name / "README.md").read_text())
    assert json.loads((EXPERIMENTS / name / "results" / f"{name}.json").read_text())["date"] == said


def test_the_versions_of_python():
    workflow = ROOT / ".github" / "workflows" / "tests.yml"
    if not workflow.exists():
        pytest.skip("an sdist has no workflows")
    core, *_ = re.findall(r"python: \[(.*)\]", workflow.read_text())
    core = core.replace('"', "").split(", ")
    assert f"tests Python {core[0]} to {core[-1]} on Linux" in README


def test_the_rows_of_the_benchmarks_page():
    written = set(rows(TIMES.read_text()))
    shown = rows((EXPERIMENTS / "benchmark" / "README.md").read_text())
    shown = [row for row in shown if row[0]]  # the heads have an empty cell first
    assert len(shown) > 60
    assert set(shown) <= written


def test_the_time_to_compile_a_layer_norm_for_a_gpu():
    found = COUNTS["targets"]["h100"]["layer norm, 16×4096×1024, float32"]
    ours, flax = (found[who]["seconds"] for who in ("bnderiv", "Flax"))
    assert f"compile in {ours:.1f} s, Flax's in {flax:.1f} s" in README
