"""A step of the LeNet experiment against one written anew; batches, decay, dtype, and the devices."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _command, _data
from experiments.lenet import network, training
from experiments.lenet.configuration import Configuration
from tests.compiling import fast_jit

SHAPE = (28, 28, 1)
PLAIN = Configuration(
    model="mlp", optimizer="sgd", schedule="constant", learning_rate=0.1, shift=0, batch_size=8, epochs=2
)


@pytest.fixture(autouse=True)
def promotion():
    """The script's own setting: optax promotes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_data(train=20, test=6, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (train + test, *SHAPE)).astype(np.uint8)
    labels = rng.integers(0, 10, train + test).astype(np.int32)
    levels = ((np.arange(256) - 127.5) / 74).astype(np.float32)
    return _data.Data(images[:train], labels[:train], images[train:], labels[train:], levels)


@pytest.fixture
def steps(monkeypatch):
    """Runs an epoch with a step that only notes its images; returns the rows of every step, in order."""

    def run(configuration, data, state=None, every=0):
        seen, saved = [], []

        def take(state, data, rows):
            seen.append(np.asarray(rows))
            return state._replace(step=state.step + 1)

        monkeypatch.setattr(training, "_compiled_step", lambda *_: take)
        monkeypatch.setattr(training, "_answer", lambda p, r, x, y, *_: (np.zeros(len(y)), np.eye(10)[np.asarray(y)]))
        begin = training.start(data.image_shape, 6, configuration) if state is None else state
        progress = training.Progress(training.new_history(begin), 0.0)
        training.train(begin, progress, data, configuration, lambda s, p: saved.append(int(s.step)), every=every)
        return seen[2 if state is None else -10 :], saved  # the first two are compilations

    return run


@pytest.mark.slow
def test_every_image_once_an_epoch_in_an_order_of_its_own(steps):
    """20 images in batches of 8: the last has 4. Another order in the next epoch; the same again with the same seed."""
    data = make_data()
    first, saved = steps(PLAIN, data)
    assert [len(rows) for rows in first] == [8, 8, 4] * 2
    epochs = [np.concatenate(first[:3]), np.concatenate(first[3:])]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert (epochs[0] != epochs[1]).any()
    assert saved == [3, 6]
    again, saved = steps(PLAIN, data, every=2)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(first))
    assert saved == [2, 3, 4, 6]
    other, _ = steps(dataclasses.replace(PLAIN, seed=1), data)
    assert (np.concatenate(other) != np.concatenate(first)).any()


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(jax, "jit", fast_jit)
    training._compiled_step.cache_clear()


