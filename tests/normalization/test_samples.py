"""A sample tells K and s of a large array: when it does, and that all that holds for batch norm holds with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
import bnderiv.forward_mode
from bnderiv.normalization import moments
from bnderiv.normalization.channels import Channels
from tests import contract
from tests.case import Case
from tests.devices import traced_for
from tests.normalization import truth
from tests.normalization.cases import random_input

CASES = (
    Case("batch_norm", "rows", random_input(24, channels=16)),
    Case("batch_norm", "images", random_input(2, 9, 2, channels=16)),
    Case("batch_norm_relu", "channels-first", random_input(2, 9, 2, channels=16, axis=1), {"channel_axis": 1}),
    Case("batch_norm", "channels-leading", random_input(9, 5, channels=16, axis=0), {"channel_axis": 0}),
)


@pytest.fixture
def sampled(monkeypatch):
    """Arrays of any size are."""
    with traced_for(1):
        monkeypatch.setattr(moments, "_sampled", lambda *_: True)
        yield


def conditionals(shape, **options):
    channels = jnp.ones(shape[options.get("channel_axis", -1)])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x: bnderiv.batch_norm(x, channels, channels, **options)[0])(x)
    return str(jaxpr).count("cond[")


def test_large_arrays_on_one_device():
    with traced_for(1):
        assert conditionals((2**14, 64)) == 1
        assert conditionals((64, 64, 16, 16), channel_axis=1) == 1
        assert conditionals((2**14, 63)) == 0
        assert conditionals((2**8, 2**12)) == 0  # a sample of 32
        assert conditionals((2**8, 32, 32, 8)) == 0
        assert conditionals((2**18, 15)) == 0
        assert conditionals((2**14, 64), where=jnp.ones((2**14, 1), bool)) == 0
    with traced_for(8):
        assert conditionals((2**14, 64)) == 0


@pytest.mark.parametrize(
    "promise",
    [
        contract.vjp,
        contract.finite_differences,
        contract.gradient_of_gradient,
        contract.jvp_of_gradient,
        contract.vmap,
        contract.dtypes,
        contract.scan,
        contract.exported,
    ],
    ids=lambda p: p.__name__,
)
def test_promise(promise, sampled):
    for case in CASES[:2]:
        promise(bnderiv, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_modes(case, sampled):
    contract.vjp(bnderiv.forward_mode, case)
    contract.jvp(bnderiv.forward_mode, case)


def told_by(x):
    """Whose mean K is, the sample's or everybody's, channel by channel."""
    x = jnp.asarray(x, jnp.float32)
    n, eps = jnp.full(x.shape[-1], x.shape[0], jnp.float32), jnp.float32(1e-5)
    shift, *_ = jax.jit(lambda x: moments._measured(Channels.of(1, x.shape, masked=False), x, None, n, eps))(x)
    shift, of_sample, of_all = np.asarray(shift, np.float64), *(np.asarray(a, np.float64).mean(0) for a in (x[::8], x))
    return {"sample" if abs(k - a) < abs(k - b) else "all" for k, a, b in zip(shift, of_sample, of_all, strict=True)}


NORMAL = np.random.default_rng(0).standard_normal((1024, 17))
ROW = np.arange(len(NORMAL))[:, None]
INPUTS = {
    "mean 1e4": (NORMAL + 1e4, "sample"),
    "scale 1e30": (NORMAL * 1e30, "sample"),
    "scale 1e-30": (NORMAL * 1e-30, "sample"),
    "an outlier in the sample": (np.where(ROW == 8, 1e5, NORMAL), "sample"),
    "the sample elsewhere": (NORMAL + 1e4 * (ROW % 8 == 0), "all"),
    "an outlier out of reach": (np.where(ROW == 9, 1e30, NORMAL), "all"),
    "an outlier whose square alone is": (np.where(ROW == 9, 1e20, NORMAL), "all"),
    "a sample of zeros": (1e25 * NORMAL * (ROW % 8 != 0), "all"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_accuracy(name, sampled):
    values, by = INPUTS[name]
    assert told_by(values) == {by}
    rng = np.random.default_rng(1)
    gamma, beta, delta = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (17, 17, values.shape))
    x = jnp.asarray(values, jnp.float32)
    y, pull_back, _ = jax.vjp(bnderiv.batch_norm, x, gamma, beta, has_aux=True)
    expected = truth.batch_norm(x, gamma, beta, delta, np.float64(np.float32(1e-5)))
    for ours, theirs in zip((y, *pull_back(delta)), expected, strict=True):
        assert truth.relative_error(ours, theirs) < 1e-6


def test_nan_stays_in_its_channel(sampled):
    x = jnp.asarray(NORMAL, jnp.float32)
    gamma, beta = jnp.ones(17, jnp.float32), jnp.zeros(17, jnp.float32)
    clean, _ = bnderiv.batch_norm(x, gamma, beta)
    for example in (8, 9):  # in the sample, and not
        y, _ = bnderiv.batch_norm(x.at[example, 3].set(jnp.nan), gamma, beta)
        assert np.isnan(y[:, 3]).all()
        np.testing.assert_allclose(np.delete(y, 3, 1), np.delete(clean, 3, 1), rtol=1e-5, atol=1e-6)


def test_constant_channels_are_exact(sampled):
    x = jnp.full((1024, 17), 1234.567, jnp.float32)
    y, stats = bnderiv.batch_norm(x, jnp.ones(17, jnp.float32), jnp.zeros(17, jnp.float32))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(stats.var, 0)
