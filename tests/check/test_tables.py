"""Every wrong rule is caught, every right one passes: in float32 and float64, with and without a reference.

All four for each rule take some twenty minutes: `pytest -m exhaustive`.
"""

import jax
import pytest

from bnderiv.check import MODES, compare
from tests.check.real_rules import REAL, REAL_WRONG
from tests.check.right_rules import RIGHT
from tests.check.rules import CONFIGURATIONS, run
from tests.check.wrong_rules import WRONG

pytestmark = pytest.mark.slow

# What does not depend on the reference is checked with one.
ALONE = (
    "value",
    "structure",
    "float64",
    "finite_differences",
    "second_order",
    "jvp",
    "determinism",
    "linearity",
    "subsets",
)


@pytest.fixture(autouse=True)
def _promotion_as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def caught(case, configuration):
    """Most fail the gradient itself, which is checked first, to be quick; the others take every mode."""
    quick = "finite_differences" if "alone" in configuration else "gradient"
    if not case.keywords and run(compare, case, configuration, modes=quick).failures:
        return True
    return not run(compare, case, configuration).passed


def each(cases):
    """Every rule in every configuration: in one of them, another for each rule, in `.ci/run`; exhaustively in all."""
    for i, case in enumerate(cases):
        for j, configuration in enumerate(CONFIGURATIONS):
            marks = () if i % len(CONFIGURATIONS) == j else pytest.mark.exhaustive
            yield pytest.param(case, configuration, marks=marks, id=f"{case.name}-{configuration}")


@pytest.mark.few(0, 4)
@pytest.mark.parametrize(("case", "configuration"), list(each(WRONG + REAL_WRONG)))
def test_a_wrong_rule_is_caught(case, configuration):
    assert caught(case, configuration) == (configuration not in case.misses)


@pytest.mark.few(0, 3)
@pytest.mark.parametrize(("case", "configuration"), list(each(RIGHT + REAL)))
def test_a_right_rule_passes(case, configuration):
    report = run(compare, case, configuration, **({"modes": ALONE} if "alone" in configuration else {}))
    assert report.passed == (configuration not in case.misses), report


def test_the_tables_are_as_large_as_they_should_be():
    assert len(WRONG) >= 60
    assert len(RIGHT) >= 40
    assert len(REAL) >= 12
    for table in (WRONG, RIGHT, REAL):
        assert len({case.name for case in table}) == len(table)
    assert set(ALONE) < set(MODES)
    assert all(set(case.misses) <= set(CONFIGURATIONS) for case in (*WRONG, *RIGHT, *REAL))
