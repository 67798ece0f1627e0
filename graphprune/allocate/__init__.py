"""Allocators: how a budget is shared out between Dims. Registered by name; command line and docs read the registry."""

from __future__ import annotations

from graphprune.allocate.registry import ALLOCATORS, TRIES, Allocator, CostFunction, Counts, Problem, known
from graphprune.allocate.steps import edges

from graphprune.allocate import exact, search, threshold  # noqa: F401  isort: skip

__all__ = ["ALLOCATORS", "TRIES", "Allocator", "CostFunction", "Counts", "Problem", "edges", "known"]
