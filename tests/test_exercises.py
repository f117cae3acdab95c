"""The exercises stop at an empty cell, accept the answers, and name the slip in a wrong one."""

import functools
import json
import re
from pathlib import Path
from urllib.parse import unquote

import jax
import pytest

from tests.test_formulas import anchors

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "notebooks" / "exercises"
(ADDRESS,) = re.findall(r'Homepage = "https://github.com/(.+)"', (ROOT / "pyproject.toml").read_text())
BLOB = f"https://github.com/{ADDRESS}/blob/main/"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"^# (\d+\.\d+)$", re.MULTILINE)


def cells(name):
    """(number of the exercise or None, code) of each cell."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    plain = [re.sub(r"%pip .*", "pass", source) for source in sources]
    return [(number[1] if (number := NUMBER.match(source)) else None, source) for source in plain]


def answers(name):
    pieces = re.split(r"^# %% (.*)$", (FOLDER / "solutions" / f"{name}.py").read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def answer(number, part, wrong):
    """A right answer of lenet5 with one wrong part."""
    right = answers("lenet5")[number]
    assert part in right
    return right.replace(part, wrong)


def function(number, arguments, returned):
    """A wrong answer of lenet5 in one line, in place of a function."""
    (name,) = re.findall(r"^def (\w+)", answers("lenet5")[number], re.MULTILINE)
    return f"def {name}({arguments}):\n    return {returned}"


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
    "lenet5": [
        ("1.1", "delta5 = s['a5'] - np.eye(10)[labels]", "delta5 .*\n.*a missing 1/N, N = 6"),
        ("1.1", "delta5 = (np.eye(10)[labels] - s['a5']) / N", "delta5 .*\n.*the sign"),
        (
            "1.2",
            function("1.2", "a, W, delta", "a.T @ delta / N, delta.sum(0), delta @ W.T"),
            "divided by N = 6, which is in δ",
        ),
        (
            "1.2",
            function("1.2", "a, W, delta", "delta.T @ a, delta.sum(0), delta @ W.T"),
            "d_kernel5 .*\n.*a transpose",
        ),
        ("1.2", function("1.2", "a, W, delta", "a.T @ delta, delta.mean(0), delta @ W.T"), "d_bias5"),
        ("1.3", "d_y4 = d_a4", "the slope of the activation"),
        ("1.3", "d_y4 = d_a4 * (1 - s['a4'])", "a missing square"),
        ("1.3", "d_y4 = d_a4 * (1 - np.tanh(s['a4']) ** 2)", "tanh of the output"),
        ("1.4", answer("1.4", "d_gamma / M", "0"), "the part through σ²"),
        ("1.4", answer("1.4", "gamma * inv_std * (", "inv_std * ("), "a missing γ"),
        (
            "1.4",
            answer("1.4", "(d_y * x_hat).sum(over)", "(d_y * x_hat).mean(over)"),
            "d_gamma4 .*\n.*a mean where a sum",
        ),
        ("2.1", "d_p2 = d_f.reshape(6, 16, 5, 5).transpose(0, 2, 3, 1)", "another order"),
        ("2.2", function("2.2", "d_p", "np.repeat(np.repeat(d_p, 2, axis=1), 2, axis=2)"), "a missing divisor"),
        ("2.2", function("2.2", "d_p", "np.tile(d_p / 4, (1, 2, 2, 1))"), "d_a2"),
        ("2.3", "d_y2 = d_a2 * (1 - s['a2'] ** 2); delta2 = right.dx", "delta2 .* has shape"),
        ("2.4", function("2.4", "a, delta", "right.d_kernel2[::-1, ::-1]"), "a flipped kernel"),
        ("2.5", answer("2.5", "[::-1, ::-1]", ""), "d_p1 .*\n.*a flipped kernel"),
        ("2.6", "delta1 = right.delta1; d_kernel1 = right.d_kernel1 / N", "d_kernel1 .*\n.*a mean where a sum"),
        ("3.1", answer("3.1", "/ len(labels)", ""), r"\['conv1'\]\['kernel'\] is not right"),
        ("3.1", answer("3.1", ' if layer == "output" else {}', ""), "dense3 has no bias"),
        ("3.2", answer("3.2", "p - rate", "p + rate"), "downhill"),
        ("3.3", answer("3.3", " * count / (count - 1)", ""), "new_var .*\n.*the biased variance"),
        ("3.3", answer("3.3", "0.9 * mean + 0.1", "0.1 * mean + 0.9"), "new_mean .*\n.*the momentum weighs"),
    ],
}


def run(name, answered, scope=None, start=0):
    """Runs the cells as a kernel would, from one on, with these answers in place of the empty ones."""
    scope = {} if scope is None else scope
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for number, source in cells(name)[start:]:
            yield number, scope
            exec(compile(answered.get(number, source), f"{name}, {number}", "exec"), scope)


@functools.cache
def before(name):
    """What is defined before each exercise, where all the earlier ones are answered rightly, and the cell's place."""
    last, scopes = list(answers(name))[-1], {}
    for place, (number, scope) in enumerate(run(name, answers(name))):
        scopes[number] = dict(scope), place
        if number == last:
            break  # what follows the last exercise need not run
    return scopes


