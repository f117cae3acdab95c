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
    bnderiv.batch_norm(x, vector, vector, channel_axis="C")  # pyright: ignore[reportArgumentType]
    bnderiv.batch_norm(x, vector)  # pyright: ignore[reportCallIssue]
    bnderiv.batch_norm(x, vector, vector, -1)  # pyright: ignore[reportCallIssue]
    bnderiv.squared_error(rows, "targets")  # pyright: ignore[reportArgumentType]
    bnderiv.softmax_cross_entropy(rows, labels, label_smoothing="0.1")  # pyright: ignore[reportArgumentType]
    bnderiv.softmax_cross_entropy(rows, rows, class_weights=[1.0, 2.0, 3.0])  # pyright: ignore[reportArgumentType]
    bnderiv.softmax_cross_entropy(rows, rows, 0.1)  # pyright: ignore[reportCallIssue]
    bnderiv.softmax_cross_entropy_with_integer_labels(rows, labels, where="all")  # pyright: ignore[reportArgumentType]
    bnderiv.update_running_stats(bnderiv.init_running_stats(3), rows)  # pyright: ignore[reportArgumentType]
    steps.tanh("x", rows)  # pyright: ignore[reportArgumentType]
    steps.softmax_cross_entropy(rows, rows, class_weights="w")  # pyright: ignore[reportArgumentType]
    models.lenet5.Config(pool="min")  # pyright: ignore[reportArgumentType]
    models.mlp.Config(activation="elu")  # pyright: ignore[reportArgumentType]
    models.mlp.Config(gradients="numerical")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.BatchNorm(activation="tanh")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.BatchNorm()(x, residual="x")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.patch("flax")  # pyright: ignore[reportArgumentType]
    bnderiv.linen.max_pool(x, 2)  # pyright: ignore[reportArgumentType]
    bnderiv.nnx.BatchNorm("3", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
    bnderiv.nnx.BatchNorm(3, activation="elu", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm(3, "batch", mode="mean")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm(3, "batch", activation="elu")  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm(3, "batch")("x", state)  # pyright: ignore[reportArgumentType]
    bnderiv.equinox.BatchNorm.like(vector)  # pyright: ignore[reportArgumentType]
    norm("x", True)  # pyright: ignore[reportArgumentType]
    bnderiv.haiku.convert(wrong)  # pyright: ignore[reportArgumentType]


def right(state: eqx.nn.State, model: hk.TransformedWithState) -> None:
    bnderiv.softmax(bnderiv.relu(rows), axis=0)
    bnderiv.dense(x, rows, None)
    bnderiv.batch_norm(x, vector, vector, axis_name=("a", "b"), axis_index_groups=[[0, 1]], eps=jnp.asarray(1e-3))
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
    bnderiv.equinox.BatchNorm.like(layer, activation="relu")
    bnderiv.haiku.BatchNorm(True, True, 0.9, axis=[0, 1], scale_init=hk.initializers.Constant(1))(x, True)
    bnderiv.haiku.convert(model).init(None, x)
