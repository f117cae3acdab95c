"""Powers of two, against NumPy's `frexp`."""

import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv._numbers import power_of_two_over


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_of_two_over(dtype):
    info = np.finfo(dtype)
    drawn = np.exp2(np.random.default_rng(0).uniform(info.minexp, info.maxexp - 1, 1000)).astype(dtype)
    exact = np.exp2(np.arange(info.minexp, info.maxexp - 1)).astype(dtype)
    a = np.concatenate([drawn, exact, np.nextafter(exact[1:], dtype(0)), [info.tiny]]).astype(dtype)
    _, exponent = np.frexp(a)
    actual = power_of_two_over(jnp.asarray(a))
    assert actual.dtype == dtype
    np.testing.assert_array_equal(np.asarray(actual), np.ldexp(dtype(1), 1 - exponent))


def test_power_of_two_over_what_is_no_normal_number():
    a = np.array([0, 1e-45, 1e-39, 3e38, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(
        np.asarray(power_of_two_over(jnp.asarray(a))), np.array([2.0**126] * 3 + [2.0**-126] * 3, np.float32)
    )
