"""One contract, run over every layer at every case."""

import inspect

import pytest

import bnderiv
import bnderiv.reference
from tests import contract
from tests.cases import CASES

LAYERS = sorted({case.layer for case in CASES})


@pytest.mark.parametrize("promise", contract.PROMISES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_promise(promise, case):
    promise(bnderiv, case)


@pytest.mark.parametrize("layer", LAYERS)
def test_reference_has_the_same_signature(layer):
    ours = inspect.signature(getattr(bnderiv, layer)).parameters
    oracle = inspect.signature(getattr(bnderiv.reference, layer)).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in oracle.values()
    ]