@pytest.mark.slow
def test_a_training_is_its_steps_one_after_the_other(quickly):
    """Two epochs written out: orders, the whole run's schedule, and what is noted; and from any of its checkpoints."""
    chosen = dataclasses.replace(PLAIN, schedule="cosine", batch_norm=False, seed=7)
    data, saved = make_data(), {}
    begin = training.start(SHAPE, 6, chosen)
    params = begin.params

    def train(state, progress):
        state, progress = jax.tree.map(jnp.copy, state), training.Progress(*copy.deepcopy(tuple(progress)))

        def save(state, progress):
            saved[int(state.step)] = jax.device_get(state), copy.deepcopy(progress)

        return training.train(state, progress, data, chosen, save, every=2)

    def mean_loss(params, images, labels):
        z, _ = network.apply(params, begin.running, jnp.asarray(data.standardized(images)), chosen, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean(), (z.argmax(-1) == labels).mean()

    end, progress = train(begin, training.Progress(training.new_history(begin), 0.0))
    key = jax.random.split(jax.random.key(7))[1]
    for epoch in range(2):
        order, norms = np.asarray(_data.epoch_order(key, epoch, 20)), []
        for i in range(3):
            rows = order[8 * i : 8 * i + 8]
            gradient, _ = jax.grad(mean_loss, has_aux=True)(params, data.train_images[rows], data.train_labels[rows])
            rate = jnp.float32(0.05 * (1 + np.cos(np.pi * (3 * epoch + i) / 6)))
            params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, gradient)
            norms.append(float(jnp.linalg.norm(gradient["dense1"]["kernel"])))
        noted = {name: values[epoch] for name, values in progress.history.items() if name not in ("gradient_norms",)}
        for name, images, labels in (("training", *data[:2]), ("test", *data[2:4])):
            loss, accuracy = mean_loss(params, images, labels)
            assert noted[f"{name}_loss"] == pytest.approx(float(loss), rel=1e-4)
            assert noted[f"{name}_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
        assert progress.history["gradient_norms"]["dense1"][epoch] == pytest.approx(np.mean(norms), rel=1e-4)
    for a, b in zip(jax.tree.leaves(end.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    assert sorted(saved) == [2, 3, 4, 6]
    for step, (state, earlier) in sorted(saved.items())[:3]:
        again, later = train(state, earlier._replace(seconds=1000.0 * (step != 3)))
        jax.tree.map(np.testing.assert_array_equal, again, end)
        seconds = later.history.pop("seconds")
        assert [second > 999 for second in seconds] == [step == 2, step == 4]  # the epoch under way had them
        assert later.history == {name: values for name, values in progress.history.items() if name != "seconds"}


@pytest.mark.slow
def test_images_are_moved_anew_in_every_step(monkeypatch):
    """By a key for each step, apart from those of the orders; all of them, and no more than asked."""
    chosen, data, calls = dataclasses.replace(PLAIN, shift=2), make_data(), []

    def shifted(key, images, most):
        calls.append((tuple(np.asarray(jax.random.key_data(key))), np.asarray(images), most))
        return images

    def apply(params, running, images, *_, **__):
        return jnp.zeros((len(images), 10)) + params["output"]["bias"][None], running

    monkeypatch.setattr(_data, "shifted", shifted)
    monkeypatch.setattr(network, "apply", apply)
    rows = jnp.array([5, 0, 7])
    state, there = training.start(SHAPE, 6, chosen), jax.tree.map(jnp.asarray, data)
    for _ in range(2):
        state = training._step(state, there, rows, chosen, 6)
    keys, images, most = zip(*calls, strict=True)
    orders = {
        tuple(np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(state.key), epoch))))
        for epoch in range(2)
    }
    assert len({*keys, *orders}) == 4
    np.testing.assert_array_equal(images, [data.train_images[rows]] * 2)
    assert most == (2, 2)
    training._step(state, there, rows, PLAIN, 6)
    assert len(calls) == 2


