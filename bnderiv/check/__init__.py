"""Checks a hand-derived gradient: `compare` holds a rule against autodiff, float64 and finite differences.

From a terminal: `python -m bnderiv.check module:function --reference module:function --shapes "(8,3),(3,)"`.
"""

from bnderiv.check.compare import MODES, compare
from bnderiv.check.report import Report, Row

__all__ = ["compare", "MODES", "Report", "Row"]
