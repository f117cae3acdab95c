"""Arrays of NumPy in dtypes that JAX does not have: the error names the argument, its dtype and what it must be."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import forward_mode

pytestmark = pytest.mark.fast

OURS: Any = bnderiv  # whose annotations say jax.Array
X, IMAGE, VECTOR = np.ones((4, 3), np.float32), np.ones((2, 4, 4, 3), np.float32), np.ones(3, np.float32)

# One array of each call is handed over in another dtype; the others as they are.
FLOATS = {
    "relu": ("x", lambda layers, a: layers.relu(a), X),
    "softmax": ("x", lambda layers, a: layers.softmax(a), X),
    "flatten": ("x", lambda layers, a: layers.flatten(a), X),
    "dense": ("kernel", lambda layers, a: layers.dense(X, a), np.ones((3, 2), np.float32)),
    "dense-bias": ("bias", lambda layers, a: layers.dense(X, np.ones((3, 3), np.float32), a), VECTOR),
    "conv2d": ("x", lambda layers, a: layers.conv2d(a, np.ones((2, 2, 3, 1), np.float32)), IMAGE),
    "avg_pool": ("x", lambda layers, a: layers.avg_pool(a, 2), IMAGE),
    "max_pool": ("x", lambda layers, a: layers.max_pool(a, 2), IMAGE),
    "batch_norm": ("gamma", lambda layers, a: layers.batch_norm(X, a, VECTOR), VECTOR),
    "batch_norm_relu": ("x", lambda layers, a: layers.batch_norm_relu(a, VECTOR, VECTOR), X),
    "batch_norm_inference": (
        "var",
        lambda layers, a: layers.batch_norm_inference(X, VECTOR, VECTOR, VECTOR, a),
        VECTOR,
    ),
    "batch_renorm": ("mean", lambda layers, a: layers.batch_renorm(X, VECTOR, VECTOR, a, VECTOR), VECTOR),
    "layer_norm": ("beta", lambda layers, a: layers.layer_norm(X, VECTOR, a), VECTOR),
    "group_norm": ("gamma", lambda layers, a: layers.group_norm(X, a, None, 3), VECTOR),
    "instance_norm": ("x", lambda layers, a: layers.instance_norm(a, VECTOR, None), IMAGE),
    "rms_norm": ("x", lambda layers, a: layers.rms_norm(a, None), X),
    "softmax_cross_entropy": ("labels", lambda layers, a: layers.softmax_cross_entropy(X, a), X),
    "squared_error": ("targets", lambda layers, a: layers.squared_error(X, a), X),
}
OF_FLOATS = {
    ">f4": r"must have the byte order of this machine, got >f4\[.*: convert it with {name}.astype",
    ">f8": r"must have the byte order of this machine, got >f8\[",
    "longdouble": rf"must have a dtype that JAX has, of at most 64 bits, got {np.dtype(np.longdouble).name}\[",
    "object": r"must have a dtype that JAX has, of at most 64 bits, got object\[",
    "U4": r"must have a dtype that JAX has, of at most 64 bits, got str128\[",
    "bool": r"must have a floating dtype \(real, not integer\), got bool\[",
    "complex128": r"must have a floating dtype \(real, not integer\), got complex128\[",
}


@pytest.mark.few(22, 18)
@pytest.mark.parametrize("layers", [bnderiv, forward_mode], ids=["bnderiv", "forward_mode"])
@pytest.mark.parametrize("dtype", OF_FLOATS)
@pytest.mark.parametrize("call", FLOATS)
def test_floats(call, dtype, layers):
    name, f, good = FLOATS[call]
    with pytest.raises(TypeError, match=f"^{name} {OF_FLOATS[dtype].replace('{name}', name)}"):
        f(layers, good.astype(dtype))
    jax.block_until_ready(f(layers, good))


@pytest.mark.parametrize("dtype", [">f4", "longdouble", "object"])
def test_a_scalar(dtype):
    value = np.asarray(1.0, dtype)
    with pytest.raises(TypeError, match=r"^x must have .*got .*\[\]"):
        OURS.relu(value if dtype != "longdouble" else np.longdouble(1))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (">i4", r"labels must have the byte order of this machine, got >i4\[4\]: convert it with labels.astype"),
        ("object", r"labels must have a dtype that JAX has, of at most 64 bits, got object\[4\]"),
        ("longdouble", r"labels must have a dtype that JAX has"),
        ("float32", r"labels must have an integer dtype, got float32\[4\]"),
        ("bool", r"labels must have an integer dtype, got bool\[4\]"),
    ],
)
def test_labels(dtype, message):
    labels = np.asarray([0, 1, 2, 0])
    with pytest.raises(TypeError, match=f"^{message}"):
        OURS.softmax_cross_entropy_with_integer_labels(X, labels.astype(dtype))
    with pytest.raises(TypeError, match=f"^{message}"):
        OURS.steps.softmax_cross_entropy_with_integer_labels(X, labels.astype(dtype))


@pytest.mark.parametrize("dtype", [">f4", "longdouble", "object", "float32", "int32"])
@pytest.mark.parametrize("layer", ["batch_norm", "batch_norm_relu"])
def test_masks(layer, dtype):
    where = np.ones((4, 1)).astype(dtype)
    shown = re.escape(np.dtype(dtype).str if dtype == ">f4" else np.dtype(dtype).name)
    with pytest.raises(TypeError, match=rf"^where must .*got {shown}\[4, 1\]"):
        getattr(bnderiv, layer)(X, VECTOR, VECTOR, where=where)


@pytest.mark.parametrize("layers", [bnderiv, forward_mode], ids=["bnderiv", "forward_mode"])
@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda layers, a, b: layers.dense(a, b[:3, :2]), "x, kernel"),
        (lambda layers, a, b: layers.dense(a, a[:3], b[0]), "x, kernel, bias"),
        (lambda layers, a, b: layers.conv(a[..., None], b[:3].reshape(3, 1, 3)), "x, kernel"),
        (lambda layers, a, b: layers.softmax_cross_entropy(a, b), "logits, labels"),
        (lambda layers, a, b: layers.squared_error(a, b), "predictions, targets"),
    ],
    ids=["dense", "dense-bias", "conv", "softmax_cross_entropy", "squared_error"],
)
def test_dtypes_that_jax_does_not_promote(call, names, layers):
    a, b = jnp.asarray(X, jnp.float8_e4m3fn), jnp.asarray(X)
    first, last = names.split(", ")[0], names.split(", ")[-1]
    got = rf"got {first} float8_e4m3fn\[.*, {last} float32\["
    with pytest.raises(TypeError, match=rf"^{names} must have dtypes that JAX promotes to one, {got}"):
        call(layers, a, b)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(TypeError, match=f"^{names} must have dtypes"):
        call(layers, a.astype(jnp.bfloat16), b)
    with jax.numpy_dtype_promotion("standard"):
        call(layers, a.astype(jnp.bfloat16), b)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", jnp.bfloat16, jnp.float8_e4m3fn])
def test_what_jax_has_is_taken(dtype):
    assert OURS.relu(np.ones((2, 3), dtype)).dtype == dtype
