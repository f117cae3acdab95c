"""Layers without statistics, with the batch spread over devices: value and gradient of the whole, nothing gathered.

Batch norm has a file of its own, normalization/test_across_devices.py; what is particular to arrays whose type says how
they are spread is in test_explicit_sharding.py.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
import bnderiv.reference
from tests.case import random_like
from tests.cases import CASES
from tests.compiling import fast_jit
from tests.contract import TIGHT, near
from tests.programs import collectives

pytestmark = pytest.mark.slow

DEVICES = 4

# Cases of every layer, and how many of the arguments have a batch axis (they come first; the rest are parameters).
SPREAD = {
    "dense-rows": 1,
    "conv-one-axis": 1,
    "conv2d-hcwn": 1,
    "conv2d-groups-strided-dilated-nchw": 1,
    "avg_pool-batch-last": 1,
    "max_pool-overlap-padded": 1,
    "batch_norm_inference-images": 1,
    "layer_norm-tokens": 1,
    "group_norm-images": 1,
    "instance_norm-images": 1,
    "rms_norm-tokens": 1,
    "relu-images": 1,
    "tanh-images": 1,
    "sigmoid-images": 1,
    "softmax-channels-second": 1,
    "log_softmax-channels-second": 1,
    "flatten-images": 1,
    "softmax_cross_entropy-probabilities": 2,
    "softmax_cross_entropy_with_integer_labels-rows": 2,
    "squared_error-rows": 2,
}


def test_every_layer_is_here():
    layers = {case.layer for case in CASES if str(case) in SPREAD}
    assert layers == {case.layer for case in CASES} - {"batch_norm", "batch_norm_relu", "batch_renorm"}
    assert {str(case) for case in CASES} >= set(SPREAD)


@lru_cache
def _problem(case):
    """The arguments: a drawing of the case for each device, one after the other, and the parameters of the first."""
    count, axis = SPREAD[str(case)], case.options.get("batch_axis", 0)
    drawn = [case.arrays(np.random.default_rng(seed)) for seed in range(DEVICES)]
    return tuple(
        None if a[0] is None else jnp.asarray(np.concatenate(a, axis) if i < count else a[0])
        for i, a in enumerate(zip(*drawn, strict=True))
    )


def _value_and_gradient(layer, cotangent, arguments):
    """With respect to the arguments of floating dtype."""
    floats = [i for i, a in enumerate(arguments) if a is not None and jnp.issubdtype(a.dtype, jnp.floating)]

    def f(*values):
        given = dict(zip(floats, values, strict=True))
        return layer(*(given.get(i, a) for i, a in enumerate(arguments)))

    out, pull_back = jax.vjp(f, *(arguments[i] for i in floats))
    return out, pull_back(cotangent)


@lru_cache
def _truth(case):
    arguments = _problem(case)
    layer = partial(getattr(bnderiv.reference, case.layer), **case.options)
    cotangent = random_like(jax.eval_shape(layer, *arguments), 1)
    return cotangent, fast_jit(partial(_value_and_gradient, layer))(cotangent, arguments)


def _specs(case):
    """Where the arguments are, and the output."""
    by_batch = P(*(None,) * (case.options.get("batch_axis", 0) % 4), "devices")
    return tuple(by_batch if i < SPREAD[str(case)] else P() for i in range(len(_problem(case)))), by_batch


BOTH_MODES_TOO = pytest.mark.exhaustive  # the fourth of two choices by two


@pytest.mark.few(0, 10)
@pytest.mark.parametrize(
    ("axes", "layers"),
    [
        pytest.param(AxisType.Auto, bnderiv, id="bnderiv-auto"),
        pytest.param(AxisType.Explicit, bnderiv, id="bnderiv-explicit"),
        pytest.param(AxisType.Explicit, bnderiv.forward_mode, id="forward_mode-explicit"),
        pytest.param(AxisType.Auto, bnderiv.forward_mode, id="forward_mode-auto", marks=BOTH_MODES_TOO),
    ],
)
@pytest.mark.parametrize("case", [case for case in CASES if str(case) in SPREAD], ids=str)
def test_under_jit(case, layers, axes):
    layer = partial(getattr(layers, case.layer), **case.options)
    mesh = jax.make_mesh((DEVICES,), ("devices",), (axes,), devices=jax.devices()[:DEVICES])
    arguments, (cotangent, expected), (specs, by_batch) = _problem(case), _truth(case), _specs(case)
    arguments = tuple(
        jax.device_put(a, None if a is None else NamedSharding(mesh, s)) for a, s in zip(arguments, specs, strict=True)
    )
    cotangent = jax.device_put(cotangent, NamedSharding(mesh, by_batch))
    program = fast_jit(partial(_value_and_gradient, layer)).lower(cotangent, arguments).compile()
    out, gradient = program(cotangent, arguments)
    near((out, gradient), expected, TIGHT)
    if axes == AxisType.Explicit:
        floats = [a for a in arguments if a is not None and jnp.issubdtype(a.dtype, jnp.floating)]
        assert jax.typeof(out) == jax.typeof(cotangent)
        assert [jax.typeof(a) for a in gradient] == [jax.typeof(a) for a in floats]
    if "groups" not in case.options:  # XLA gathers the images of a grouped convolution, of anybody's
        # The gradients of parameters are summed over the devices; nothing else is sent.
        parameters = len(arguments) > SPREAD[str(case)]
        assert set(collectives(program)) == ({"all-reduce"} if parameters else set())


@pytest.mark.few(0, 10)
@pytest.mark.parametrize(
    ("check_vma", "layers"),
    [
        pytest.param(True, bnderiv, id="checked-bnderiv"),
        pytest.param(False, bnderiv, id="unchecked-bnderiv"),
        pytest.param(True, bnderiv.forward_mode, id="checked-forward_mode"),
        pytest.param(False, bnderiv.forward_mode, id="unchecked-forward_mode", marks=BOTH_MODES_TOO),
    ],
)
@pytest.mark.parametrize("case", [case for case in CASES if str(case) in SPREAD], ids=str)
def test_under_shard_map(case, check_vma, layers):
    arguments, (cotangent, expected), (specs, by_batch) = _problem(case), _truth(case), _specs(case)
    layer = jax.shard_map(
        partial(getattr(layers, case.layer), **case.options),
        mesh=Mesh(np.array(jax.devices()[:DEVICES]), ("devices",)),
        in_specs=specs,
        out_specs=by_batch,
        check_vma=check_vma,
    )
    near(fast_jit(partial(_value_and_gradient, layer))(cotangent, arguments), expected, TIGHT)
