"""Every choice that makes a run what it is: two runs with the same configuration, data and machine are the same run."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from bnderiv.models import lenet5, mlp

PAIRINGS = {
    ("cross_entropy", "softmax"): "(S9)–(S10)",
    ("mse", "tanh"): "(S1)–(S3)",
    ("mse", "sigmoid"): "(S1)–(S2), (A6)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """A run's options. Frozen and hashable: a static argument of `jax.jit`."""

    data: str | None = None
    """Folder of IDX files (MNIST and the like, plain or .gz); folder/set where it holds several. None: the digits."""
    classes: Annotated[int, ">= 1"] = 10
    """Labels lie in [0, classes): 10, or 27 for EMNIST's letters."""
    validation: bool = False
    """Leave the test images unseen and test on a fifth of the training images: for choosing a recipe."""

    model: Literal["lenet5", "mlp"] = "lenet5"
    """LeNet-5, or the perceptron of pixels-500-150-classes."""
    pool: Literal["max", "avg"] = "max"
    """LeNet-5's pooling."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """Of every hidden layer."""
    batch_norm: bool = True
    """Normalize before every activation."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """Cross entropy of a softmax, or half the squared error of a tanh or sigmoid, with one-hot targets."""
    output: Literal["softmax", "tanh", "sigmoid"] = "softmax"
    """What follows the last layer; together with the loss a pair that has a derivation."""
    initializer: Literal[
        "model",
        "lecun_normal",
        "lecun_uniform",
        "xavier_normal",
        "xavier_uniform",
        "kaiming_normal",
        "kaiming_uniform",
        "pytorch",
    ] = "model"
    """Of every kernel. model: kaiming_normal before relu, xavier_uniform before others, lecun_normal last;
    pytorch: uniform up to 1/√(numbers coming in), as PyTorch does by default."""

    optimizer: Literal[
        "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "rmsprop", "adagrad", "lamb", "lion"
    ] = "nesterov"
    """optax's optimizer of that name; sgd is plain gradient descent."""
    learning_rate: Annotated[float, "> 0"] = 0.03
    """The highest of the schedule."""
    schedule: Literal["constant", "cosine", "linear", "steps", "one_cycle"] = "cosine"
    """Of the learning rate. cosine and linear fall to 0, steps to a tenth at half and at three quarters of the run."""
    warmup: Annotated[int, ">= 0"] = 0
    """Epochs in which the rate rises from 0, before the schedule."""
    momentum: Annotated[float, "in [0, 1)"] = 0.9
    """Of the optimizers momentum and nesterov."""
    decay: Annotated[float, ">= 0"] = 0.0
    """Of the kernels, not of γ, β and biases: ½ decay ‖w‖² joins the loss (adamw, lamb, lion: decoupled)."""

    batch_size: Annotated[int, ">= 1"] = 64
    """Images of a step. The last batch of an epoch has what is left."""
    epochs: Annotated[int, ">= 1"] = 30
    """Passes over the training images, each in an order of its own."""
    shift: Annotated[int, ">= 0"] = 3
    """Move each training image by up to so many pixels, anew each time."""
    seed: Annotated[int, "in [0, 2**32)"] = 0
    """Draws parameters, order and shifts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation. Parameters, statistics and the loss are float32 in either."""
    attachment: Literal["closed_form", "forward_mode", "autodiff"] = "closed_form"
    """Which gradients: derived by hand, their twin in both modes, or JAX's own of a plain forward."""
    devices: Annotated[int, ">= 1"] = 1
    """Spread each batch over so many devices; statistics are those of the whole batch."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        if (self.loss, self.output) not in PAIRINGS:
            derived = ", ".join(f"{loss} with {output}" for loss, output in PAIRINGS)
            raise ValueError(
                f"loss {self.loss!r} with output {self.output!r} has no derivation here; there are: {derived}"
            )
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of devices, {self.devices}")
        if self.warmup and self.schedule == "one_cycle":
            raise ValueError("schedule 'one_cycle' rises by itself: warmup must be 0")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must end before the run: {self.warmup} of {self.epochs} epochs")

    def network(self, image_shape: tuple[int, int, int]) -> lenet5.Config | mlp.Config:
        """The model's own configuration."""
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("activation", "batch_norm", "classes", "dtype")
        } | {"gradients": self.attachment}
        if self.model == "lenet5":
            return lenet5.Config(image_shape=image_shape, pool=self.pool, **common)
        rows, columns, channels = image_shape
        return mlp.Config(features=rows * columns * channels, **common)

    def differences(self, other: "Configuration") -> list[str]:
        """The options that make another run of `other`, both values; where the data lie does not."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return [f"{name} {a!r}, not {b!r}" for name, a, b in pairs if a != b and name != "data"]

    def arguments(self) -> str:
        """What to write on the command line for this configuration."""
        words = []
        for field in dataclasses.fields(self):
            value, option = getattr(self, field.name), field.name.replace("_", "-")
            if value == field.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words.append(f"--{option} {value}")
        return " ".join(words)


def read(path: Path) -> Configuration:
    """The configuration in a file, .toml or .json: options by name, those left out as they are by default.

    Raises:
      ValueError: no such file, not TOML or JSON, or an option that does not exist or cannot have its value.
    """
    return from_options(read_options(path), str(path))


def read_options(path: Path) -> dict[str, Any]:
    """What the file holds, unchecked."""
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"{path}: a configuration's name must end in .toml or .json")
    try:
        options = (tomllib.loads if path.suffix == ".toml" else json.loads)(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # of either parser
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: must hold options by name, holds a {type(options).__name__}")
    return options


def from_options(options: dict[str, Any], where: str) -> Configuration:
    """Checked; `where` they come from is named in errors."""
    names = [field.name for field in dataclasses.fields(Configuration)]
    for name in options:
        if name not in names:
            raise ValueError(f"{where}: no option {name!r}; there are {', '.join(names)}")
    try:
        return Configuration(**options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def as_json(configuration: Configuration) -> bytes:
    """All options, resolved: what `read` reads."""
    return (json.dumps(dataclasses.asdict(configuration), indent=1) + "\n").encode()


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value in the type of its option. Files and programs give any type; the command line is checked by tyro."""
    condition = ""
    if typing.get_origin(hint) is Annotated:
        hint, condition, *_ = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) not in kinds:
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    if condition and not _CONDITIONS[condition](value):
        raise ValueError(f"{name} must be {condition}, got {value!r}")
    return value


_CONDITIONS = {
    ">= 0": lambda n: 0 <= n < math.inf,
    ">= 1": lambda n: n >= 1,
    "> 0": lambda n: 0 < n < math.inf,
    "in [0, 1)": lambda n: 0 <= n < 1,
    "in [0, 2**32)": lambda n: 0 <= n < 2**32,
}
