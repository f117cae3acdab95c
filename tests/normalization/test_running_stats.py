"""Running statistics: the two conventions, channels that count nothing, errors."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import BatchStats, RunningStats
from tests.case import random_like
from tests.contract import near

BATCH = BatchStats(mean=jnp.array([2.0, 4.0]), var=jnp.array([3.0, 8.0]), count=jnp.array([4.0, 5.0]))


def test_before_the_first_batch():
    stats = bnderiv.init_running_stats(3)
    np.testing.assert_array_equal(stats.mean, [0, 0, 0])
    np.testing.assert_array_equal(stats.var, [1, 1, 1])
    assert (stats.mean.dtype, stats.var.dtype) == (jnp.float32, jnp.float32)
    assert (stats.count.shape, stats.count.dtype, int(stats.count)) == ((), jnp.int32, 0)
    assert bnderiv.init_running_stats(3, jnp.float64).var.dtype == jnp.float64


def test_momentum_weighs_the_old_value_and_the_variance_is_unbiased():
    running = RunningStats(jnp.array([10.0, 10.0]), jnp.array([10.0, 10.0]), jnp.int32(7))
    new = bnderiv.update_running_stats(running, BATCH, momentum=0.75)
    np.testing.assert_allclose(new.mean, [8, 8.5], rtol=1e-15)
    np.testing.assert_allclose(new.var, [0.75 * 10 + 0.25 * 3 * 4 / 3, 0.75 * 10 + 0.25 * 8 * 5 / 4], rtol=1e-15)
    assert new.count == 8
    biased = bnderiv.update_running_stats(running, BATCH, momentum=0.75, unbiased=False)
    np.testing.assert_allclose(biased.var, [0.75 * 10 + 0.25 * 3, 0.75 * 10 + 0.25 * 8], rtol=1e-15)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_has_no_weight_counts_nothing(compiled):
    """A variance may overflow: an average that is frozen, or replaced, does not hear of it."""
    update = jax.jit(bnderiv.update_running_stats) if compiled else bnderiv.update_running_stats
    old = RunningStats(mean=jnp.array([1.0, 2.0]), var=jnp.array([3.0, 4.0]), count=jnp.int32(0))
    infinite = BATCH._replace(var=jnp.array([np.inf, 8.0]))
    np.testing.assert_array_equal(update(old, infinite, momentum=1.0).var, old.var)
    np.testing.assert_array_equal(update(old._replace(var=infinite.var), BATCH, momentum=0.0).var, [4, 10])
    assert np.isinf(update(old, infinite, momentum=0.5).var[0])


def test_the_defaults_are_momentum_090_and_unbiased():
    running = bnderiv.init_running_stats(2, jnp.float64)
    chex.assert_trees_all_equal(
        bnderiv.update_running_stats(running, BATCH),
        bnderiv.update_running_stats(running, BATCH, momentum=0.9, unbiased=True),
    )


def test_channels_that_counted_nothing_keep_theirs():
    running = RunningStats(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.int32(5))
    half = BATCH._replace(mean=jnp.array([0.0, 4.0]), var=jnp.array([0.0, 8.0]), count=jnp.array([0.0, 5.0]))
    new = bnderiv.update_running_stats(running, half)
    assert (new.mean[0], new.var[0], new.count) == (1, 3, 6)
    assert new.mean[1] != 2
    chex.assert_trees_all_equal(
        bnderiv.update_running_stats(running, BatchStats(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))),
        running,
    )


def test_a_batch_of_one_has_variance_zero_not_nan():
    x = jnp.array([[3.0, 4.0]])
    _, stats = bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2))
    new = bnderiv.update_running_stats(bnderiv.init_running_stats(2, jnp.float64), stats, momentum=0.5)
    np.testing.assert_array_equal(new.var, [0.5, 0.5])


@pytest.mark.parametrize("unbiased", [True, False])
def test_value_and_gradient_equal_the_reference(unbiased):
    mean, var = random_like((jnp.zeros(2), jnp.zeros(2)), 0)
    running = RunningStats(mean, var, jnp.int32(3))

    def parts(layers):
        def update(mean, var, batch_mean, batch_var):
            batch = BATCH._replace(mean=batch_mean, var=batch_var)
            old = running._replace(mean=mean, var=var)
            return layers.update_running_stats(old, batch, momentum=0.8, unbiased=unbiased)[:2]

        out, pull_back = jax.vjp(update, running.mean, running.var, BATCH.mean, BATCH.var)
        return out, pull_back(random_like(out, 1))

    near(parts(bnderiv), parts(bnderiv.reference), 1e-14)


def test_it_does_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(running, batch):
        return bnderiv.update_running_stats(running, batch)

    running = bnderiv.init_running_stats(2, jnp.float64)
    for _ in range(3):
        running = step(running, BATCH)
    assert running.count == 3


def test_errors():
    running = bnderiv.init_running_stats(2)
    with pytest.raises(ValueError, match=r"running.var must have shape \(2,\)"):
        bnderiv.update_running_stats(running._replace(var=jnp.ones(1)), BATCH)
    nonsense: list[Any] = [None, "0.9"]
    for momentum in nonsense:
        with pytest.raises(TypeError, match=r"momentum must be a number in \[0, 1\], got "):
            bnderiv.update_running_stats(running, BATCH, momentum=momentum)
    for update in (bnderiv.update_running_stats, jax.jit(bnderiv.update_running_stats)):
        with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\]"):
            update(running, BATCH, momentum=jnp.full(2, 0.5))
    with pytest.raises(ValueError, match=r"momentum.*old.*1.5"):
        bnderiv.update_running_stats(running, BATCH, momentum=1.5)
    with pytest.raises(ValueError, match=r"batch.mean.*\(3,\)"):
        bnderiv.update_running_stats(bnderiv.init_running_stats(3), BATCH)
    update: Any = bnderiv.update_running_stats
    with pytest.raises(TypeError, match=r"running.*RunningStats.*tuple"):
        update(tuple(running), BATCH)
    with pytest.raises(TypeError, match=r"batch.*BatchStats.*RunningStats"):
        update(running, running)
    with pytest.raises(ValueError, match=r"channels.*0"):
        bnderiv.init_running_stats(0)
    with pytest.raises(TypeError, match=r"dtype.*int32"):
        bnderiv.init_running_stats(2, jnp.int32)
