"""Scores from gradients of the user's loss: before, after or without training.

Most work on the product of a weight with its gradient (first order) or with the Hessian times its gradient (second), in
units of the loss, summed over everything a position's removal takes away. Because the unit is the same everywhere, no
weight is normalised. Others multiply activations with the gradients by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from graphprune.consumers import consumers
from graphprune.dims import Dim, tally
from graphprune.errors import UsageError
from graphprune.graph import Array
from graphprune.scores.registry import Floats, Task, score
from graphprune.scores.weight import over_weights, relative

_NEEDS = "gradients, labels"
_ALIGNED, _KEPT = 0.2, 0.5
"""How much the alignment of gradients counts in gaprune, and how much the weights themselves."""
_RANK, _MEMORY = 8, 0.9
"""Rank of the adapters of loraprune, and the share of its moving average that stays at each batch."""


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


@score("nirvana", needs=_NEEDS)
def nirvana(task: Task) -> dict[Dim, Floats]:
    """|Weight x gradient over all batches|: the neural tangent kernel under Adam (NIRVANA, arXiv 2509.14230).

    The gradient is of the loss, where the paper has the output; its shares for attention and MLP are the budget's.
    """
    (sums,) = _sums(task, 1)
    return _products(task, sums.mean)


@score("disturbed-taylor", needs="gradients")
def disturbed_taylor(task: Task) -> dict[Dim, Floats]:
    """Sum of |weight x gradient| of the distance to the model's own outputs with noise (SlimSAM, arXiv 2312.05284)."""
    return _over_batches(task, "disturbed", np.abs, lambda sums: sums)


@score("gaprune", needs=_NEEDS)
def gaprune(task: Task) -> dict[Dim, Floats]:
    """What a domain needs more than general data do, and where they agree (GAPrune, arXiv 2509.10844).

    Batches take turns: the first, third, ... are general, the others of the domain. For each position D and G are sums
    of squared gradient x |weight| on domain and general data, M is that of the root of |weight|, each brought to a mean
    of one, and c is the cosine between the gradients of the two: (D - G) (1 + 0.2 c) + 0.5 M, from 0 up. The paper has
    single weights.
    """
    general, domain = _sums(task, 2)
    needs = [_products(task, side.square) for side in (domain, general)]
    kept = over_weights(task, lambda weight: np.sqrt(np.abs(weight)), lambda sums: sums, normalise=False)
    across, *own = (_dots(task, a, b) for a, b in ((general, domain), (general, general), (domain, domain)))
    found = {}
    for dim, weights in kept.items():
        more, less, size = (relative(values) for values in (needs[0][dim], needs[1][dim], weights))
        norms = np.sqrt(own[0][dim] * own[1][dim])
        cosine = np.divide(across[dim], norms, out=np.zeros_like(norms), where=norms > 0)
        values = (more - less) * (1 + _ALIGNED * cosine) + _KEPT * size
        found[dim] = values - values.min()
    return found


@score("loraprune", needs=_NEEDS)
def loraprune(task: Task) -> dict[Dim, Floats]:
    """|Weight x gradient as low-rank adapters see it|, a moving average over batches (LoRAPrune, arXiv 2305.18403).

    Adapters B A as they start out, B zero and A random: through them a gradient G is seen as G Aᵀ A. Each weight's
    scores are brought to norm one, as in the paper. Vectors have no adapter.
    """
    draw = np.random.default_rng(task.seed).standard_normal
    adapters: dict[str, Floats] = {}

    def seen(name: str, gradient: Array) -> Array | None:
        if gradient.ndim < 2:
            return None
        rows = gradient.reshape(len(gradient), -1)
        adapter = adapters.setdefault(name, draw((_RANK, rows.shape[1])))
        return ((rows @ adapter.T) @ adapter).reshape(gradient.shape)

    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    for found in _batches(task, "gradient", np.abs, lambda sums: sums / (np.linalg.norm(sums) or 1.0), seen):
        total = {dim: _MEMORY * values + (1 - _MEMORY) * found[dim] for dim, values in total.items()}
    return total


