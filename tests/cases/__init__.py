"""The rules table: for every op one or more small models in which Dims that may be cut pass through it.

Each family is a file, as in graphprune/rules. An entry builds a model around one node named "tested" and says, one sign
an axis, what its rule leaves free: ``+`` may be cut, ``~`` may be cut but the function changes, ``.`` stays whole.
"""

from __future__ import annotations

from tests.cases import (
    attention,
    control,
    conv,
    dynamic,
    fused,
    joining,
    linear,
    norm,
    pointwise,
    quantised,
    recurrent,
    reduce,
    shape,
    slicing,
)
from tests.cases.table import CASES, Case

FAMILIES = (
    attention,
    control,
    conv,
    dynamic,
    fused,
    joining,
    linear,
    norm,
    pointwise,
    quantised,
    recurrent,
    reduce,
    shape,
    slicing,
)

__all__ = ["CASES", "FAMILIES", "Case"]