def answered_with(name, number, answer):
    """The cells from this exercise on, the answer and what follows it."""
    scope, place = before(name)[number]
    answered = answers(name) | {number: answer}
    if answer is None:
        del answered[number]
    for _ in run(name, answered, dict(scope), place):
        pass


@pytest.mark.few(1, 1)
@pytest.mark.parametrize("name", NAMES)
def test_as_handed_out_it_stops_at_the_first_empty_cell_with_a_hint(name):
    with pytest.raises(NotImplementedError, match=r"the cell above is empty: \w+.*\. Hint: .{20}"):
        list(run(name, {}))


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("name", NAMES)
def test_every_empty_cell_is_noticed(name):
    found = []
    for number in answers(name):
        with pytest.raises(NotImplementedError, match="the cell above is empty") as stopped:
            answered_with(name, number, None)
        found += re.findall(rf"Proof: {re.escape(BLOB)}(.+)$", str(stopped.value))
    assert len(found) > len(answers(name)) / 2  # a hint without a label has no page
    for path, section in (unquote(address).split("#") for address in found):
        assert section in anchors((ROOT / path).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_hint_leads_to_the_section_of_its_label(name):
    linked = re.findall(r'"([NLCPAS]\d+)": "(?:(\w+)/derivation\.md#)?([\w%-]+)"', "\n".join(s for _, s in cells(name)))
    assert len(linked) > 3
    for label, room, section in linked:
        page = (ROOT / "bnderiv" / (room or "normalization") / "derivation.md").read_text()
        titles = [part for part in re.split(r"^#+ ", page, flags=re.MULTILINE) if f"\\tag{{{label}}}" in part]
        assert {unquote(section)} == {anchor for part in titles for anchor in anchors(f"# {part}")}, label


@pytest.mark.few(1, 1)
@pytest.mark.parametrize("name", NAMES)
def test_the_answers_are_right_and_there_is_one_for_each_empty_cell(name, capsys):
    assert list(answers(name)) == [number for number, _ in cells(name) if number]
    list(run(name, answers(name)))
    assert capsys.readouterr().out.count("Right:") == len(answers(name))


@pytest.mark.few(0, 6)
@pytest.mark.parametrize(("name", "number", "answer", "hint"), [(n, *row) for n in NAMES for row in WRONG[n]])
def test_a_typical_wrong_answer_gets_the_right_hint(name, number, answer, hint):
    with pytest.raises(AssertionError, match=hint):
        answered_with(name, number, answer)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_handed_out_empty(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_in_colab_and_binder_after_one_installation(name):
    path = f"experiments/notebooks/exercises/{name}.ipynb"
    source = (FOLDER / f"{name}.ipynb").read_text()
    for page in (source, (FOLDER / "README.md").read_text()):
        assert f"(https://colab.research.google.com/github/{ADDRESS}/blob/main/{path})" in page
        assert f"(https://mybinder.org/v2/gh/{ADDRESS}/main?labpath={path.replace('/', '%2F')})" in page
    (install,) = re.findall(r"%pip install.*", source)
    assert f"git+https://github.com/{ADDRESS}" in install
    imported = set(re.findall(r'"(?:import|from) (\w+)', source)) - {"re"}
    assert imported - {"importlib", "sklearn"} <= {"numpy", "jax", "bnderiv"}
    assert ("sklearn" in imported) == ("scikit-learn" in install)
    assert "scikit-learn" in (ROOT / ".binder" / "requirements.txt").read_text()
    assert (ROOT / ".binder" / "runtime.txt").read_text() == "python-3.12\n"  # without it Binder takes its own default
