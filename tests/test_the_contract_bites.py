"""The tests can fail: every planted slip is caught by the contract's gradient check."""

import pytest

from tests import contract
from tests.cases import CASES, SLIPS
from tests.slip import Planted, Slip, unchanged

CASES_WITH_SLIPS = dict.fromkeys(slip.case for slip in SLIPS)
# A case after the other, as what is compiled for one is kept.
NONE_AND_SLIPS = [
    slip
    for case in CASES_WITH_SLIPS
    for slip in (Slip("no-slip", case, unchanged), *(slip for slip in SLIPS if slip.case is case))
]


@pytest.mark.few(5, 8)
@pytest.mark.parametrize("slip", NONE_AND_SLIPS, ids=str)
def test_slip_is_caught_and_without_one_the_layer_passes(slip):
    planted = Planted(slip.case, slip.change)
    if slip.change is unchanged:
        contract.vjp(planted, slip.case)
        return
    with pytest.raises(AssertionError, match=r"leaf \d+: off by"):
        contract.vjp(planted, slip.case)


def test_every_layer_has_a_slip():
    assert {slip.case.layer for slip in SLIPS} == {case.layer for case in CASES}
