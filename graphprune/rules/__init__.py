"""Rules: what each op says about its axes. One line an op; a file a family; see docs/add-an-op.md."""

from __future__ import annotations

from graphprune.rules import attention, conv, frozen, linear, norm, pointwise, recurrent, shape  # noqa: F401
from graphprune.rules.registry import FROZEN, RULES, Facts, Op, Rule, Slot, rule

__all__ = ["FROZEN", "RULES", "Facts", "Op", "Rule", "Slot", "rule"]
