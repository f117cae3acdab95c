"""`compare`: every mode in turn, each a generator of rows; one that raises becomes a failed row, never a crash.

The modes are functions of a `Point` (one function at one point, with its truth). Those that hold the rule against the
truth are in `against_reference.py` and `differences.py`, those that run it in another way in `under_transforms.py`, and
those that need neither in `pure_and_linear.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from bnderiv.check import against_reference, differences, pure_and_linear, under_transforms
from bnderiv.check.point import Point, message
from bnderiv.check.report import FAIL, Report, Row

_MODES: dict[str, Callable[[Point], Iterator[Row]]] = {
    "value": against_reference.value,
    "structure": against_reference.structure,
    "gradient": against_reference.gradient,
    "float64": against_reference.float64,
    "finite_differences": differences.finite_differences,
    "second_order": against_reference.second_order,
    "jvp": against_reference.jvp,
    "jit": under_transforms.jit,
    "vmap": under_transforms.vmap,
    "scan": under_transforms.scan,
    "checkpoint": under_transforms.checkpoint,
    "determinism": pure_and_linear.determinism,
    "linearity": pure_and_linear.linearity,
}
MODES = tuple(_MODES)


def compare(
    f: Callable,
    reference: Callable | None,
    *args: Any,
    cotangent: Any = None,
    key: jax.Array | None = None,
    modes: Sequence[str] = MODES,
    tolerances: Mapping[str, float] | None = None,
) -> Report:
    """Checks the gradient rule of `f` at `args`, in every way JAX may use it.

    The reference is the same function written plainly, with the same signature, and differentiated by JAX. It is
    evaluated in float64 wherever it can be (not where it would draw other random numbers), and what `f` computes in its
    own dtype is measured against that; without a reference, finite differences of `f` in float64 take its place. The
    sharpest look at a formula is at float64 arguments; at float32 and narrower, rounding is looked at too.

    Cotangents are random, never the ones of `jax.grad(lambda x: f(x).sum())`. A plain sum sees only the sum over the
    rows of the Jacobian: an error that cancels there does not show, nor does a lost or transposed cotangent, all of
    whose elements are 1. Batch norm's gradient of a plain sum is zero, so that a rule returning zeros would pass.

    Modes:
      value: `f` equals the reference; and equals the value that `jax.vjp(f, ...)` returns (the rule's own forward).
      structure: each gradient has its argument's shape and dtype (JAX checks the shape, not the dtype); an integer
        argument is given none.
      gradient: the vector-Jacobian product equals autodiff of the reference.
      float64: rounding of value and gradient, in units of the last place of the largest element. At most 32, or four
        times what the reference makes in the same dtype.
      finite_differences: element by element, or along random directions where there are many, in float64. Run only
        without a reference, or when `modes` is given and names it.
      second_order: reverse over reverse and forward over reverse equal the reference's (or its differences).
      jvp: forward mode equals the reference's and is the transpose of reverse mode; a custom_vjp has none ("n/a").
      jit: as without it.
      vmap: over each argument alone and over all, as in a loop; what is shared receives the sum.
      scan, checkpoint: the gradient through a loop of calls, and recomputed, is that of each call.
      determinism: the same twice, to the bit, with a call at another point in between.
      linearity: a zero cotangent gives exactly zero, at extreme arguments too; scaled and added ones scale and add.

    A kink (relu at 0, ties of a maximum) is not a failure: where the differences from both sides disagree, however
    small the step, and the rule's value lies between them, the verdict is "kink". Second derivatives mean nothing at
    such a point, nor need forward mode agree there: check them at another.

    Args:
      f: the function with the rule; any pytrees of arguments and outputs. Bind keywords with `functools.partial`.
      reference: the same function for autodiff, or None.
      *args: where to check. Floating and complex arrays are differentiated, integer and boolean ones carried along; a
        Python number or any other object is passed as it is, so that static arguments stay static.
      cotangent: of the output's structure; drawn from `key` by default.
      key: of every random draw; `jax.random.key(0)` by default.
      modes: the groups of checks to run, of `bnderiv.check.MODES`.
      tolerances: by mode, in place of the defaults for the dtype: relative to the largest element, in ulps for float64.

    Returns:
      A `Report`: print it, show it in a notebook, ask `.passed`, or call `.raise_if_failed()` in a test.

    Raises:
      TypeError: `f` or `reference` cannot be called.
      ValueError: an unknown mode, or a cotangent of another structure or shape than the output.
    """
    if not callable(f) or not (reference is None or callable(reference)):
        raise TypeError(f"f and reference must be callable (reference may be None), got {f!r} and {reference!r}")
    tolerances = dict(tolerances or {})
    chosen = (modes,) if isinstance(modes, str) else tuple(modes)
    for name, given in (("modes", chosen), ("tolerances", tolerances)):
        unknown = [mode for mode in given if mode not in MODES]
        if unknown:
            raise ValueError(f"{name} must be among {', '.join(MODES)}; got {', '.join(map(repr, unknown))}")
    differences_wanted = reference is None or (modes is not MODES and "finite_differences" in chosen)

    title = _name(f) + (f" against {_name(reference)}" if reference is not None else " against finite differences")
    try:
        point = Point(f, reference, args, key, tolerances)
    except Exception as error:
        return Report(title, (Row("value", "call", verdict=FAIL, note=message(error)),))
    if cotangent is not None:
        point.cotangent = point.given_cotangent(cotangent)
    rows: list[Row] = []
    for mode in MODES:
        if mode not in chosen or (mode == "finite_differences" and not differences_wanted):
            continue
        try:
            for row in _MODES[mode](point):
                rows.append(row)
        except Exception as error:
            rows.append(point.raised(mode, error))
    return Report(title, tuple(rows))


def _name(f: Any) -> str:
    while hasattr(f, "func"):  # functools.partial
        f = f.func
    return getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or type(f).__name__
