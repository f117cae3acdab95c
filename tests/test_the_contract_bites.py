"""The tests can fail: every planted slip is caught by the contract's gradient check."""

import pytest

from tests import contract
from tests.cases import CASES, SLIPS
from tests.slip import Planted, unchanged


@pytest.mark.parametrize("slip", SLIPS, ids=str)
def test_slip_is_caught(slip):
    # Planted without a slip in it, the layer passes ...
    contract.vjp(Planted(slip.case.layer, unchanged), slip.case)
    # ... and with it, a gradient is seen to be off.
    with pytest.raises(AssertionError, match=r"leaf \d+: off by"):
        contract.vjp(Planted(slip.case.layer, slip.change), slip.case)


def test_every_layer_has_a_slip():
    assert {slip.case.layer for slip in SLIPS} == {case.layer for case in CASES}
