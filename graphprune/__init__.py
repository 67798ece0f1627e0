"""graphprune: shrink exported neural networks by structured pruning, with a proof that the surgery is right.

    result = graphprune.prune("model.onnx", macs=0.5)
    print(result.report)
    result.save("small.onnx")

`load` analyses a model without changing it. Neither torch nor onnx is imported before a model is read.
"""

from __future__ import annotations

from graphprune.analysis import Analysis, Atom, analyse
from graphprune.budget import Request
from graphprune.errors import (
    BudgetError,
    GraphpruneError,
    PlanError,
    ReadError,
    UsageError,
    VerifyError,
    WriteError,
)
from graphprune.iterate import prune_in_steps
from graphprune.pipeline import Loaded, Result, load, prune, verify
from graphprune.plan import Plan
from graphprune.report import Report

__version__ = "0.1.0"
__all__ = [
    "Analysis",
    "Atom",
    "BudgetError",
    "GraphpruneError",
    "Loaded",
    "Plan",
    "PlanError",
    "ReadError",
    "Report",
    "Request",
    "Result",
    "UsageError",
    "VerifyError",
    "WriteError",
    "analyse",
    "load",
    "prune",
    "prune_in_steps",
    "verify",
]
