"""One contract, run over every layer at every case."""

import pickle

import pytest

import bnderiv
from bnderiv import _layers
from tests import contract
from tests.cases import CASES

LAYERS = sorted({case.layer for case in CASES})
FIRST = tuple(next(case for case in CASES if case.layer == layer) for layer in LAYERS)  # one case of each layer
# Instance norm is group norm of one channel.
DISTINCT = [pytest.param(case, marks=pytest.mark.exhaustive if case.layer == "instance_norm" else ()) for case in FIRST]
# All layers share the attachment for both modes. These layers have between them all that a transform may meet in it: a
# branch and a loop, several axes of groups, a form for each target, integer arguments.
SHOWN = {"batch_norm_relu", "layer_norm", "max_pool", "conv2d", "softmax_cross_entropy_with_integer_labels"}


# At another case others say the same: `vjp` against the reference's autodiff, `jvp_of_gradient` in one mode more.
REPEATED = {contract.finite_differences, contract.gradient_of_gradient, contract.dtypes}
EXHAUSTIVE = [pytest.mark.slow, pytest.mark.exhaustive]


def _marks(promise, case):
    """Fast: value and gradient at every case. Of the rest, all but the first case of a few layers is slow."""
    if promise is contract.vjp:
        return [pytest.mark.fast]
    if case in FIRST:
        return [] if case.layer in SHOWN else [pytest.mark.slow]
    return EXHAUSTIVE if promise in REPEATED else [pytest.mark.slow]


@pytest.mark.few(6, 16)
@pytest.mark.parametrize(
    ("case", "promise"),
    [
        pytest.param(case, promise, marks=_marks(promise, case), id=f"{case}-{promise.__name__}")
        for case in CASES
        for promise in contract.PROMISES
        if case.differentiable or promise is not contract.finite_differences
    ],
)
def test_promise(promise, case):
    promise(bnderiv, case)


# Operation by operation: for most of the cases too slow for every day. `test_eager_calls.py` calls every layer so too.
@pytest.mark.few(0, 8)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in FIRST else EXHAUSTIVE) for case in CASES], ids=str
)
def test_eager(case):
    contract.eager(bnderiv, case)


@pytest.mark.few(0, 16)
@pytest.mark.slow
@pytest.mark.parametrize("promise", contract.TRANSFORMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("case", DISTINCT, ids=str)
def test_transform(promise, case):
    promise(bnderiv, case)


@pytest.mark.few(0, 8)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "promise"),
    [
        # The tangent map is the transpose of the backward, which `vjp` sees at every case in reverse mode.
        pytest.param(case, p, marks=() if p is contract.jvp or case in FIRST else EXHAUSTIVE, id=f"{case}-{p.__name__}")
        for case in CASES
        for p in (contract.vjp, contract.jvp)
    ],
)
def test_both_modes_at_every_case(promise, case):
    promise(bnderiv.forward_mode, case)


@pytest.mark.few(0, 7)
@pytest.mark.slow
@pytest.mark.parametrize(
    "promise",
    [
        pytest.param(p, marks=pytest.mark.exhaustive if p in contract.COMMON else (), id=p.__name__)
        for p in contract.EVERYTHING
    ],
)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case.layer in SHOWN else pytest.mark.exhaustive) for case in FIRST], ids=str
)
def test_both_modes_under_every_transform(promise, case):
    promise(bnderiv.forward_mode, case)


def test_every_layer_has_a_case():
    assert set(LAYERS) >= SHOWN
    assert set(_layers.__all__) == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_pickles_by_its_name(layer):
    for layers in (bnderiv, bnderiv.forward_mode):
        assert pickle.loads(pickle.dumps(getattr(layers, layer))) is getattr(layers, layer)
