"""The table of cases: every room's rows, and every room's slips, under one name."""

from tests.convolution import cases as convolution
from tests.linear import cases as linear

ROOMS = (linear, convolution)

CASES = tuple(case for room in ROOMS for case in room.CASES)
SLIPS = tuple(slip for room in ROOMS for slip in room.SLIPS)