LOSSES = {
    "cross_entropy softmax": lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y),
    "mse tanh": lambda z, y: 0.5 * ((jnp.tanh(z) - jax.nn.one_hot(y, 10, dtype=z.dtype)) ** 2).sum(-1),
    "mse sigmoid": lambda z, y: 0.5 * ((1 / (1 + jnp.exp(-z)) - jax.nn.one_hot(y, 10, dtype=z.dtype)) ** 2).sum(-1),
}


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("pairing", LOSSES)
@pytest.mark.parametrize("attachment", ["closed_form", "forward_mode", "autodiff"])
def test_a_step_is_gradient_descent_on_the_loss(pairing, attachment):
    """Without batch norm, written out with jnp alone, in float32 on the same rows; decay on the kernels."""
    loss, output = pairing.split()
    chosen = dataclasses.replace(PLAIN, loss=loss, output=output, attachment=attachment, batch_norm=False, decay=0.01)
    data = make_data()
    state = training.start(SHAPE, 6, chosen)
    rows = np.array([3, 1, 4, 15, 9], np.int32)
    x, y = data.standardized(data.train_images[rows]).reshape(5, -1), data.train_labels[rows]

    def mean_loss(params):
        a = x
        for layer in ("dense1", "dense2"):
            a = jnp.maximum(a @ params[layer]["kernel"] + params[layer]["bias"][None], 0)
        z = a @ params["output"]["kernel"] + params["output"]["bias"][None]
        squares = sum((params[layer]["kernel"] ** 2).sum() for layer in params)
        return LOSSES[pairing](z, y).mean() + jnp.float32(0.01 / 2) * squares

    gradient = jax.grad(mean_loss)(state.params)
    wanted = jax.tree.map(lambda p, g: p - jnp.float32(0.1) * g, state.params, gradient)
    step = fast_jit(training._step, static_argnums=(3, 4))
    new = step(state, data, rows, chosen, 6)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(new.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=str(path))
    assert (int(new.step), int(new.diverged)) == (1, 0)
    undecayed = gradient["dense2"]["kernel"] - jnp.float32(0.01) * state.params["dense2"]["kernel"]
    np.testing.assert_allclose(new.norms["dense2"], jnp.linalg.norm(undecayed), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_bfloat16_computes_in_it_and_keeps_float32():
    chosen = dataclasses.replace(PLAIN, dtype="bfloat16", model="lenet5", pool="avg", activation="tanh")  # no kinks
    state = training.start(SHAPE, 6, chosen)
    data = make_data()
    step = fast_jit(training._step, static_argnums=(3, 4))
    arguments = (data, np.arange(8, dtype=np.int32))
    new = step(state, *arguments, chosen, 6)
    assert {a.dtype.name for a in jax.tree.leaves((new.params, new.running))} <= {"float32", "int32"}
    in_full = dataclasses.replace(chosen, dtype="float32")
    assert "bf16" in step.lower(state, *arguments, chosen, 6).as_text()
    assert "bf16" not in step.lower(state, *arguments, in_full, 6).as_text()
    full = step(state, *arguments, in_full, 6)
    for layer in ("conv1", "dense3", "output"):
        change, wanted = (s.params[layer]["kernel"] - state.params[layer]["kernel"] for s in (new, full))
        assert 1e-4 < jnp.linalg.norm(change - wanted) / jnp.linalg.norm(wanted) < 0.1


KINDS = [f"{name}_{kind}" for name in ("lecun", "xavier", "kaiming") for kind in ("normal", "uniform")]


@pytest.mark.few(1)
@pytest.mark.parametrize("initializer", [*KINDS, "pytorch"])
def test_initializers(initializer):
    """Variance 1/fan_in, 2/(fan_in + fan_out), 2/fan_in, 1/(3 fan_in); a uniform density ends at √3 deviations."""
    name, _, distribution = initializer.partition("_")
    params, _ = network.init(jax.random.key(0), SHAPE, dataclasses.replace(PLAIN, initializer=initializer))
    kernel = np.asarray(params["dense1"]["kernel"])
    variance = {"lecun": 1 / 784, "xavier": 2 / (784 + 500), "kaiming": 2 / 784, "pytorch": 1 / 784 / 3}[name]
    assert kernel.var() == pytest.approx(variance, rel=0.02)
    farthest = np.abs(kernel).max() / np.sqrt(variance)
    assert farthest < 3**0.5 + 1e-4 if distribution != "normal" else farthest > 2
    assert not np.array_equal(params["dense2"]["kernel"][:10, :10], params["output"]["kernel"][:10, :10])


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "rmsprop", "adagrad", "lamb", "lion"]
)
def test_optimizers(name):
    """The update is that of optax's own of the name; with a zero gradient the decay moves kernels and nothing else."""
    chosen = dataclasses.replace(PLAIN, optimizer=name, learning_rate=0.1)
    rate = optax.constant_schedule(0.1)
    theirs = {
        "sgd": optax.sgd(rate),
        "momentum": optax.sgd(rate, momentum=0.9),
        "nesterov": optax.sgd(rate, momentum=0.9, nesterov=True),
        "adamw": optax.adamw(rate, weight_decay=0.0),
    }.get(name) or getattr(optax, name)(rate)
    if name == "lion":
        theirs = optax.lion(rate, weight_decay=0.0)
    params = {"dense": {"kernel": jnp.ones(3), "bias": jnp.ones(2)}, "bn": {"gamma": jnp.ones(2), "beta": jnp.ones(2)}}
    gradient = jax.tree.map(lambda a: 0.1 * jnp.arange(1.0, 1 + len(a)), params)
    ours = network.optimizer(chosen, 10)
    states = [o.init(params) for o in (ours, theirs)]
    for _ in range(3):
        (a, first), (b, second) = (o.update(gradient, s, params) for o, s in zip((ours, theirs), states, strict=True))
        states = [first, second]
        jax.tree.map(np.testing.assert_array_equal, a, b)
    decayed = network.optimizer(dataclasses.replace(chosen, decay=0.5), 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    change, _ = jax.tree.map(np.asarray, decayed.update(zero, decayed.init(params), params))
    assert (change["dense"]["kernel"] < 0).all()
    for rest in (change["dense"]["bias"], change["bn"]["gamma"], change["bn"]["beta"]):
        np.testing.assert_array_equal(rest, 0)


def test_schedules():
    def rates(name, warmup=0, epochs=10):
        chosen = dataclasses.replace(PLAIN, schedule=name, warmup=warmup, epochs=epochs, learning_rate=0.4)
        rate = network.schedule(chosen, 100)
        return np.asarray(jax.jit(jax.vmap(rate))(jnp.arange(101)))

    np.testing.assert_allclose(rates("constant"), 0.4, rtol=1e-6)
    np.testing.assert_allclose(rates("cosine"), 0.2 * (1 + np.cos(np.pi * np.arange(101) / 100)), atol=1e-6)
    np.testing.assert_allclose(rates("linear"), 0.4 * (1 - np.arange(101) / 100), atol=1e-6)
    np.testing.assert_allclose(rates("steps")[[0, 49, 51, 74, 76, 99]], [0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rtol=1e-5)
    cycle = rates("one_cycle")
    assert cycle.max() == pytest.approx(0.4, rel=1e-3)
    assert cycle[0] < 0.04
    assert cycle[-1] < 1e-3
    warm = rates("cosine", warmup=2)
    np.testing.assert_allclose(warm[:21], 0.02 * np.arange(21), atol=1e-6)
    np.testing.assert_allclose(warm[20:], 0.2 * (1 + np.cos(np.pi * np.arange(81) / 80)), atol=1e-6)


@pytest.mark.slow
def test_answers_are_those_of_the_images_whatever_the_chunk(monkeypatch):
    """7 images in chunks of 3: the running statistics normalize, so no image knows of another."""
    chosen = dataclasses.replace(PLAIN, activation="tanh")
    data, state = make_data(test=7), training.start(SHAPE, 6, PLAIN)
    monkeypatch.setattr(training, "CHUNK", 3)
    found = training.answers(state, data.test_images, data.test_labels, data.levels, chosen)
    apply = jax.jit(functools.partial(network.apply, configuration=chosen, train=False))
    z, _ = apply(state.params, state.running, data.standardized(data.test_images))
    np.testing.assert_allclose(found.outputs, jax.nn.softmax(z), rtol=1e-4, atol=1e-6)
    wanted = optax.softmax_cross_entropy_with_integer_labels(z, data.test_labels)
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-4)
    assert found.loss == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert found.accuracy == np.mean(np.asarray(z).argmax(1) == data.test_labels)


@pytest.mark.slow
def test_a_run_that_diverges_says_at_which_step_and_saves_nothing_of_it(monkeypatch):
    """The first step's loss is still a loss; the kernels it leaves are 1e29. In a comparison it goes on.

    Where that step is the last one too, the loss after it tells.
    """
    monkeypatch.setattr(jax, "jit", fast_jit)
    training._compiled_step.cache_clear()
    chosen, data, saved = dataclasses.replace(PLAIN, learning_rate=1e30, epochs=1), make_data(), []

    def train(data, **how):
        state = training.start(SHAPE, 3, chosen)
        progress = training.Progress(training.new_history(state), 0.0)
        return training.train(state, progress, data, chosen, lambda state, _: saved.append(int(state.step)), **how)

    for first, images in ((2, data), (1, make_data(train=8))):
        message = rf"diverged: from step {first} on, in epoch 1, .* --learning-rate than 1e\+30"
        with pytest.raises(_command.Refused, match=message):
            train(images, every=2)
        assert saved == []
    state, progress = train(data, to_the_end=True)
    assert (int(state.diverged), saved, len(progress.history["test_loss"])) == (2, [3], 1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_devices_train_as_one(quickly):
    """The same curve and the same parameters to rounding, the short batch (of 4, on 8 devices) included."""
    data = make_data(train=60)
    found = {}
    for devices in (1, 8):
        chosen = Configuration(batch_size=16, epochs=2, shift=1, devices=devices, activation="tanh", pool="avg")
        state = training.start(SHAPE, 8, chosen)
        progress = training.Progress(training.new_history(state), 0.0)
        found[devices] = training.train(state, progress, data, chosen, lambda *_: None)
    (one, first), (eight, second) = found[1], found[8]
    placed = [len(a.sharding.device_set) for a in jax.tree.leaves(eight)]
    assert set(placed) == {8}
    one, eight = jax.device_get((one, eight))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(a), 1e-3)
    np.testing.assert_allclose(first.history["training_loss"], second.history["training_loss"], rtol=1e-5)
    np.testing.assert_allclose(first.history["test_loss"], second.history["test_loss"], rtol=1e-5)
