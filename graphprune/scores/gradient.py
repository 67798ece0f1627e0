"""Scores from gradients of the user's loss, for models that torch holds: before, after or without training.

All work on the product of a weight with its gradient (first order) or with the Hessian times its gradient (second), in
units of the loss, summed over everything a position's removal takes away. Because the unit is the same everywhere, no
weight is normalised.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.dims import Dim
from graphprune.graph import Array
from graphprune.scores.registry import Floats, Task, score
from graphprune.scores.weight import over_weights

_NEEDS = "gradients, labels"


@score("taylor", needs=_NEEDS)
def taylor(task: Task) -> dict[Dim, Floats]:
    """Sum of |weight x gradient|, element-wise (LLM-Pruner, arXiv 2305.11627; Molchanov et al., arXiv 1906.10771)."""
    return _over_batches(task, "gradient", np.abs, lambda sums: sums)


@score("taylor-vector", needs=_NEEDS)
def taylor_vector(task: Task) -> dict[Dim, Floats]:
    """|Sum of weight x gradient| a weight, vector-wise (LLM-Pruner, arXiv 2305.11627)."""
    return _over_batches(task, "gradient", lambda values: values, np.abs)


@score("fisher", needs=_NEEDS)
def fisher(task: Task) -> dict[Dim, Floats]:
    """Squared sum of weight x gradient, over batches: empirical Fisher (Theis et al., arXiv 1801.05787)."""
    return _over_batches(task, "gradient", lambda values: values, np.square)


@score("snip", needs=_NEEDS)
def snip(task: Task) -> dict[Dim, Floats]:
    """Connection sensitivity |weight x gradient| over its sum, before training (Lee et al., arXiv 1810.02340)."""
    found = _over_batches(task, "gradient", np.abs, lambda sums: sums)
    whole = sum(float(values.sum()) for values in found.values())
    return {dim: values / whole if whole else values for dim, values in found.items()}


@score("grasp", needs=_NEEDS)
def grasp(task: Task) -> dict[Dim, Floats]:
    """Weight x Hessian x gradient: keep what the gradient flow needs (Wang et al., arXiv 2002.07376)."""
    found = _over_batches(task, "hessian", lambda values: values, lambda sums: sums)
    lowest = min((float(values.min()) for values in found.values()), default=0.0)
    return {dim: values - lowest for dim, values in found.items()}


@score("crop", needs=_NEEDS)
def crop(task: Task) -> dict[Dim, Floats]:
    """|Weight x Hessian x gradient|: change the gradient flow least (CroP, Rachwan et al., arXiv 2206.10451)."""
    return _over_batches(task, "hessian", lambda values: values, np.abs)


@score("synflow", needs="gradients")
def synflow(task: Task) -> dict[Dim, Floats]:
    """|Weight| x gradient of the summed output of the network of absolute weights (Tanaka et al., arXiv 2006.05467)."""
    return _over_batches(task, "synflow", np.abs, lambda sums: sums)


def _over_batches(
    task: Task, kind: str, element: Callable[[Array], Array], finish: Callable[[Floats], Floats]
) -> dict[Dim, Floats]:
    assert task.gradients is not None, "score_atoms has seen to it"
    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    for gradients in task.gradients(kind):

        def product(name: str, weight: Array, gradients: object = gradients) -> Array | None:
            gradient = gradients.get(name)  # type: ignore[attr-defined]
            return None if gradient is None else weight * gradient

        found = over_weights(task, element, finish, read=product, normalise=False)
        for dim, values in found.items():
            total[dim] += values
    return total
