"""What each library makes of an input: its error, or in words what happened where a number would hide it."""

import numpy as np

from experiments.accuracy.cases import Arrays
from experiments.accuracy.libraries import Cannot, Library

QUANTITIES = {"y": "y", "dx": "dx", "dgamma": "dγ", "dbeta": "dβ"}

Outcome = float | str  # the error, or what happened instead


def judged(arrays: Arrays, right: Arrays, library: Library) -> dict[str, Outcome]:
    """What a library makes of one input, quantity by quantity."""
    try:
        results = library(arrays)
    except (Cannot, ValueError, TypeError, RuntimeError) as error:
        said = str(error) if isinstance(error, Cannot) else f"{type(error).__name__}: {str(error)[:100]}"
        return dict.fromkeys([*QUANTITIES, "running"], said)
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


def number(value: float) -> str:
    """2.3e-7, without the padding of the exponent."""
    if value == 0:
        return "exact"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def shown(value: Outcome) -> str:
    return value.split(":")[0] if isinstance(value, str) else number(value)
