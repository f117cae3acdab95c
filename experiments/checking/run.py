"""What checkers of gradients catch and miss on the rules of `tests/check`: ours, JAX's check_grads, torch's gradcheck.

    python -m experiments.checking.run             every rule: numbers, tables, picture and report
    python -m experiments.checking.run --only log  rules whose name holds this
    python -m experiments.checking.run --redraw    tables, picture and report again, from checking.json

All run in float64 (gradcheck asks for it), each with its default tolerances; ours with a reference and without.
check_grads runs to second order in reverse mode. For torch, a JAX rule is wrapped in an autograd.Function whose
backward is `jax.vjp` of the rule, and so on to second order (gradgradcheck). Without torch gradcheck is left out.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.checking.run", extras="test,peers")

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import matplotlib.pyplot as plt
import numpy as np

from bnderiv.check import compare
from experiments import _options, _report
from tests.check.real_rules import REAL, REAL_WRONG
from tests.check.right_rules import RIGHT
from tests.check.rules import Case, run
from tests.check.wrong_rules import WRONG

RULES = [
    (table, case)
    for table, cases in (("wrong", WRONG + REAL_WRONG), ("right", RIGHT + REAL))
    for case in cases
    # What is no gradient on purpose has no place in a comparison with checkers that cannot be told so.
    if "expected" not in case.keywords
]
CHECKERS = {  # and what they are called in the picture
    "compare": "bnderiv.check",
    "compare alone": "bnderiv.check\nwithout a reference",
    "check_grads": "jax check_grads",
    "gradcheck": "torch gradcheck",
}


class Settings(_options.Measured):
    """Which rules are checked."""

    only: str = ""
    """Only the rules whose names hold this are checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules():
            names = ", ".join(case.name for _, case in RULES)
            raise _command.Refused(f"only: no rule has {self.only!r} in its name; there are {names}")

    def rules(self) -> list[tuple[str, Case]]:
        return [(table, case) for table, case in RULES if self.only in case.name]


def draw(rows: list[dict[str, str]]) -> bytes:
    """Bars: wrong rules missed and right rules failed, for each checker."""
    kinds = (("wrong", "wrong rules that pass", "#c62828"), ("right", "right rules that fail", "#9e9e9e"))
    checkers = list(slips(rows[0]))
    figure, axes = plt.subplots(figsize=(_report.WIDTH, 3.2))
    for place, (table, label, color) in enumerate(kinds):
        some = [slips(row) for row in rows if row["table"] == table]
        counts = [sum(each[c] for each in some) for c in checkers]
        bars = axes.barh(np.arange(len(checkers)) + 0.38 * place, counts, 0.36, color=color)
        axes.bar_label(bars, padding=3)
        bars.set_label(f"{label}, of {len(some)}")
    axes.set_yticks(np.arange(len(checkers)) + 0.19, [CHECKERS[c] for c in checkers])
    axes.invert_yaxis()
    axes.set_xlabel("rules (fewer is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper right")
    return _report.png(figure)


def slips(row: dict[str, str]) -> dict[str, bool]:
    """Whether a checker passes a wrong rule or fails a right one, for those that were installed."""
    return {c: (row[c] == "passed") == (row["table"] == "wrong") for c in CHECKERS if c in row}


def row(table: str, case: Case) -> dict[str, str]:
    """What each checker that is installed says of one rule."""
    installed = [c for c in CHECKERS if c != "gradcheck" or importlib.util.find_spec("torch")]
    return {"table": table, "name": case.name, "how": case.how, **{c: _verdict(c, case, table) for c in installed}}


def _verdict(checker: str, case: Case, table: str) -> str:
    """ "passed", "failed", or "raised" for an error that is not the checker's own verdict."""
    try:
        if checker.startswith("compare"):
            configuration = checker.replace("compare", "float64")
            # To be quick, a wrong rule meets the mode that catches most first; one failure is a failure of the whole.
            quick = "finite_differences" if "alone" in checker else "gradient"
            if table == "wrong" and run(compare, case, configuration, modes=quick).failures:
                return "failed"
            return "passed" if run(compare, case, configuration).passed else "failed"
        f, floats = _of_floats(case)
        if checker == "check_grads":
            jax.test_util.check_grads(f, floats, order=2, modes=("rev",))
        else:
            _gradcheck(f, floats)
        return "passed"
    except AssertionError:
        return "failed"
    except Exception as error:
        return "failed" if "GradcheckError" in type(error).__name__ else "raised"


