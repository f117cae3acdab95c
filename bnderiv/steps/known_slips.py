"""Which slip a wrong step looks like: one people make in this layer (its `slips.py`), or one they make anywhere."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from bnderiv.activation import slips as activation
from bnderiv.activation import steps as activation_steps
from bnderiv.convolution.slips import of_conv
from bnderiv.convolution.steps import Conv
from bnderiv.linear.slips import of_dense, of_flatten
from bnderiv.linear.steps import Dense, Flatten
from bnderiv.loss import slips as loss
from bnderiv.loss import steps as loss_steps
from bnderiv.models.slips import of_lenet5
from bnderiv.models.steps import LeNet5
from bnderiv.normalization import steps as normalization_steps
from bnderiv.normalization.slips import batch_norm, layer_norm
from bnderiv.normalization.slips.closed_form import of_batch_norm_closed_form
from bnderiv.normalization.slips.devices import of_batch_norm_across_devices
from bnderiv.normalization.slips.inference import of_batch_norm_inference
from bnderiv.normalization.slips.renorm import of_batch_renorm
from bnderiv.normalization.slips.rms_norm import of_rms_norm
from bnderiv.normalization.slips.running import of_update_running_stats
from bnderiv.pooling.slips import of_avg_pool, of_max_pool
from bnderiv.pooling.steps import AvgPool, MaxPool
from bnderiv.steps.rounding import distance, largest, wide
from bnderiv.steps.table import fields

Candidate = tuple[str, np.ndarray]

_FEW = 4  # a factor up to this is as likely a constant as a number of elements

# The slips that people make in each layer, from its steps in float64 NumPy: (step, sentence, the value it would have
# given), and perhaps a fourth entry, earlier steps in which the slip was made.
_SLIPS: dict[type, Callable[[Any], Iterable[Any]]] = {
    normalization_steps.BatchNorm: batch_norm.of_batch_norm,
    normalization_steps.BatchNormRelu: batch_norm.of_batch_norm_relu,
    normalization_steps.BatchNormGraph: batch_norm.of_batch_norm_graph,
    normalization_steps.BatchNormClosedForm: of_batch_norm_closed_form,
    normalization_steps.BatchNormInference: of_batch_norm_inference,
    normalization_steps.BatchNormAcrossDevices: of_batch_norm_across_devices,
    normalization_steps.UpdateRunningStats: of_update_running_stats,
    normalization_steps.BatchRenorm: of_batch_renorm,
    normalization_steps.LayerNorm: layer_norm.of_layer_norm,
    normalization_steps.GroupNorm: layer_norm.of_group_norm,
    normalization_steps.InstanceNorm: layer_norm.of_instance_norm,
    normalization_steps.RmsNorm: of_rms_norm,
    Dense: of_dense,
    Flatten: of_flatten,
    Conv: of_conv,
    AvgPool: of_avg_pool,
    MaxPool: of_max_pool,
    activation_steps.Relu: activation.of_relu,
    activation_steps.Tanh: activation.of_tanh,
    activation_steps.Sigmoid: activation.of_sigmoid,
    activation_steps.Softmax: activation.of_softmax,
    activation_steps.LogSoftmax: activation.of_log_softmax,
    loss_steps.SquaredError: loss.of_squared_error,
    loss_steps.SoftmaxCrossEntropy: loss.of_cross_entropy,
    loss_steps.SoftmaxCrossEntropyWithIntegerLabels: loss.of_cross_entropy,
    LeNet5: of_lenet5,
}


def explain(
    name: str,
    mine: np.ndarray,
    right: np.ndarray,
    tolerance: float,
    floor: float,
    steps: Any,
    seen_right: Collection[str] = (),
) -> str | None:
    """The known slip that gives these numbers, or None. A slip made in a step of `seen_right` is ruled out."""
    off = float(distance(mine, right).max(initial=0.0)) if mine.shape == right.shape else math.inf
    gross = off > max(tolerance * largest(right), floor)
    with np.errstate(all="ignore"):  # wrong lines divide by zero
        for sentence, candidate in _candidates(name, mine, right, steps, gross, seen_right):
            known = np.isfinite(candidate) & (np.isfinite(right) if right.shape == candidate.shape else True)
            if candidate.shape != mine.shape or not known.any():
                continue
            left = float(distance(mine, candidate)[known].max())
            here = float(distance(mine, right)[known].max()) if gross and mine.shape == right.shape else off
            # A slip must leave nothing of a gross difference, and of one near rounding much less.
            size = max(tolerance * largest(candidate[known]), floor) if gross else off / 16
            if left <= size and here > size:
                return sentence
    return None


def about_shapes(mine: np.ndarray, right: np.ndarray) -> str | None:
    if sorted(mine.shape) == sorted(right.shape):
        return "a transpose: the same axes in another order"
    if mine.ndim != right.ndim:
        return "a sum over the wrong axes: axes are left over or gone"
    return None


def _candidates(
    name: str, mine: np.ndarray, right: np.ndarray, steps: Any, gross: bool, seen_right: Collection[str]
) -> Iterator[Candidate]:
    """The values that slips would have given: those of the layer first, then those people make anywhere."""
    for step, sentence, value, *made_in in _SLIPS.get(type(steps), lambda _: ())(jax.tree.map(wide, steps)):
        if step == name and not any(earlier in seen_right for earlier in itertools.chain(*made_in)):
            yield sentence, np.asarray(value)
    if not gross:
        return
    yield "the sign: it is minus the right value", -right
    if right.ndim >= 2:
        for axes in itertools.permutations(range(right.ndim)):
            if axes != tuple(range(right.ndim)):
                yield f"a transpose: the right array with its axes in the order {axes}", right.transpose(axes)
        yield from _flips(right)
    if mine.shape == right.shape and np.isfinite(mine).all() and np.isfinite(right).all() and right.any():
        factor = float((mine * right).sum() / (right * right).sum())
        sentence = _about_factor(factor, steps, right.size, fields(type(steps))[name].symbol)
        if sentence is not None:
            yield sentence, factor * right


def _flips(right: np.ndarray) -> Iterator[Candidate]:
    if right.ndim == 4:
        yield "a flipped kernel: it is turned by 180° (rows and columns)", right[::-1, ::-1]
        yield "a flipped image: it is turned by 180° (rows and columns)", right[:, ::-1, ::-1]
        yield "a flipped image: it is turned by 180° (rows and columns)", right[:, :, ::-1, ::-1]
    for axis in range(right.ndim):
        yield f"flipped: axis {axis} runs backwards", np.flip(right, axis)


def _about_factor(factor: float, steps: Any, size: int, symbol: str) -> str | None:
    """A constant factor. It is a number of elements only if the step sums over them, the examples among them."""
    if factor == 0 or math.isclose(factor, 1, rel_tol=1e-3):
        return None
    plain = f"every element is {factor:.6g} times the right value: a factor is missing or wrong"
    shape = max((np.shape(value) for value in steps if hasattr(value, "shape")), key=len, default=())
    products = {}
    for length in range(1, len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), length):
            n = math.prod(shape[a] for a in axes)
            if n > 1 and (0 in axes or length == len(shape) - 1):
                products.setdefault(n, f"{'·'.join(str(shape[a]) for a in axes)}")
    if not any(sign in symbol for sign in "ΣδJμσ"):
        products = {}
    for n, written in products.items():
        if n <= _FEW and any(math.isclose(abs(factor), f, rel_tol=1e-6) for f in (n, 1 / n)):
            return f"{plain}, or a sum over m = {n} elements is a mean, or a mean a sum"
        if math.isclose(abs(factor), n, rel_tol=1e-6):
            named = written if written == str(n) else f"{written} = {n}"
            return f"too large by the factor {named}: a missing 1/m, a sum where a mean belongs"
        if math.isclose(abs(factor), 1 / n, rel_tol=1e-6):
            named = written if written == str(n) else f"{written} = {n}"
            return f"too small by the factor {named}: divided by m once too often, a mean where a sum belongs"
    if size < 3:
        return None  # any number is some multiple of another
    return plain
