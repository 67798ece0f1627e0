"""graphprune: shrink exported neural networks by structured pruning, with a proof that the surgery is right.

    result = graphprune.prune("model.onnx", macs=0.5)
    print(result.report)
    result.save("small.onnx")

`load` analyses a model without changing it. Neither torch nor onnx is imported before a model is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from graphprune import formats
from graphprune.analysis import Analysis, Atom, analyse
from graphprune.budget import Request
from graphprune.data import Calibration
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
from graphprune.loaded import Loaded, Result, load
from graphprune.pipeline import prune, verify
from graphprune.plan import Plan
from graphprune.report import Report
from graphprune.sensitivity import Sensitivity
from graphprune.survey import pareto, sensitivity

__version__ = "0.1.0"
__all__ = [
    "Analysis",
    "Atom",
    "BudgetError",
    "Calibration",
    "GraphpruneError",
    "Loaded",
    "Plan",
    "PlanError",
    "ReadError",
    "Report",
    "Request",
    "Result",
    "Sensitivity",
    "UsageError",
    "VerifyError",
    "WriteError",
    "analyse",
    "load",
    "pareto",
    "prune",
    "prune_in_steps",
    "reestimate_batch_norm",
    "sensitivity",
    "verify",
]


def reestimate_batch_norm(model: Any, batches: Iterable[Any], loss: Callable[[Any, Any], Any] | None = None) -> int:
    """Set the running mean and variance of every batch norm of a model to those of all ``batches``, in place.

    A cut changes what batch norms see; this mends their statistics without training. ``model`` is ``result.model``, any
    nn.Module, or an onnx.ModelProto (save it with onnx.save). For a module, ``loss`` and ``batches`` are what scores
    take: ``loss(model, batch)`` runs the model, and what it returns is ignored; without it a mapping is given as
    keywords, and the first of a tuple or list, or the batch itself, as the one argument. A protobuf takes batches of
    inputs by name, and no loss.

    Each batch is normalised by its own statistics, with dropout off; those of all batches are then put together by
    their number of values (not by momentum), as in PreciseBN (Wu & Johnson, arXiv 2105.07576). Parameters, modes and
    the count of batches seen stay as they are. Returns how many batch norms were set. UsageError, with nothing changed,
    where there are no batches, no batch norm runs, or a statistic is not finite.
    """
    return formats.of(model).reestimate_batch_norm(model, batches, loss)