def _of_floats(case: Case) -> tuple[Callable, list[Any]]:
    """The rule as a function of its floating arrays; what else it takes is bound."""
    f, args = case.make(), case.args(np.dtype("float64"))
    wanted = case.keywords.get("argnums", range(len(args)))
    wanted = {wanted} if isinstance(wanted, int) else set(wanted)
    inexact = list(range(len(args)))
    if all(hasattr(a, "dtype") or isinstance(a, float) for a in args):
        inexact = [i for i in inexact if i in wanted and jnp.issubdtype(jnp.result_type(args[i]), jnp.inexact)]

    def of_floats(*floats: Any) -> Any:
        filled = dict(zip(inexact, floats, strict=True))
        return f(*(filled.get(i, a) for i, a in enumerate(args)))

    return of_floats, [args[i] for i in inexact]


def _gradcheck(f: Callable, floats: list[Any]) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    def apply(f: Callable, *tensors: Any) -> Any:
        class Bridge(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *tensors: Any) -> Any:
                ctx.save_for_backward(*tensors)
                out = f(*(jnp.asarray(tensor.detach().numpy()) for tensor in tensors))
                out = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), out)
                return tuple(jax.tree.leaves(out)) if isinstance(out, (list, tuple)) else out

            @staticmethod
            def backward(ctx: Any, *cotangents: Any) -> Any:
                count = len(ctx.saved_tensors)

                def pulled(*both: Any) -> Any:
                    out, pull = jax.vjp(f, *both[:count])
                    several = isinstance(out, (list, tuple))
                    grads = pull(jax.tree.unflatten(jax.tree.structure(out), both[count:]) if several else both[count])
                    return tuple(grads) if count > 1 else grads[0]

                return apply(pulled, *ctx.saved_tensors, *cotangents)

        return Bridge.apply(*tensors)

    tensors = [torch.from_numpy(np.array(a)).requires_grad_() for a in floats]
    if not tensors:
        return  # gradcheck has nothing to say, and passes
    torch.autograd.gradcheck(lambda *t: apply(f, *t), tensors)
    torch.autograd.gradgradcheck(lambda *t: apply(f, *t), tensors)


def tables(rows: list[dict[str, str]]) -> list[_report.Part]:
    """How many rules each checker misses or fails, and which."""
    mark = {"passed": "·", "failed": "FAIL", "raised": "raises"}
    checkers, counts, details = list(slips(rows[0])), [], []
    for kind, count, title in (
        ("wrong", "wrong rules missed", "Wrong rules that one of them misses"),
        ("right", "right rules failed", "Right rules that one of them fails"),
    ):
        some = [row for row in rows if row["table"] == kind]
        counts.append([f"{count}, of {len(some)}", *(sum(slips(row)[c] for row in some) for c in checkers)])
        shown = [row for row in some if any(slips(row).values())]
        cells = [[row["name"], row["how"], *(mark[row[c]] for c in checkers)] for row in shown]
        details.append(_report.Table(title, ("rule", "what it is", *checkers), cells, "· is a pass."))
    return [_report.Table("How many", ("", *checkers), counts), *details]


def present(content: dict[str, Any]) -> _report.Report:
    """The page with picture and tables."""
    parts = tables(content["rows"])
    caption = "In float64, each checker with its default tolerances. A good checker has no bars."
    return _report.Report(
        "Checkers of gradients",
        "What each checker of gradients misses of rules that are wrong, and fails of rules that are right.",
        [_report.Picture("At a glance", "checking.png", draw(content["rows"]), caption), *parts],
        file="checking.html",
        tables="checking.md",
        said=_report.markdown(parts),
    )


def measure(options: Settings) -> dict[str, Any]:
    """What each checker says of each rule."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    return {"rows": [row(*rule) for rule in _command.bar(iterable=options.rules(), unit="rule")]}


main = _report.experiment(Settings, "checking.json", measure, present, "torch")
