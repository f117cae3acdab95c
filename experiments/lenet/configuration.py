"""Every choice that makes a run what it is: two runs with the same configuration, data and machine are the same run."""

import dataclasses
import difflib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from bnderiv.models import lenet5, mlp
from experiments import _command, _data, _options
from experiments._options import AtLeastOne, Positive, Seed

# With derivations: (S9) and (S10); (S1) to (S3); (S1), (S2) and (A6).
PAIRINGS = (("cross_entropy", "softmax"), ("mse", "tanh"), ("mse", "sigmoid"))
ELSEWHERE = ("data", "memory")  # options that do not change what a run computes


class Configuration(_options.Options):
    """A run's options. Frozen and hashable: a static argument of `jax.jit`."""

    data: str | None = None
    """A folder of IDX files, such as MNIST's, plain or .gz; folder/set where it holds several (experiments/data.md).
    None takes the digits of scikit-learn."""
    classes: AtLeastOne = 10
    """The labels lie in [0, classes): 10, or 27 for EMNIST's letters."""
    validation: bool = False
    """The test images stay unseen, and a fifth of the training images is tested on: for choosing a recipe."""
    memory: Positive = _data.MEMORY
    """The most memory that a file of images may take, in GB."""

    model: Literal["lenet5", "mlp"] = "lenet5"
    """The network is LeNet-5, or a perceptron of pixels-500-150-classes."""
    pool: Literal["max", "avg"] = "max"
    """LeNet-5 pools by the maximum or by the average."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """The activation of every hidden layer."""
    batch_norm: bool = True
    """Batch norm comes before every activation."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """The loss is the cross entropy of a softmax, or half the squared error of a tanh or sigmoid (targets one-hot)."""
    output: Literal["softmax", "tanh", "sigmoid"] = "softmax"
    """The function after the last layer. With the loss it must be a pair that has a derivation."""
    initializer: Literal[
        "model", "lecun_normal", "lecun_uniform", "xavier_normal", "xavier_uniform", "kaiming_normal",
        "kaiming_uniform", "pytorch",
    ] = "model"  # fmt: skip
    """The initializer of every kernel. "model" takes kaiming_normal before relu, xavier_uniform before others and
    lecun_normal last; "pytorch" is uniform up to 1/√fan_in, PyTorch's default."""

    optimizer: Literal[
        "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "rmsprop", "adagrad", "lamb", "lion"
    ] = "nesterov"
    """The optimizer is optax's of that name; sgd is plain gradient descent."""
    learning_rate: Positive = 0.03
    """The highest learning rate of the schedule."""
    schedule: Literal["constant", "cosine", "linear", "steps", "one_cycle"] = "cosine"
    """The schedule of the learning rate. "cosine" and "linear" fall to 0; "steps" falls to a tenth at half and again at
    three quarters of the run."""
    warmup: Annotated[int, ">= 0"] = 0
    """The epochs in which the rate rises from 0, before the schedule."""
    momentum: Annotated[float, "in [0, 1)"] = 0.9
    """The momentum of the optimizers "momentum" and "nesterov"."""
    decay: Annotated[float, ">= 0"] = 0.0
    """The weight decay of the kernels, not of γ, β and biases: ½ decay ‖w‖² joins the loss (decoupled in adamw, lamb
    and lion)."""

    batch_size: AtLeastOne = 64
    """The images of a step. The last batch of an epoch has what is left."""
    epochs: AtLeastOne = 30
    """The passes over the training images, each in a new order."""
    shift: Annotated[int, ">= 0"] = 3
    """The most pixels by which a training image is moved, drawn each time."""
    seed: Seed = 0
    """The seed of parameters, order and shifts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the computation. Parameters, statistics and the loss are float32 in either."""
    attachment: Literal["closed_form", "forward_mode", "autodiff"] = "closed_form"
    """The gradients are derived by hand, derived by hand in both modes, or JAX's own of a plain forward."""
    devices: AtLeastOne = 1
    """The number of devices over which each batch is sharded; statistics are those of the whole batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.loss, self.output) not in PAIRINGS:
            derived = ", ".join(f"{loss} with {output}" for loss, output in PAIRINGS)
            raise _command.Refused(
                f"loss {self.loss!r} with output {self.output!r} has no derivation here; there are: {derived}"
            )
        if self.batch_size % self.devices:
            raise _command.Refused(f"batch_size {self.batch_size} must be a multiple of devices, {self.devices}")
        if self.warmup and self.schedule == "one_cycle":
            raise _command.Refused("schedule 'one_cycle' rises by itself: warmup must be 0")
        if self.warmup >= self.epochs:
            raise _command.Refused(f"warmup must end before the run: {self.warmup} of {self.epochs} epochs")

    def network(self, image_shape: tuple[int, int, int]) -> lenet5.Config | mlp.Config:
        """The model's own configuration."""
        names = ("activation", "batch_norm", "classes", "dtype")
        common: dict[str, Any] = {name: getattr(self, name) for name in names} | {"gradients": self.attachment}
        if self.model == "mlp":
            return mlp.Config(features=math.prod(image_shape), **common)
        return lenet5.Config(image_shape=image_shape, pool=self.pool, **common)

    def differences(self, other: "Configuration") -> list[str]:
        """The options that make another run of `other`, both values; where the data lie does not."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return [f"{name} {a!r}, not {b!r}" for name, a, b in pairs if a != b and name not in ELSEWHERE]


def read(path: Path) -> Configuration:
    """The configuration in a file, .toml or .json: options by name, those left out as they are by default.

    Raises:
      Refused: no such file, not TOML or JSON, or an option that does not exist or cannot have its value.
    """
    return from_options(read_options(path), str(path))


def read_options(path: Path) -> dict[str, Any]:
    """What the file holds, unchecked."""
    if path.suffix not in (".toml", ".json"):
        raise _command.Refused(f"{path}: a configuration's name must end in .toml or .json")
    with _command.refusing(f"{path}: cannot be read", path):
        content = path.read_bytes()
    try:
        options = (tomllib.loads if path.suffix == ".toml" else json.loads)(content.decode())
    except ValueError as error:  # of the encoding, or of either parser
        raise _command.Refused(f"{path}: {error}") from error
    if not isinstance(options, dict):
        raise _command.Refused(f"{path}: must hold options by name, holds a {type(options).__name__}")
    return options


def from_options(options: dict[str, Any], where: str) -> Configuration:
    """Checked; `where` they come from is named in errors."""
    names = [field.name for field in dataclasses.fields(Configuration)]
    for name, value in options.items():
        if name not in names:
            if isinstance(value, dict):
                compare = _command.line("experiments.lenet.compare", "FILE")
                raise _command.Refused(f"{where}: {name!r} is a table; settings to compare are for {compare}")
            near = difflib.get_close_matches(name.replace("-", "_").lower(), names, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise _command.Refused(f"{where}: no option {name!r}; {meant}")
    try:
        return Configuration(**options)
    except _command.Refused as error:
        raise _command.Refused(f"{where}: {error}") from error


def as_json(configuration: Configuration) -> bytes:
    """All options, resolved: what `read` reads."""
    return (json.dumps(dataclasses.asdict(configuration), indent=1) + "\n").encode()
