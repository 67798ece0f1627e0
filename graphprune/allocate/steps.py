"""Sizes that are worth having under a cost with steps, such as measured time.

A kernel that computes channels by 16 takes as long for 33 of them as for 48; one that has a slow way for odd sizes
takes longer for 47. So a count is not offered where a larger one costs no more: no position goes for nothing, and of
what is left more costs more, as allocators take it to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphprune.allocate.registry import CostFunction
from graphprune.dims import Dim

Offers = Mapping[Dim, npt.NDArray[np.int64]]
_SAME = 1e-9
"""The share of a cost that is no difference."""


def edges(offers: Offers, cost: CostFunction) -> dict[Dim, npt.NDArray[np.int64]]:
    """Of the counts that each Dim may keep, ascending, those cheaper than all larger ones, other Dims being whole."""
    found = {}
    for dim, counts in offers.items():
        costs = np.array([cost({dim: int(count)}) for count in counts])
        larger = np.minimum.accumulate(np.append(costs, np.inf)[::-1])[-2::-1]
        found[dim] = counts[costs < larger * (1 - _SAME)]
    return found