@score("lrp", needs=_NEEDS, across="same")
def lrp(task: Task) -> dict[Dim, Floats]:
    """Sum of |relevance| of the activations of a position (Pruning by Explaining, Yeom et al., arXiv 1912.08881).

    Relevance is activation x gradient, which is what layer-wise propagation finds by its z rule in layers of ReLU; the
    paper's own rule keeps positive parts only. It is the same in all layers together, so that Dims compare as they are.
    """
    if task.signals is None:
        raise UsageError(
            "the score 'lrp' needs batches to take gradients of activations on", hint="give calib=[...], inputs by name"
        )
    found = consumers(task.analysis)
    dims = {(site.value, site.axis): consumer.channels for consumer in found for site in consumer.sites}
    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    for signals in task.signals(dict.fromkeys(value for value, _ in dims)):
        for (value, axis), dim in dims.items():
            for atom, part in tally(dim, _relevance(axis, *signals[value]), total).items():
                total[atom] += part
    return total


def _relevance(axis: int, activation: Array, gradient: Array) -> Floats:
    products = np.abs(activation.astype(np.float64) * gradient)
    return np.asarray(products.sum(tuple(other for other in range(products.ndim) if other != axis)), np.float64)


@dataclass
class _Sums:
    """Gradients of a set of batches, and their squares, added up by weight name."""

    count: int = 0
    total: dict[str, Array] = field(default_factory=dict)
    squares: dict[str, Array] = field(default_factory=dict)

    def add(self, gradients: Mapping[str, Array]) -> None:
        """Count a batch in."""
        self.count += 1
        for name, gradient in gradients.items():
            self.total[name] = self.total.get(name, 0.0) + gradient
            self.squares[name] = self.squares.get(name, 0.0) + np.square(gradient)

    def mean(self, name: str) -> Array | None:
        """The gradient over all batches; None where there is none."""
        return self.total[name] / self.count if name in self.total else None

    def square(self, name: str) -> Array | None:
        """The mean squared gradient: the diagonal of the empirical Fisher matrix."""
        return self.squares[name] / self.count if name in self.squares else None


def _sums(task: Task, sets: int) -> list[_Sums]:
    """Gradients of ``sets`` sets of batches, which take turns."""
    assert task.gradients is not None, "score_atoms has seen to it"
    found = [_Sums() for _ in range(sets)]
    for number, gradients in enumerate(task.gradients("gradient")):
        found[number % sets].add(gradients)
    if not found[-1].count:
        raise UsageError(
            f"there are fewer than {sets} batches to take gradients on",
            hint=f"give at least {sets}: batches of {sets} sets of data take turns",
        )
    return found


def _products(task: Task, factor: Callable[[str], Array | None]) -> dict[Dim, Floats]:
    """Sums of |weight x factor|."""

    def product(name: str, weight: Array) -> Array | None:
        found = factor(name)
        return None if found is None else weight * found

    return over_weights(task, np.abs, lambda sums: sums, read=product, normalise=False)


def _dots(task: Task, a: _Sums, b: _Sums) -> dict[Dim, Floats]:
    """Scalar products of two gradients, of everything that a position has in weights."""

    def product(name: str, weight: Array) -> Array | None:
        one, other = a.mean(name), b.mean(name)
        return None if one is None or other is None else one * other

    return over_weights(task, lambda values: values, lambda sums: sums, read=product, normalise=False)


def _over_batches(
    task: Task, kind: str, element: Callable[[Array], Array], finish: Callable[[Floats], Floats]
) -> dict[Dim, Floats]:
    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    for found in _batches(task, kind, element, finish, lambda name, gradient: gradient):
        for dim, values in found.items():
            total[dim] += values
    return total


def _batches(
    task: Task,
    kind: str,
    element: Callable[[Array], Array],
    finish: Callable[[Floats], Floats],
    seen: Callable[[str, Array], Array | None],
) -> Iterator[dict[Dim, Floats]]:
    """For each batch the products of weights with their gradients, as ``seen`` (name, gradient), added up."""
    assert task.gradients is not None, "score_atoms has seen to it"
    for gradients in task.gradients(kind):

        def product(name: str, weight: Array, gradients: Mapping[str, Array] = gradients) -> Array | None:
            gradient = seen(name, gradients[name]) if name in gradients else None
            return None if gradient is None else weight * gradient

        yield over_weights(task, element, finish, read=product, normalise=False)
