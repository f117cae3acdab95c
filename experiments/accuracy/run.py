"""How many digits of batch norm are right: bnderiv, Flax, Equinox, Haiku, PyTorch and plain jnp on the same inputs.

    python -m experiments.accuracy.run            every input, five seeds: numbers, tables, picture, report
    python -m experiments.accuracy.run --quick    one shape, one seed
    python -m experiments.accuracy.run --redraw   all but the numbers again, from the numbers

The errors are relative L2 distances to a truth computed in long double from the same rounded inputs. A library that is
not installed (`pip install -e ".[peers]"` has them all) is left out and named.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.accuracy.run", extras="peers")

import dataclasses
import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bnderiv
from experiments import _options, _report

SHAPES = [(32, 28, 28, 6), (64, 84), (256, 32, 32, 8)]  # the first also serves every case that is not drawn in all
SEEDS = range(5)
PEERS = ("flax", "equinox", "dm-haiku", "torch")
EPS = 1e-5
QUANTITIES = {"y": "y", "dx": "dx", "dgamma": "dγ", "dbeta": "dβ"}
MEANS = ("0", "1", "1e2", "1e3", "1e4", "1e6")
SCALES = ("1e18", "1e20", "1e30")

Arrays = dict[str, np.ndarray]
Library = Callable[[Arrays], Arrays]  # x, gamma, beta, mask, dy -> y, dx, dgamma, dbeta, mean, var (running)
Outcome = float | str  # the error, or what happened instead


class Cannot(Exception):
    """The library does not take this input."""


# The inputs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(_options.Measured):
    """How much is measured."""

    quick: bool = False
    """Only one shape and one seed are measured."""


class Case(NamedTuple):
    """One kind of input; `draw` makes x in float64, NaN included, and the mask if there is one."""

    name: str
    group: str
    shape: tuple[int, ...]
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    dtype: str = "float32"
    mask: str = ""  # "", "all False", "some"


def normal(mean, deviation, rng, shape):
    return mean + deviation * rng.standard_normal(shape)


def with_outlier(rng, shape):
    x = rng.standard_normal(shape)
    x[0] += 1e5
    return x


def constant(rng, shape):
    return np.full(shape, 1234.567)


def with_nan(places, rng, shape):
    x = rng.standard_normal(shape)
    x[places] = np.nan
    return x


def all_cases(quick: bool = False) -> list[Case]:
    shapes = SHAPES[1:2] if quick else SHAPES
    first, many = shapes[0], 6 if quick else 7
    cases = [Case(f"mean {mean}", "means", s, partial(normal, float(mean), 1.0)) for s in shapes for mean in MEANS]
    cases += [Case("outlier row 1e5", "spread", s, with_outlier) for s in shapes]
    cases += [Case("mean 1, deviation 1e-3", "spread", s, partial(normal, 1.0, 1e-3)) for s in shapes]
    cases += [
        Case(f"scale {scale}", "scales", s, partial(normal, 0.0, float(scale))) for s in shapes for scale in SCALES
    ]
    cases += [Case(f"{d}, 1e3 ± 100", "dtypes", first, partial(normal, 1e3, 100.0), d) for d in ("float16", "bfloat16")]
    return [
        *cases,
        Case("float64, mean 1e4", "dtypes", first, partial(normal, 1e4, 1.0), "float64"),
        Case(f"1e{many} rows, mean 1", "many", (10**many, 1), partial(normal, 1.0, 1.0)),
        Case(f"1e{many} pixels, mean 1", "many", (10 ** (many - 6), 1000, 1000, 1), partial(normal, 1.0, 1.0)),
        Case("constant 1234.567", "degenerate", first, constant),
        Case("one element per channel", "degenerate", (1, 84), partial(normal, 0.0, 1.0)),
        Case("mask all False", "degenerate", first, partial(normal, 0.0, 1.0), mask="all False"),
        Case("NaN in one channel", "degenerate", first, partial(with_nan, (3, ..., 2))),
        Case("NaN under a mask", "degenerate", first, partial(with_nan, 3), mask="some"),
    ]


def inputs(case: Case, seed: int) -> Arrays:
    """x, γ, β, the mask and the cotangent δ, all but the mask rounded to the dtype of the case."""
    rng = np.random.default_rng(seed)
    dtype = jnp.dtype(case.dtype)
    channels = case.shape[-1]
    x = case.draw(rng, case.shape)
    gamma, beta = rng.uniform(0.5, 1.5, channels), rng.standard_normal(channels)
    dy = rng.standard_normal(case.shape)
    arrays = {"x": x, "gamma": gamma, "beta": beta, "dy": dy}
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    if case.mask:
        # One flag for all channels of a place, as for padded examples. x[3] is NaN there, and no loss looks at it.
        arrays["mask"] = rng.random((*case.shape[:-1], 1)) < (0.8 if case.mask == "some" else 0.0)
        arrays["mask"][3] = False
        if case.mask == "some":
            arrays["dy"] = np.where(arrays["mask"], arrays["dy"], 0).astype(dtype)
    return arrays


# The truth.


def truth(arrays: Arrays) -> Arrays:
    """y, dx, dγ, dβ in long double (x̂ in (N3), dx in (N24)), whose range also holds the squares of 1e30.

    A False element counts for nothing in the statistics; one that is not finite, with a zero cotangent, for nothing.
    """
    x, gamma, beta, dy = (_by_channel(arrays[name]) for name in ("x", "gamma", "beta", "dy"))
    eps = np.longdouble(arrays["x"].dtype.type(EPS) if arrays["x"].dtype.itemsize == 8 else np.float32(EPS))
    included = np.ones(arrays["x"].shape, bool) if "mask" not in arrays else arrays["mask"]
    included = _by_channel(np.broadcast_to(included, arrays["x"].shape), bool)
    n = np.maximum(included.sum(1, keepdims=True), 1)
    with np.errstate(invalid="ignore"):  # NaN is among the inputs
        mean = np.where(included, x, 0).sum(1, keepdims=True) / n
        centred = x - mean
        var = np.where(included, centred**2, 0).sum(1, keepdims=True) / n
        r = 1 / np.sqrt(var + eps)
        x_hat = centred * r
        dgamma = np.where(included | (dy != 0), dy * x_hat, 0).sum(1, keepdims=True)
        dbeta = dy.sum(1, keepdims=True)
        dx = gamma * r * (dy - np.where(included, (dbeta + x_hat * dgamma) / n, 0))
        y = gamma * x_hat + beta
    shape = arrays["x"].shape
    full = {"y": y.T.reshape(shape), "dx": dx.T.reshape(shape)}
    return full | {"dgamma": dgamma[:, 0], "dbeta": dbeta[:, 0]}


def _by_channel(a: np.ndarray, dtype: Any = np.longdouble) -> np.ndarray:
    """(C, everything else), each channel contiguous: NumPy then sums it pairwise."""
    return np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T).astype(dtype)


# The libraries. Each takes channels-last arrays, in its own layout inside, one training step from fresh statistics.


def by_jax(forward: Callable[..., Any]) -> Library:
    """`forward(x, gamma, beta, mask) -> y, (running mean, running var)` under jit, with its vjp."""

    @jax.jit
    def step(x, gamma, beta, mask, dy):
        y, pull_back, running = jax.vjp(lambda *a: forward(*a, mask), x, gamma, beta, has_aux=True)
        return (y, *pull_back(dy), *running)

    def compute(arrays: Arrays) -> Arrays:
        with jax.enable_x64(arrays["x"].dtype.itemsize == 8):
            results = step(*(arrays.get(name) for name in ("x", "gamma", "beta", "mask", "dy")))
            return dict(zip(("y", "dx", "dgamma", "dbeta", "mean", "var"), map(np.asarray, results), strict=True))

    return compute


def bnderiv_like(package: Any) -> Library:
    def forward(x, gamma, beta, mask):
        y, stats = package.batch_norm(x, gamma, beta, eps=EPS, where=mask)
        running = package.init_running_stats(x.shape[-1], stats.mean.dtype)
        running = package.update_running_stats(running, jax.lax.stop_gradient(stats))
        return y, (running.mean, running.var)

    return by_jax(forward)


def flax(use_fast_variance: bool) -> Library:
    linen = importlib.import_module("flax.linen")

    def forward(x, gamma, beta, mask):
        layer = linen.BatchNorm(
            use_running_average=False, epsilon=EPS, param_dtype=x.dtype, use_fast_variance=use_fast_variance
        )
        running = {"mean": jnp.zeros(gamma.shape), "var": jnp.ones(gamma.shape)}
        variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": running}
        y, new = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
        return y, (new["batch_stats"]["mean"], new["batch_stats"]["var"])

    return by_jax(forward)


def equinox() -> Library:
    eqx = importlib.import_module("equinox")

    def forward(x, gamma, beta, mask):
        if mask is not None:
            raise Cannot("no mask")
        # "ema" is the default mode, which warns when it is not named. In a first step it takes the batch's statistics.
        make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
        layer, state = make(x.shape[-1], "batch", eps=EPS, dtype=x.dtype, mode="ema")
        layer = eqx.tree_at(lambda a: (a.weight, a.bias), layer, (gamma, beta))
        over_batch = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = over_batch(jnp.moveaxis(x, -1, 1), state)
        return jnp.moveaxis(y, 1, -1), state.get(layer.ema_state_index)

    return by_jax(forward)


def haiku() -> Library:
    hk = importlib.import_module("haiku")

    def forward(x, gamma, beta, mask):
        if mask is not None:
            raise Cannot("no mask")

        def layer(x):
            return hk.BatchNorm(True, True, decay_rate=0.9, eps=EPS)(x, is_training=True)

        transformed = hk.transform_with_state(layer)
        params, state = transformed.init(None, x)
        vectors = {"scale": gamma, "offset": beta}
        params = {room: {name: vectors[name].reshape(a.shape) for name, a in p.items()} for room, p in params.items()}
        y, state = transformed.apply(params, state, None, x)
        return y, tuple(state[f"batch_norm/~/{name}_ema"]["average"].reshape(-1) for name in ("mean", "var"))

    return by_jax(forward)


def pytorch() -> Library:
    torch = importlib.import_module("torch")

    def tensor(a: np.ndarray) -> Any:
        exact = np.array(a.astype(np.float32) if a.dtype.itemsize == 2 else a)  # its NumPy has no bfloat16
        return torch.from_numpy(exact).to(getattr(torch, a.dtype.name))

    def array(t: Any) -> np.ndarray:
        return (t.detach().float() if t.element_size() == 2 else t.detach()).numpy()

    def compute(arrays: Arrays) -> Arrays:
        if "mask" in arrays:
            raise Cannot("no mask")
        x, gamma, beta, dy = (tensor(arrays[name]) for name in ("x", "gamma", "beta", "dy"))
        x, dy = (t.movedim(-1, 1).contiguous() for t in (x, dy))
        leaves = [t.requires_grad_() for t in (x, gamma, beta)]
        running = torch.zeros_like(gamma), torch.ones_like(gamma)
        y = torch.nn.functional.batch_norm(x, *running, gamma, beta, training=True, eps=EPS)
        y.backward(dy)
        y, dx = (array(t.movedim(1, -1)) for t in (y, x.grad))
        dgamma, dbeta = (array(leaf.grad) for leaf in leaves[1:])
        return {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta, "mean": array(running[0]), "var": array(running[1])}

    return compute


MAKERS: dict[str, Callable[[], Library]] = {
    "bnderiv": partial(bnderiv_like, bnderiv),
    "plain jnp": partial(bnderiv_like, bnderiv.reference),
    "Flax": partial(flax, True),
    "Flax, two-pass": partial(flax, False),
    "Equinox": equinox,
    "Haiku": haiku,
    "PyTorch": pytorch,
}


def installed_libraries() -> tuple[dict[str, Library], list[str]]:
    libraries, absent = {}, []
    for name, make in MAKERS.items():
        try:
            libraries[name] = make()
        except ImportError:
            absent.append(name)
    return libraries, absent


# The comparison.


def compare(case: Case, seed: int, libraries: dict[str, Library]) -> dict[str, dict[str, Outcome]]:
    """What each library makes of one input, quantity by quantity."""
    arrays = inputs(case, seed)
    right = truth(arrays)
    return {name: judged(arrays, right, library) for name, library in libraries.items()}


def judged(arrays: Arrays, right: Arrays, library: Library) -> dict[str, Outcome]:
    try:
        results = library(arrays)
    except Cannot as reason:
        return dict.fromkeys([*QUANTITIES, "running"], str(reason))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return dict.fromkeys([*QUANTITIES, "running"], f"{type(error).__name__}: {str(error)[:100]}")
    lost = {"y": np.broadcast_to(arrays["beta"], right["y"].shape)}
    outcomes = {name: outcome(results[name], right[name], lost.get(name)) for name in QUANTITIES}
    mean, var = results["mean"], results["var"]
    unchanged = (mean == 0).all() and (var == 1).all()
    nan = np.isnan(mean) | np.isnan(var)
    outcomes["running"] = f"NaN in {nan.sum()} of {nan.size}" if nan.any() else "unchanged" if unchanged else "updated"
    return outcomes


def outcome(result: np.ndarray, right: np.ndarray, lost: np.ndarray | None = None) -> Outcome:
    """‖result − right‖/‖right‖ where the truth is finite; or in words what happened, where a ratio would hide it.

    `lost` is what y is when all of x̂ has gone.
    """
    known = np.isfinite(right)
    if np.isfinite(result[~known]).any():
        return "a number for NaN"
    result, right = result[known].astype(np.longdouble), right[known]
    if np.isnan(result).any():
        return "NaN"
    if np.isinf(result).any():
        return "inf"
    if not right.any():
        return f"{number(float(np.abs(result).max()))} for 0" if result.any() else 0.0
    if not result.any():
        return "all zeros"
    if lost is not None and (result == lost[known]).all() and (right != lost[known]).any():
        return "β (x̂ lost)"
    return float(np.sqrt(((result - right) ** 2).sum() / (right**2).sum()))


def badness(value: Outcome) -> tuple[int, float]:
    """Order of outcomes: errors by size, then what is not 0 but should be, then what is no number."""
    if isinstance(value, str):
        return (1, float(value.split()[0])) if value.endswith(" for 0") else (2, 0.0)
    return 0, value


def summary(outcomes: list[Outcome]) -> tuple[Outcome, Outcome]:
    """Median and worst over the seeds (an odd number of them)."""
    ranked = sorted(outcomes, key=badness)
    return ranked[len(ranked) // 2], ranked[-1]


def measure(options: Settings) -> dict[str, Any]:
    """The numbers of every library that is installed."""
    if np.finfo(np.longdouble).eps > 1e-18:
        raise _command.Refused("the truth needs a long double wider than float64, which this machine's NumPy has not")
    libraries, absent = installed_libraries()
    for name in absent:
        print(f"{name} is not installed: left out")
    cases, seeds = all_cases(options.quick), SEEDS[:1] if options.quick else SEEDS
    rows = []
    with _command.bar(total=len(cases) * len(seeds), unit="input") as bar:
        for case in cases:
            bar.set_postfix_str(case.name, refresh=False)
            each: dict[str, dict[str, list[Outcome]]] = {}
            for seed in seeds:
                for library, outcomes in compare(case, seed, libraries).items():
                    for name, value in outcomes.items():
                        value = value if isinstance(value, str) else float(f"{value:.3g}")
                        each.setdefault(library, {}).setdefault(name, []).append(value)
                bar.update()
            row = {"case": case.name, "group": case.group, "shape": case.shape, "dtype": case.dtype}
            rows.append(row | {"outcomes": each})
    return {"eps": EPS, "seeds": list(seeds), "libraries": list(libraries), "absent": absent, "rows": rows}


# Files.


def number(value: float) -> str:
    """2.3e-7, without the padding of the exponent."""
    if value == 0:
        return "exact"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def shown(value: Outcome) -> str:
    return value.split(":")[0] if isinstance(value, str) else number(value)


def median_and_worst(outcomes: list[Outcome]) -> str:
    median, worst = (shown(value) for value in summary(outcomes))
    return median if median == worst else f"{median} ({worst})"


def worst_pair(outcomes: dict[str, list[Outcome]]) -> str:
    y, dx = (shown(summary(outcomes[name])[1]) for name in ("y", "dx"))
    return y if y == dx and not y[0].isdigit() else f"{y} / {dx}"


def standing(rows: list[dict[str, Any]], quantity: str) -> list[str]:
    """Where bnderiv stands among the libraries in this quantity, by medians: the losses as well as the wins."""
    ratios = []
    for row in rows:
        medians = {library: summary(outcomes[quantity])[0] for library, outcomes in row["outcomes"].items()}
        ours = medians["bnderiv"]
        best = min(medians, key=lambda library: badness(medians[library]))
        lowest = medians[best]
        if isinstance(ours, float) and isinstance(lowest, float):
            ratio = 1.0 if ours == lowest else ours / max(lowest, 1e-30)
        else:
            ratio = 1.0 if badness(ours) == badness(lowest) else np.inf
        ratios.append((ratio, f"{shown(ours)}, {best} {shown(lowest)}: {row['case']}, {size(row)}"))
    values = [ratio for ratio, _ in ratios]
    within = [sum(ratio <= most for ratio in values) for most in (1, 1.5, 2)]
    furthest = max(ratios)
    return [*(f"{count} of {len(rows)}" for count in within), "none" if furthest[0] == 1 else furthest[1]]


def size(row: dict[str, Any]) -> str:
    return "×".join(map(str, row["shape"]))


def tables(content: dict[str, Any]) -> list[_report.Part]:
    """Everything, from the numbers of `accuracy.json` alone."""
    libraries, rows = content["libraries"], content["rows"]
    seeds = "one seed" if len(content["seeds"]) == 1 else f"{len(content['seeds'])} seeds"
    first = rows[0]["shape"]

    def detail(title: str, quantity: str, chosen: list[dict[str, Any]]) -> _report.Table:
        cells = (
            [f"{row['case']}, {size(row)}", *(median_and_worst(row["outcomes"][of][quantity]) for of in libraries)]
            for row in chosen
        )
        return _report.Table(title, ("input", *libraries), list(cells))

    main = [row for row in rows if row["shape"] == first or row["group"] in ("many", "degenerate")]
    brief = [[row["case"], *(worst_pair(row["outcomes"][of]) for of in libraries)] for row in main]
    columns = ("", "lowest error (or tied)", "within 1.5 × the lowest", "within 2 ×", "furthest behind")
    return [
        *(_report.Text("", f"Not installed, left out: {name}.") for name in content["absent"]),
        _report.Table(f"y and dx (y / dx), worst of {seeds}, {size(rows[0])}", ("input", *libraries), brief),
        _report.Table(
            "Where bnderiv stands among all of them, by the median",
            columns,
            [[symbol, *standing(rows, name)] for name, symbol in QUANTITIES.items()],
        ),
        *(
            detail(f"{symbol}, every shape: median (worst) of {seeds}", name, rows)
            for name, symbol in QUANTITIES.items()
        ),
        detail(
            "Running statistics after one step from mean 0, variance 1",
            "running",
            [row for row in rows if row["group"] == "degenerate"],
        ),
    ]


OTHER_NAMES = {"plain jnp": "plain autodiff"}
NOTHING = 1e8  # the height at which an outcome without a number is drawn


def draw(content: dict[str, Any]) -> bytes:
    """The worst error of the seeds against the mean, y and dx; and dx against the scale."""
    rows = [row for row in content["rows"] if row["shape"] == content["rows"][0]["shape"]]
    by_name = {row["case"]: row["outcomes"] for row in rows}
    means, scales = [f"mean {mean}" for mean in MEANS], ["mean 0", *(f"scale {scale}" for scale in SCALES)]
    figure, axes = plt.subplots(2, 2, figsize=(_report.WIDTH, 7.6), sharey=True)
    (y, dx), (scaled, legend) = axes
    for panel, names, quantity in ((y, means, "y"), (dx, means, "dx"), (scaled, scales, "dx")):
        for library in content["libraries"]:
            worst = [summary(by_name[name][library][quantity])[1] for name in names]
            heights = [math.nan if isinstance(w, str) else max(w, 1e-9) for w in worst]
            look = _report.LOOKS[OTHER_NAMES.get(library) or library]
            panel.plot(heights, label=library, **look)
            lost = [NOTHING if isinstance(w, str) else math.nan for w in worst]
            panel.plot(lost, **look | {"linestyle": "none"})
        panel.axhspan(NOTHING / 30, NOTHING * 1000, color="tab:red", alpha=0.12, linewidth=0)
        panel.axhline(2.0**-24, color="gray", linewidth=1)
        panel.axhspan(1, NOTHING * 1000, color="tab:red", alpha=0.08, linewidth=0)
        panel.set(yscale="log", ylim=(2e-9, NOTHING * 1000), yticks=[10.0**k for k in range(-8, 6, 2)])
    for panel, title in ((y, "The output y"), (dx, "The gradient dx"), (scaled, "The gradient dx, mean 0")):
        panel.set_title(title)
    for panel in (y, dx):
        panel.set(xlabel="mean of x (deviation 1)", xticks=range(len(means)), xticklabels=MEANS)
    scaled.set(xlabel="deviation of x", xticks=range(len(scales)), xticklabels=("1", *SCALES))
    for panel in (y, scaled):
        panel.set_ylabel("relative error")
    legend.axis("off")
    legend.legend(*y.get_legend_handles_labels(), loc="upper left", fontsize=11)
    words = "Dark red: no number at all (NaN),\nor x̂ lost (y = β, dx = 0).\nLight red: no digit is right.\n"
    legend.text(0.03, 0.02, words + "Gray line: one rounding of a float32.", transform=legend.transAxes, va="bottom")
    of = f"{size(rows[0])}, worst of {len(content['seeds'])} seeds"
    figure.suptitle(f"Batch norm in float32, {of}: lower is better", fontsize=12)
    return _report.png(figure)


def present(content: dict[str, Any]) -> _report.Report:
    """The page with all of it."""
    rows, parts = len(content["rows"]), tables(content)
    within = standing(content["rows"], "y")[1], standing(content["rows"], "dx")[1]
    caption = f"One of the shapes, and the worst of the seeds, as in the first table; all {rows} rows are below."
    brief = next(part for part in parts if isinstance(part, _report.Table))
    return _report.Report(
        "How many digits of batch norm are right?",
        "Relative errors against a truth in long double. In the median over the seeds, that of bnderiv is within "
        f"1.5 × the lowest of all libraries in {within[0]} rows for y, in {within[1]} for dx.",
        [_report.Picture("Error against mean and scale", "accuracy.png", draw(content), caption), *parts],
        tables="accuracy.md",
        said=_report.markdown([brief]),
    )


@_command.command
def main(arguments: list[str] | None = None) -> None:
    options = _options.parse(Settings, arguments, __doc__)
    file = options.folder(__file__) / "accuracy.json"
    _report.run(file, options, measure, present, "bnderiv", *PEERS)
