"""The table of cases: every room's rows, and every room's slips, under one name."""

from tests.activation import cases as activation
from tests.convolution import cases as convolution
from tests.linear import cases as linear
from tests.loss import cases as loss
from tests.normalization import cases as normalization
from tests.pooling import cases as pooling

ROOMS = (linear, normalization, convolution, activation, loss, pooling)

CASES = tuple(case for room in ROOMS for case in room.CASES)
SLIPS = tuple(slip for room in ROOMS for slip in room.SLIPS)
