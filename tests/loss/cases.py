"""Cases and slips of the loss room."""

import jax
import jax.numpy as jnp
import numpy as np

import bnderiv
from tests.case import Case
from tests.slip import Slip, gradients, scaled


def _two(*shape):
    return lambda rng: (rng.standard_normal(shape), rng.standard_normal(shape))


def _probabilities(*shape, total=1.0):
    def draw(rng):
        labels = rng.uniform(0.1, 1, shape)
        return rng.standard_normal(shape), total * labels / labels.sum(-1, keepdims=True)

    return draw


def _one_hot(classes):
    return lambda rng: (rng.standard_normal(classes), np.eye(classes)[rng.integers(classes)])


def _indices(*shape, dtype: type[np.integer] = np.int32, scale=1.0):
    return lambda rng: (
        scale * rng.standard_normal(shape),
        np.asarray(rng.integers(shape[-1], size=shape[:-1]), dtype),
    )


def _options(examples, classes):
    """Smoothing, a weight for each class, and classes that do not count: of one example none does."""
    where = np.arange(examples * classes).reshape(examples, classes) % 3 > 0
    where[-1] = False
    weights = np.linspace(0.5, 2, classes)
    return {"label_smoothing": 0.25, "class_weights": weights, "where": np.stack([where, ~where])}


CASES = (
    PROBABILITIES := Case("softmax_cross_entropy", "probabilities", _probabilities(4, 5)),
    Case("softmax_cross_entropy", "one-hot-one-example", _one_hot(5)),
    WEIGHTED := Case("softmax_cross_entropy", "sum-3-extra-axes", _probabilities(2, 3, 4, total=3.0)),
    INDICES := Case("softmax_cross_entropy_with_integer_labels", "rows", _indices(4, 5)),
    Case("softmax_cross_entropy_with_integer_labels", "one-example-far-apart", _indices(5, scale=4.0)),
    Case("softmax_cross_entropy_with_integer_labels", "bytes-extra-axes", _indices(2, 3, 4, dtype=np.uint8)),
    OPTIONS := Case("softmax_cross_entropy", "every-option", _probabilities(2, 4, 5, total=2.0), _options(4, 5)),
    INDICES_OPTIONS := Case(
        "softmax_cross_entropy_with_integer_labels", "every-option", _indices(2, 4, 5), _options(4, 5)
    ),
    SQUARED := Case("squared_error", "rows", _two(4, 5)),
    Case("squared_error", "one-example", _two(5)),
    Case("squared_error", "one-output-extra-axes", _two(2, 3, 1)),
)


def _labels_sum_to_one(right, arguments, delta):
    """softmax(z) − y whatever the labels sum to."""
    logits, labels = arguments
    return (jax.nn.softmax(logits) - labels) * delta[..., None], right[1]


def _without_one_hot(right, arguments, delta):
    """The case y ≠ j for every class."""
    return jax.nn.softmax(arguments[0]) * delta[..., None], right[1]


def _without_cotangent(right, arguments, delta):
    """Every example weighs 1, whatever comes from above."""
    return gradients(bnderiv.squared_error, arguments, jnp.ones_like(delta))


def _forgotten(*names):
    """The gradients without some of the options, at the right values."""

    def change(right, arguments, delta):
        layer = bnderiv.softmax_cross_entropy
        if not jnp.issubdtype(arguments[1].dtype, jnp.floating):
            layer = bnderiv.softmax_cross_entropy_with_integer_labels
        options = {name: value for name, value in OPTIONS.options.items() if name not in names}
        return gradients(layer, arguments, delta, **options)

    return change


SLIPS = (
    Slip("smoothing-forgotten", OPTIONS, _forgotten("label_smoothing")),
    Slip("class-weights-forgotten", OPTIONS, _forgotten("class_weights")),
    Slip("where-forgotten", INDICES_OPTIONS, _forgotten("where")),
    Slip("integer-smoothing-forgotten", INDICES_OPTIONS, _forgotten("label_smoothing")),
    Slip("labels-not-smoothed", OPTIONS, scaled(1, 1 / 0.75)),
    Slip("labels-sum-to-one", WEIGHTED, _labels_sum_to_one),
    Slip("sign", PROBABILITIES, scaled(-1, 1)),
    Slip("divided-by-classes", PROBABILITIES, scaled(1 / 5, 1)),
    Slip("labels-sign", PROBABILITIES, scaled(1, -1)),
    Slip("labels-without-gradient", PROBABILITIES, scaled(1, 0)),
    Slip("integer-sign", INDICES, scaled(-1, 1)),
    Slip("integer-divided-by-batch", INDICES, scaled(1 / 4, 1)),
    Slip("integer-without-one-hot", INDICES, _without_one_hot),
    Slip("factor-2", SQUARED, scaled(2, 2)),
    Slip("sign", SQUARED, scaled(-1, -1)),
    Slip("targets-without-gradient", SQUARED, scaled(1, 0)),
    Slip("targets-like-predictions", SQUARED, scaled(1, -1)),
    Slip("without-cotangent", SQUARED, _without_cotangent),
)
