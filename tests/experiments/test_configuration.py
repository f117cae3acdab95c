"""The LeNet experiment's options: from the command line, from files, and the ones refused."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from bnderiv.models import lenet5, mlp
from experiments import _command
from experiments.lenet import configuration, run
from experiments.lenet.configuration import Configuration

EVERY_OTHER: dict[str, Any] = {  # a value that is not the default, for every option
    "data": "somewhere",
    "classes": 27,
    "validation": True,
    "memory": 2.5,
    "model": "mlp",
    "pool": "avg",
    "activation": "sigmoid",
    "batch_norm": False,
    "loss": "mse",
    "output": "tanh",
    "initializer": "lecun_uniform",
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup": 2,
    "momentum": 0.5,
    "decay": 1e-4,
    "batch_size": 32,
    "epochs": 7,
    "shift": 0,
    "seed": 3,
    "dtype": "bfloat16",
    "attachment": "forward_mode",
    "devices": 4,
}


def test_every_option_by_every_way(tmp_path):
    """A program, the command line, TOML, JSON, and the resolved file that a run leaves: the same configuration."""
    chosen = Configuration(**EVERY_OTHER)
    defaults = dataclasses.asdict(Configuration())
    assert EVERY_OTHER.keys() == defaults.keys()
    assert all(EVERY_OTHER[name] != defaults[name] for name in defaults)
    command = run._parse(["train", *chosen.arguments()])
    assert isinstance(command, run.Train)
    assert command.configuration == chosen
    toml, by_hand, resolved = tmp_path / "a.toml", tmp_path / "b.json", tmp_path / "configuration.json"
    toml.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in EVERY_OTHER.items()))
    by_hand.write_text(json.dumps(EVERY_OTHER))
    resolved.write_bytes(configuration.as_json(chosen))
    for file in (toml, by_hand, resolved):
        assert configuration.read(file) == chosen
        assert run._parse(["train", "--config", str(file)]).configuration == chosen  # type: ignore[union-attr]
    assert Configuration().arguments() == []
    assert Configuration(data="/home/me/mnist").anonymous().arguments() == ["--data", "FOLDER"]  # as a report has it


def test_the_command_line_comes_before_the_file(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 3\nbatch_norm = false")
    for words in (["--config", str(tmp_path / "a.toml")], [f"--config={tmp_path / 'a.toml'}"]):
        command = run._parse(["train", "--epochs", "9", *words, "--checkpoint-every", "5"])
        assert isinstance(command, run.Train)
        assert command.configuration == Configuration(epochs=9, batch_norm=False)
        assert command.checkpoint_every == 5


def test_a_configuration_is_hashable_and_an_integer_rate_is_one():
    assert hash(Configuration(learning_rate=1)) == hash(Configuration(learning_rate=1.0))
    assert isinstance(Configuration(learning_rate=1).learning_rate, float)


REFUSED: dict[str, tuple[Any, str]] = {
    "model": ("resnet", "model must be one of 'lenet5', 'mlp', got 'resnet'"),
    "batch_norm": (1, "batch_norm must be bool, got 1"),
    "epochs": (0, "epochs must be >= 1, got 0"),
    "batch_size": (True, "batch_size must be int, got True"),
    "learning_rate": (float("nan"), "learning_rate must be > 0, got nan"),
    "momentum": (1.0, r"momentum must be in \[0, 1\), got 1.0"),
    "decay": (-0.1, "decay must be >= 0"),
    "seed": (-1, "seed must be in"),
    "shift": (2.0, "shift must be int, got 2.0"),
    "data": (3, "data must be str or None, got 3"),
    "dtype": ("float16", "dtype must be one of 'float32', 'bfloat16'"),
    "devices": (3, "batch_size 64 must be a multiple of devices, 3"),
    "warmup": (30, "warmup must end before the run: 30 of 30 epochs"),
    "color": ("red", "no option 'color'; there are data, classes"),
    "learning-rate": (0.1, "no option 'learning-rate'; did you mean 'learning_rate'"),
    "Epoch": (3, "no option 'Epoch'; did you mean 'epochs'"),
    "common": (
        {"epochs": 3},
        "'common' is a table; settings to compare are for python -m experiments.lenet.compare FILE",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_must_not_say(name, tmp_path):
    value, message = REFUSED[name]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({name: value}))
    with pytest.raises(_command.Refused, match=message) as refused:
        configuration.read(file)
    assert str(refused.value).startswith(f"{file}: ")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("output", ["softmax", "tanh", "sigmoid"])
def test_pairings(loss, output):
    if (loss, output) in (("cross_entropy", "softmax"), ("mse", "tanh"), ("mse", "sigmoid")):
        Configuration(loss=loss, output=output)
        return
    with pytest.raises(
        _command.Refused, match=f"loss '{loss}' with output '{output}' has no derivation here; there are: "
    ):
        Configuration(loss=loss, output=output)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "epochs: 3", r"must end in \.toml or \.json"),
        ("a.toml", "epochs = ", "a.toml: Invalid value"),
        ("a.json", "{", r"a\.json: Expecting"),
        ("a.json", "[3]", "must hold options by name, holds a list"),
        ("a.json", b"\xff\xfe", "a.json: .*codec can't decode"),
    ],
)
def test_no_configuration_file(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=message):
        run.main(["--config", str(tmp_path / name)])
    (tmp_path / "link.toml").symlink_to("gone.toml")
    with pytest.raises(SystemExit, match=r"cannot be read \(.*link.toml is a link to gone.toml, which does not exist"):
        run.main(["--config", str(tmp_path / "link.toml")])
    for words in (["--config="], ["--config"], ["train", "--config", ""]):
        with pytest.raises(SystemExit, match=r"--config must name a file, \.toml or \.json"):
            run.main(words)
    with pytest.raises(SystemExit, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        run.main(["train", "--config", str(tmp_path / "none.toml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs few", "epochs"),
        ("--pool min", "pool"),
        ("--colour red", "colour"),
        ("begin", "begin"),
    ],
)
def test_no_command_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(words.split())
    assert stopped.value.code not in (0, None)
    assert message in capsys.readouterr().err


def test_the_networks():
    chosen = Configuration(pool="avg", activation="tanh", batch_norm=False, attachment="autodiff")
    model = chosen.network((28, 28, 1))
    assert model == lenet5.Config(pool="avg", activation="tanh", batch_norm=False, gradients="autodiff")
    model = dataclasses.replace(chosen, model="mlp").network((28, 28, 1))
    assert model == mlp.Config(activation="tanh", batch_norm=False, gradients="autodiff")
    assert isinstance(model, mlp.Config)
    assert (model.features, *model.hidden, model.classes) == (784, 500, 150, 10)
    assert Configuration(dtype="bfloat16").network((28, 28, 1)).dtype.name == "bfloat16"  # type: ignore[union-attr]


def test_differences_do_not_mind_where_the_data_lie():
    a, b = Configuration(data="here", epochs=3), Configuration(data="there", epochs=4)
    assert a.differences(b) == ["epochs 3, not 4"]
    assert np.all([not a.differences(dataclasses.replace(a, data="elsewhere"))])
