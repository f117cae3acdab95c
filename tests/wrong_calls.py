"""Calls that a type checker must refuse; `pyright` reads this file with all others, and nothing runs it.

Each line expects its error. If a wrong call is accepted, its `ignore` is unnecessary, which is an error in this file.
Below them, right calls of every form, which must have none.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import bnderiv
import bnderiv.equinox
import bnderiv.haiku
import bnderiv.linen
import bnderiv.nnx
from bnderiv import models, steps

x, vector = jnp.ones((2, 4, 4, 3)), jnp.ones(3)
rows, labels = jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)


def wrong(state: eqx.nn.State, norm: bnderiv.haiku.BatchNorm) -> None:
    bnderiv.relu("x")  # pyright: ignore[reportArgumentType]
    bnderiv.softmax(rows, "rows")  # pyright: ignore[reportArgumentType]
    bnderiv.log_softmax(rows, axis=1.5)  # pyright: ignore[reportArgumentType]
    bnderiv.dense(x, None)  # pyright: ignore[reportArgumentType]
    bnderiv.conv(x, x, padding="FULL")  # pyright: ignore[reportArgumentType]
    bnderiv.conv2d(x, x, strides="2")  # pyright: ignore[reportArgumentType]
    bnderiv.conv2d(x, x, dilation=(1.0, 1.0))  # pyright: ignore[reportArgumentType]
    bnderiv.conv2d(x, x, padding=(1, 1))  # pyright: ignore[reportArgumentType]
    bnderiv.avg_pool(x, 2, padding="FULL")  # pyright: ignore[reportArgumentType]
    bnderiv.avg_pool(x, 2, divisor_override=4.0)  # pyright: ignore[reportArgumentType]
    bnderiv.avg_pool(x, 2, 2)  # pyright: ignore[reportCallIssue]
    bnderiv.max_pool(x, "two")  # pyright: ignore[reportArgumentType]
    bnderiv.max_pool(x, (2, 2), strides=1.5)  # pyright: ignore[reportArgumentType]
    bnderiv.max_pool(x, 2, dilation=None)  # pyright: ignore[reportArgumentType]
    bnderiv.layer_norm(x, x, x, axis="last")  # pyright: ignore[reportArgumentType]
    bnderiv.group_norm(x, vector, vector)  # pyright: ignore[reportCallIssue]
    bnderiv.group_norm(x, vector, vector, "3")  # pyright: ignore[reportArgumentType]
    bnderiv.instance_norm(x, vector, vector, where="all")  # pyright: ignore[reportArgumentType]
    bnderiv.rms_norm(x, vector, axis=(1.0,))  # pyright: ignore[reportArgumentType]
    bnderiv.batch_norm(x, vector, vector, axis_name={"data"})  # pyright: ignore[reportArgumentType]
    bnderiv.batch_renorm(x, vector, vector, vector)  # pyright: ignore[reportCallIssue]
    bnderiv.batch_renorm(x, vector, vector, vector, vector, r_max="3")  # pyright: ignore[reportArgumentType]
    bnderiv.batch_norm(x, vector, vector, channel_axis="C")  # pyright: ignore[reportArgumentType]
    bnderiv.batch_norm(x, vector)  # pyright: ignore[reportCallIssue]
    bnderiv.batch_norm(x, vector, vector, -1)  # pyright: ignore[reportCallIssue]
    bnderiv.squared_error(rows, "targets")  # pyright: ignore[reportArgumentType]
    bnderiv.softmax_cross_entropy(rows, labels, label_smoothing="0.1")  # pyright: ignore[reportArgumentType]
    bnderiv.softmax_cross_entropy(rows, rows, class_weights=[1.0, 2.0, 3.0])  # pyright: ignore[reportArgumentType]
    bnderiv.softmax_cross_entropy(rows, rows, 0.1)  # pyright: ignore[reportCallIssue]
    bnderiv.softmax_cross_entropy_with_integer_labels(rows, labels, where="all")  # pyright: ignore[reportArgumentType]
    bnderiv.update_running_stats(bnderiv.init_running_stats(3), rows)  # pyright: ignore[reportArgumentType]
    steps.conv2d(x, x, None, x, strides="2")  # pyright: ignore[reportArgumentType]
    steps.max_pool(x, "two", x)  # pyright: ignore[reportArgumentType]
    steps.avg_pool(x, 2, None)  # pyright: ignore[reportArgumentType]
    steps.layer_norm(x, None, None, "dy")  # pyright: ignore[reportArgumentType]
    steps.batch_renorm(x, vector, vector, vector, None, x)  # pyright: ignore[reportArgumentType]
    steps.batch_norm(x, None, vector, x)  # pyright: ignore[reportArgumentType]
    steps.tanh("x", rows)  # pyright: ignore[reportArgumentType]
    steps.softmax_cross_entropy(rows, rows, class_weights="w")  # pyright: ignore[reportArgumentType]
    models.lenet5.Config(pool="min")  # pyright: ignore[reportArgumentType]
    models.mlp.Config(activation="elu")  # pyright: ignore[reportArgumentType]
    models.mlp.Config(gradients="numerical")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.BatchNorm(activation="tanh")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.BatchNorm()(x, residual="x")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.patch("flax")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.max_pool(x, 2)  # pyright: ignore[reportArgumentType]
    bnderiv.linen.LayerNorm()("x")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.GroupNorm(groups=2)  # pyright: ignore[reportCallIssue]
    bnderiv.linen.Conv(3, "3")  # pyright: ignore[reportArgumentType]
    bnderiv.nnx.Conv(3, 4, rngs=nnx.Rngs(0))  # pyright: ignore[reportCallIssue]
    bnderiv.nnx.InstanceNorm(3, rngs=nnx.Rngs(0))(x, mask="all")  # pyright: ignore[reportArgumentType]
    bnderiv.nnx.BatchNorm("3", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
    bnderiv.nnx.BatchNorm(3, activation="elu", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm(3, "batch", mode="mean")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm(3, "batch", activation="elu")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm(3, "batch")("x", state)  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm.like(vector)  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.RMSNorm("3")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.LayerNorm(3)("x")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.MaxPool2d("two")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.AdaptiveAvgPool2d(2)("x")  # pyright: ignore[reportArgumentType]
    bnderiv.haiku.avg_pool(x, "two", 1, "SAME")  # pyright: ignore[reportArgumentType]
    bnderiv.haiku.max_pool(x, 2, 2, 0)  # pyright: ignore[reportArgumentType]
    norm("x", True)  # pyright: ignore[reportArgumentType]
    bnderiv.haiku.convert(wrong)  # pyright: ignore[reportArgumentType]


def right(state: eqx.nn.State, model: hk.TransformedWithState) -> None:
    bnderiv.softmax(bnderiv.relu(rows), axis=0)
    bnderiv.dense(x, rows, None)
    bnderiv.batch_norm(x, vector, vector, axis_name=("a", "b"), axis_index_groups=[[0, 1]], eps=jnp.asarray(1e-3))
    bnderiv.batch_norm(x, vector, vector, axis_name="data", assumed_mean=vector)
    bnderiv.batch_renorm(x, vector, vector, vector, vector, r_max=jnp.asarray(2.0), axis_name=["a", "b"])
    bnderiv.layer_norm(x, None, vector, axis=(-2, -1))
    bnderiv.instance_norm(bnderiv.group_norm(x, vector, None, 3), None, vector, where=x > 0, channel_axis=1)
    bnderiv.rms_norm(x, None, axis=[1, 2], eps=jnp.asarray(1e-6))
    bnderiv.conv(x, x, padding=((1, 0), (0, 1)), strides=(1, 2), dilation=[1, 1])
    bnderiv.conv2d(x, x, vector, padding="SAME", groups=3)
    bnderiv.avg_pool(x, [2, 2], strides=None, padding=1, divisor_override=3)
    bnderiv.max_pool(x, 2, strides=(1, 2), padding=[(0, 1), (1, 0)], dilation=2, ceil_mode=True)
    steps.max_pool(np.ones((1, 4, 4, 1)), (2, 2), np.ones((1, 2, 2, 1)), padding="VALID")
    steps.layer_norm(np.ones((2, 3)), None, vector, rows, axis=[-1])
    options = {"label_smoothing": 0.1}
    bnderiv.softmax_cross_entropy(rows, rows, class_weights=vector, where=np.ones(2, bool), **options)
    bnderiv.softmax_cross_entropy_with_integer_labels(rows, 0, label_smoothing=1, where=labels >= 0)
    steps.softmax_cross_entropy(np.ones((2, 3)), rows, np.ones(2), class_weights=vector)
    models.lenet5.Config(pool="avg", activation="tanh", dtype="float64")
    bnderiv.linen.BatchNorm(activation="relu", axis=-1, forward_mode=True)(np.ones((2, 3)), mask=labels > 0)
    bnderiv.linen.max_pool(x, (2, 2), padding="SAME")
    with bnderiv.linen.patch(), bnderiv.forward_mode.enabled():
        bnderiv.linen.convert(bnderiv.linen.BatchNorm()).epsilon.hex()
    bnderiv.nnx.BatchNorm(3, activation="relu", axis=-1, rngs=nnx.Rngs(0))(x, residual=np.ones(3))
    layer = bnderiv.equinox.BatchNorm(3, ["a", "b"], mode="batch", dtype="float32", activation=None)
    layer(np.ones(3), state, key=jax.random.key(0))
    bnderiv.linen.RMSNorm(epsilon=1e-3)(np.ones((2, 3)), mask=labels > 0)
    bnderiv.nnx.GroupNorm(3, num_groups=3, rngs=nnx.Rngs(0))(x)
    bnderiv.linen.Conv(4, (3, 3), strides=2, padding="CIRCULAR")(x)
    bnderiv.nnx.Conv(3, 4, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))(x)
    bnderiv.equinox.AvgPool2d(2, stride=(1, 1))(bnderiv.equinox.GroupNorm(3, 3)(np.ones((3, 4, 4))))
    bnderiv.haiku.max_pool(np.ones((2, 4, 4, 3)), (2, 2, 1), (1, 1, 1), "VALID", channel_axis=None)
    bnderiv.haiku.LayerNorm(-1, True, False)(x, offset=vector)
    bnderiv.equinox.BatchNorm.like(layer, activation="relu")
    bnderiv.haiku.BatchNorm(True, True, 0.9, axis=[0, 1], scale_init=hk.initializers.Constant(1))(x, True)
    bnderiv.haiku.convert(model).init(None, x)
