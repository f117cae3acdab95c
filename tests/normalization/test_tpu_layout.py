"""The norms measured in the order of a TPU's memory, computed on the CPU: the same contract, usual path and other."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.normalization.groups import ChannelGroups, Groups
from bnderiv.normalization.tpu_layout import common_order, compact_order, tpu_layout
from tests import contract, forms
from tests.case import Case, random_like
from tests.devices import traced_for
from tests.normalization import truth
from tests.normalization.cases import CASES, random_input

NORMS = {"batch_norm", "batch_norm_relu", "batch_renorm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
GROUPS = Case("group_norm", "many-examples", random_input(9, 2, channels=4), {"groups": 2})


def shape_of(case):
    return case.bind(bnderiv)[1][0].shape


def stays(shape):
    return compact_order(shape) == tuple(range(len(shape)))


MOVED = [case for case in (*CASES, GROUPS) if case.layer in NORMS and not stays(shape_of(case))]
FIRST = list({case.layer: case for case in reversed(MOVED)}.values())


@pytest.fixture(autouse=True, scope="module")
def tpu():
    with traced_for(1), forms.of("tpu"):
        yield


@pytest.fixture
def moves(monkeypatch):
    """The orders that groups are moved to."""
    found = []

    def moved(self, to, of=Groups.moved):
        found.append(to)
        return of(self, to)

    monkeypatch.setattr(Groups, "moved", moved)
    jax.clear_caches()  # what was traced before would not be again
    return found


@pytest.mark.few(3, 5)
@pytest.mark.parametrize("case", MOVED, ids=str)
def test_value_and_gradient(case):
    contract.vjp(bnderiv, case)


@pytest.mark.few(0, 7)
@pytest.mark.slow
@pytest.mark.parametrize("promise", [contract.gradient_of_gradient, contract.vmap], ids=lambda p: p.__name__)
@pytest.mark.parametrize("case", [c for c in FIRST if c.differentiable], ids=str)
def test_transforms(promise, case):
    promise(bnderiv, case)


def test_each_norm_is_moved(moves):
    assert {case.layer for case in FIRST} == NORMS
    for case in FIRST:
        moves.clear()
        jax.jit(case.bind(bnderiv)[0]).trace(*case.bind(bnderiv)[1])
        order = compact_order(shape_of(case))
        places = tuple(order.index(i) for i in range(len(order)))
        row_is_innermost = case.layer in ("layer_norm", "rms_norm") and order[-1] == len(order) - 1
        assert set(moves) == (set() if row_is_innermost else {places}), case


FAR: dict[
    str, tuple[Callable[..., Any], Any, Any, Any]
] = {  # measured again: from a guess that is far off, and where the sum of squares overflows
    "batch_norm": (
        lambda *a: bnderiv.batch_norm(*a, assumed_mean=jnp.full(6, -3e38))[0],
        (32, 9, 9, 6),
        (0, 1, 2),
        None,
    ),
    "group_norm": (lambda *a: bnderiv.group_norm(*a, groups=2), (24, 5, 5, 6), (1, 2, 4), (24, 5, 5, 2, 3)),
    "instance_norm": (bnderiv.instance_norm, (24, 9, 9, 6), (1, 2), None),
    "rms_norm": (lambda x, g, _: bnderiv.rms_norm(x, g, eps=1e-5), (30, 7, 6), (2,), None),
}


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("name", FAR)
def test_what_is_measured_again_is_right(name, scale, moves):
    norm, shape, over, view = FAR[name]
    view = view or shape
    rng = np.random.default_rng(7)
    x, gamma, beta = rng.standard_normal(shape), 1 + rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])
    x = (x + (0 if name == "rms_norm" else 1e4)) * scale
    x, gamma, beta = (jnp.asarray(a, jnp.float32) for a in (x, gamma, beta))
    delta = random_like(x, 8)
    y, pull_back = jax.vjp(norm, x, gamma, beta)
    dx = pull_back(delta)[0]
    wide_x, wide_delta = (np.asarray(a, np.float64).reshape(view) for a in (x, delta))
    features = view[-2:] if len(view) > x.ndim else (-1,)
    wide_gamma, wide_beta = (np.asarray(a, np.float64).reshape(features) for a in (gamma, beta))
    centred = name != "rms_norm"
    expected = truth.over_other_axes(
        wide_x, wide_gamma, wide_beta * centred, wide_delta, over, (), np.float64(np.float32(1e-5)), centred
    )
    assert moves
    for actual, right in zip((y, dx), expected, strict=False):
        assert truth.relative_error(np.asarray(actual).reshape(view), right) < 2e-7


def test_moved_groups_share_the_same_elements():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    for groups in (Groups((0, 2, 3)), Groups((1,), (2,), (0, 3)), ChannelGroups((1, 2), (), (0,), 3, 2)):
        for to in ((3, 0, 2, 1), (1, 2, 0, 3)):
            order = np.argsort(to)
            expected = groups.total(jnp.asarray(x))
            actual = groups.moved(to).total(jnp.asarray(x.transpose(order)))
            np.testing.assert_allclose(jnp.transpose(actual, to), expected, rtol=1e-12)


@pytest.mark.parametrize("batch", [1024, 512])
def test_where_the_batch_may_be_sharded_the_axes_move_if_the_order_stays(batch, moves):
    """With 128 examples a device the batch is innermost, as with all 1024; with 64 it is not."""
    x = jax.ShapeDtypeStruct((batch, 3, 3, 64), jnp.float32)
    orders = {n: compact_order((batch // n, *x.shape[1:])) for n in (1, 2, 4, 8)}
    with traced_for(8):
        jax.jit(lambda x: bnderiv.instance_norm(x, None, None)).trace(x)
    assert len(set(orders.values())) == (1 if batch == 1024 else 2)
    assert bool(moves) == (batch == 1024)


def test_a_batch_that_devices_cannot_share_evenly_counts_as_whole():
    with traced_for(8):
        assert common_order((129, 5, 5, 64)) == compact_order((129, 5, 5, 64)) != compact_order((64, 5, 5, 64))


def test_a_symbolic_shape_has_no_order():
    n, *_ = jax.export.symbolic_shape("n, h")
    assert compact_order((n, 28, 28, 6)) == common_order((n, 28, 28, 6)) == (0, 1, 2, 3)
    assert compact_order((5,)) == (0,)


@pytest.mark.parametrize("seed", range(3))
def test_no_order_has_less_padding(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 300, size=rng.integers(2, 5)))

    def padded(second, innermost):
        others = [n for i, n in enumerate(shape) if i not in (second, innermost)]
        return math.prod(others) * -(-shape[second] // 8) * 8 * -(-shape[innermost] // 128) * 128

    *_, second, innermost = compact_order(shape)
    pairs = [(i, j) for i in range(len(shape)) for j in range(len(shape)) if i != j]
    assert sorted(compact_order(shape)) == list(range(len(shape)))
    assert padded(second, innermost) == min(padded(*pair) for pair in pairs)


def test_results_come_back_in_the_order_of_x():
    @tpu_layout
    def body(groups, x, n):
        return groups.total(x) / n, x

    x = jnp.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    mean, same = body(Groups((0, 1)), x, 6)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_allclose(mean, x.mean((0, 1), keepdims=True), rtol=1e-15)
