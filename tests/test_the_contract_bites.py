"""The tests can fail: every planted slip is caught by the contract's gradient check."""

import pytest

from tests import contract
from tests.cases import CASES, SLIPS
from tests.slip import Planted, unchanged


@pytest.mark.parametrize("case", dict.fromkeys(slip.case for slip in SLIPS), ids=str)
def test_planted_without_a_slip_the_layer_passes(case):
    contract.vjp(Planted(case, unchanged), case)


@pytest.mark.parametrize("slip", SLIPS, ids=str)
def test_slip_is_caught(slip):
    with pytest.raises(AssertionError, match=r"leaf \d+: off by"):
        contract.vjp(Planted(slip.case, slip.change), slip.case)


def test_every_layer_has_a_slip():
    assert {slip.case.layer for slip in SLIPS} == {case.layer for case in CASES}
