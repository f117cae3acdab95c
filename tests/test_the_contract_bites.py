"""The tests can fail: every planted slip is caught by the contract's gradient check."""

import pytest

import bnderiv
from tests import contract
from tests.cases import CASES, SLIPS


@pytest.fixture
def nothing_remembered():
    contract.forget()
    yield
    contract.forget()


@pytest.mark.usefixtures("nothing_remembered")
@pytest.mark.parametrize("slip", SLIPS, ids=str)
def test_slip_is_caught(slip, monkeypatch):
    contract.vjp(bnderiv, slip.case)  # right before ...
    monkeypatch.setattr(slip.core, "bwd", slip.break_bwd(slip.core.bwd))
    contract.forget()
    with pytest.raises(AssertionError):
        contract.vjp(bnderiv, slip.case)  # ... and seen to be wrong after


def test_every_layer_has_a_slip():
    assert {slip.case.layer for slip in SLIPS} == {case.layer for case in CASES}
