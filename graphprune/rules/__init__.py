"""Rules: what each op says about its axes. One line an op; a file a family; see docs/add-an-op.md."""

from __future__ import annotations

from graphprune.rules import (  # noqa: F401
    attention,
    control,
    conv,
    frozen,
    indexing,
    linear,
    norm,
    pointwise,
    quantised,
    recurrent,
    shape,
)
from graphprune.rules.registry import FROZEN, RULES, Facts, Op, Rule, Slot, rule

__all__ = ["FROZEN", "RULES", "Facts", "Op", "Rule", "Slot", "rule"]
