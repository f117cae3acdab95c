"""The exercises stop at an empty cell, accept the answers, and name the slip in a wrong one."""

import json
import re
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks" / "exercises"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"^# (\d+\.\d+)$", re.MULTILINE)

WRONG = {
    "batch_norm": [
        ("1.1", "J = np.eye(N)", "The mean moves, too"),
        ("1.1", "J = np.eye(N) + 1 / N", "a minus"),
        ("1.1", "J = 1 - 1 / N", r"J has shape \(\), must have \(6, 6\)"),
        ("1.2", "dh = dy", "the mean held fixed"),
        ("1.2", "dh = dy - dy.sum(0)", "1/N is missing"),
        ("1.2", "dh = dy - dy.mean()", "each column has its own"),
        ("1.2", "dh = dy - dy.mean(1, keepdims=True)", "that of each column"),
        ("2.1", "d_beta, d_scaled = dy.mean(0), dy", "d_beta .*\n.*a mean where a sum belongs"),
        ("2.1", "d_beta, d_scaled = dy.sum(1), dy", "d_beta"),
        ("2.2", "d_gamma, d_x_hat = (dy * h).sum(0), gamma * dy", "x for x̂"),
        ("2.2", "d_gamma, d_x_hat = (dy * x_hat).sum(0), dy", "d_x_hat .*\n.*a missing γ"),
        ("2.4", "d_std = d_inv_std / std**2; d_var = d_std / (2 * std)", "d_std .*\n.*the sign"),
        ("2.4", "d_std = -d_inv_std / std**2; d_var = d_std / std", "d_var"),
        ("2.5", "d_q = d_var + 0 * q; d_c_through_q = 2 * centered * d_q; d_c = d_c_through_q", "missing 1/m"),
        ("2.6", "d_mu = d_c.sum(0); dx = d_c + d_mu / N", "d_mu"),
        ("2.6", "d_mu = -d_c.sum(0); dx = d_c + d_mu", "dx"),
        ("3.1", "d_gamma, d_beta = paper.d_gamma, paper.d_beta; dx = gamma * r * d_images", "two missing terms"),
        (
            "3.1",
            "d_gamma, d_beta = paper.d_gamma, paper.d_beta\n"
            "dx = gamma * r * (d_images - d_beta / 4 - images_hat * d_gamma / 4)",
            "wrong m in the parts through μ and σ²: N = 4",
        ),
        ("3.2", "dx_of_the_sum = np.ones_like(images)", "Put ones into your line"),
    ],
    "layers": [
        ("1.1", "d_logits = np.eye(4)[label] - s", "the sign: y − s"),
        ("1.1", "d_logits = -np.eye(4)[label] / s", "the Jacobian of softmax is missing"),
        ("1.1", "d_logits = (s - np.eye(4)[label]) / 5", "divided by N = 5"),
        ("2.1", "d_kernel, d_bias = a.T @ delta / 5, delta.sum(0)", "a mean where a sum belongs: divided by N = 5"),
        ("2.1", "d_kernel, d_bias = delta.T @ a, delta.sum(0)", "a transpose"),
        ("2.2", "dx = delta @ W", "a missing transpose: δ W in place of δ Wᵀ"),
        ("3.1", "dx = delta * (1 - a)", "a missing square"),
        (
            "4.1",
            "dx = np.zeros((4, 5))\nfor place, cells in windows(dx):\n    cells[:] = delta[place] / 4",
            "assigned where windows overlap",
        ),
        (
            "4.1",
            "dx = np.zeros((4, 5))\nfor place, cells in windows(dx):\n    cells += delta[place]",
            "a missing divisor",
        ),
        (
            "4.2",
            "dx = np.zeros((4, 5))\n"
            "for (place, cells), (_, values) in zip(windows(dx), windows(image)):\n"
            "    cells += delta[place] * (values == values.max())",
            "a tie: each of the cells that tie is given all of δ",
        ),
        ("5.1", "d_bias, d_kernel = delta.sum(), correlate(image, delta[::-1, ::-1])", "d_kernel"),
        ("5.1", "d_bias, d_kernel = delta.sum(), correlate(image, delta)[::-1, ::-1]", "a flipped kernel: ∂J/∂w"),
        ("5.2", "dx = correlate(np.pad(delta, ((2, 2), (1, 1))), kernel)", "a flipped kernel"),
    ],
}


def cells(name):
    """(number of the exercise or None, code) of each cell."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [(number[1] if (number := NUMBER.match(source)) else None, source) for source in sources]


def answers(name):
    pieces = re.split(r"^# %% (.*)$", (FOLDER / "solutions" / f"{name}.py").read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def run(name, answered):
    """Runs the cells as a kernel would, with these answers in place of the empty ones."""
    scope = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for number, source in cells(name):
            exec(compile(answered.get(number, source), f"{name}, {number}", "exec"), scope)


@pytest.mark.parametrize("name", NAMES)
def test_as_handed_out_it_stops_at_the_first_empty_cell_with_a_hint(name):
    with pytest.raises(NotImplementedError, match=r"the cell above is empty: \w+. Hint: .{20}"):
        run(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_every_empty_cell_is_noticed(name):
    right = answers(name)
    for number in right:
        with pytest.raises(NotImplementedError, match="the cell above is empty"):
            run(name, {other: answer for other, answer in right.items() if other != number})


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_are_right_and_there_is_one_for_each_empty_cell(name, capsys):
    assert list(answers(name)) == [number for number, _ in cells(name) if number]
    run(name, answers(name))
    assert capsys.readouterr().out.count("Right:") == len(answers(name))


@pytest.mark.parametrize(("name", "number", "answer", "hint"), [(n, *row) for n in NAMES for row in WRONG[n]])
def test_a_typical_wrong_answer_gets_the_right_hint(name, number, answer, hint):
    with pytest.raises(AssertionError, match=hint):
        run(name, answers(name) | {number: answer})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_handed_out_empty(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
