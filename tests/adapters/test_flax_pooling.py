"""`avg_pool` and `max_pool` of `bnderiv.linen` against `flax.linen`'s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

nn = pytest.importorskip("flax.linen", reason="needs the extra flax")

import flax.nnx

import bnderiv.linen
import bnderiv.nnx
from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

CASES = [
    ((2, 8, 6, 3), (2, 2), {"strides": (2, 2)}),
    ((2, 9, 7, 3), (3, 2), {}),  # strides of 1, unlike ours
    ((2, 9, 7, 3), (3, 3), {"strides": (2, 1), "padding": "SAME"}),
    ((9, 7, 3), (3, 3), {"padding": ((2, 1), (0, 2))}),  # no batch axis
    ((2, 3, 8, 6, 3), (2, 3), {"strides": (1, 3)}),  # two of them
    ((2, 11, 3), (4,), {"strides": (3,), "padding": "SAME"}),
    ((11, 3), (3,), {}),
    ((2, 5, 6, 7, 3), (2, 3, 2), {"strides": (2, 1, 3), "padding": "SAME"}),
    ((2, 5, 4, 4, 5, 2), (2, 2, 3, 2), {"padding": ((1, 0), (0, 1), (2, 2), (0, 0))}),
    ((2, 6, 6, 3), (3, 3), {"strides": (2, 2), "padding": "SAME_LOWER"}),
    ((2, 3), (), {}),
]


@pytest.mark.few(0, 4)
@pytest.mark.slow
@pytest.mark.parametrize(("shape", "window", "options"), CASES)
@pytest.mark.parametrize("pool", ["avg_pool", "max_pool", "avg_pool of what is there"])
def test_values_and_gradients(pool, shape, window, options):
    name, *there = pool.split(" ", 1)
    if there:
        options = {**options, "count_include_pad": False}
    x = normal(0, shape, jnp.float64)

    def value_and_gradient(module):
        function = getattr(module, name)

        def run(x):
            y, pull_back = jax.vjp(lambda x: function(x, window, **options), x)
            return y, pull_back(normal(1, y.shape, jnp.float64))

        return fast_jit(run)(x)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # Flax relies on both
        alike(value_and_gradient(bnderiv.linen), value_and_gradient(nn))


@pytest.mark.parametrize("pool", ["avg_pool", "max_pool"])
def test_padding_is_anything_that_can_be_iterated(pool):
    """Flax takes arrays of NumPy, too; in ours windows and strides may be such arrays as well."""
    x = normal(0, (2, 7, 6, 3), jnp.float64)
    ours, theirs = getattr(bnderiv.linen, pool), getattr(nn, pool)
    for padding in (np.array([[1, 0], [0, 1]]), list(np.array([[1, 0], [0, 1]])), zip((1, 0), (0, 1), strict=True)):
        y = ours(x, np.array([2, 3]), np.array([2, 1]), padding)
        with jax.numpy_dtype_promotion("standard"):  # Flax relies on it
            alike(y, theirs(x, (2, 3), (2, 1), ((1, 0), (0, 1))))


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_without_strides_windows_are_one_step_apart(padding):
    x = normal(0, (2, 4, 3))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        alike(*(module.avg_pool(x, (2,), padding=padding) for module in (bnderiv.linen, nn)))


def test_equal_maxima_of_three_axes_give_the_gradient_to_the_first():
    x = jnp.zeros((1, 2, 2, 2, 1), jnp.float32)
    dx = jax.grad(lambda x: bnderiv.linen.max_pool(x, (2, 2, 2)).sum())(x)
    np.testing.assert_array_equal(dx.ravel(), [1, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("window", [(28, 28), (8, 8, 12)])
def test_half_precision_sums_in_float32(window):
    y = bnderiv.linen.avg_pool(jnp.ones((1, *window, 1), jnp.bfloat16), window)
    assert y.dtype == jnp.bfloat16
    assert y.item() == 1  # Flax: 0.326 in the first case


def test_nnx_has_the_same():
    assert bnderiv.nnx.avg_pool is bnderiv.linen.avg_pool
    assert bnderiv.nnx.max_pool is bnderiv.linen.max_pool


def test_flaxs_others_beside_them():
    assert bnderiv.linen.min_pool is bnderiv.nnx.min_pool is flax.nnx.min_pool
    assert bnderiv.linen.pool is bnderiv.nnx.pool is flax.nnx.pool


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((2,),), ValueError, "window_shape must leave an axis of inputs for the channels"),
        (((2, 2), (1,)), ValueError, r"strides must have 2 entries, as window_shape, got \(1,\)"),
        ((2,), TypeError, "window_shape must be a sequence of integers"),
        (((2, 0),), ValueError, r"window_shape\[1\] must be at least 1"),
        (((2, 2), None, "FULL"), ValueError, 'padding must be "SAME"'),
        (((2, 2), None, ((1, 1),)), ValueError, r"padding must be a \(low, high\) pair for each of the 2 spatial axes"),
        (((2, 2), None, 1), TypeError, r"padding must be a string or a sequence of \(low, high\) pairs, got 1"),
        (((9, 9),), ValueError, "window must fit"),
        (((2, 2), None, ((2, 0), (0, 0))), ValueError, "padding on a side must be smaller than the window"),
    ],
)
def test_errors(arguments, error, message):
    rank = 1 if arguments == ((2,),) else 4
    with pytest.raises(error, match=message):
        bnderiv.linen.max_pool(jnp.ones((4,) * rank, jnp.float32), *arguments)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="inputs must have a floating dtype"):
        bnderiv.linen.avg_pool(jnp.ones((1, 4, 4, 1), jnp.int32), (2, 2))


def test_a_batch_axis_that_is_spread():
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))
    x = normal(0, (2, 8, 4, 4, 2))
    for pool in ("avg_pool", "max_pool"):
        spread = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
        y = getattr(bnderiv.linen, pool)(spread, (2, 2), (2, 2))
        alike(y, getattr(bnderiv.linen, pool)(x, (2, 2), (2, 2)))
        assert jax.typeof(y).sharding.spec == P(None, "data", None, None, None)
