"""How far activations are from the means and variances wanted of them, and which way inputs must go (DeepInversion).

Yin et al., "Dreaming to Distill", arXiv 1912.08795: what batch norms remember of training says which inputs it was on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from graphprune.consumers import Site
from graphprune.errors import UsageError
from graphprune.formats.torch.gradients import Subject, Traced
from graphprune.formats.torch.loss import class_loss
from graphprune.formats.torch.model import TorchModel
from graphprune.graph import Array

Pull = Callable[[Sequence[Mapping[str, Array]], Sequence[Array]], tuple[float, float, list[dict[str, Array]]]]
CLASSES = 0.1
"""The weight of `class_loss`: with more, images are so sure of their class that batch norms have no say."""
_SPREAD = 1e-5
"""Added to variances: what batch norms add, too."""


def pull(model: TorchModel, wanted: Mapping[Site, tuple[Array, Array]]) -> Pull:
    """A function of runs (inputs by name) and of labels, an array a run: where in [0, 1) a sample's class is among all.

    It returns how far the statistics of all runs together are from the mean and variance ``wanted`` at each site, the
    `class_loss` (0 where no output chooses classes), and the gradient of both by each input, a run each.
    UsageError where there is none.
    """
    return towards(Traced(model), wanted)


def towards(subject: Subject, wanted: Mapping[Site, tuple[Array, Array]]) -> Pull:
    """As `pull`, of any subject."""
    goals = {site: [torch.as_tensor(np.asarray(x)).float() for x in pair] for site, pair in wanted.items()}
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, value: Tensor) -> Tensor:
        if name in seen:
            seen[name].append(value)
        return value

    module, loss = subject.watched(watch), class_loss(subject.graph)

    def pulled(
        runs: Sequence[Mapping[str, Array]], labels: Sequence[Array]
    ) -> tuple[float, float, list[dict[str, Array]]]:
        leaves = [{name: torch.tensor(x).requires_grad_() for name, x in run.items()} for run in runs]
        seen.update({site.value: [] for site in goals})
        with torch.enable_grad():
            outputs = [subject.outputs(module, run) for run in leaves]
            unsure = loss(outputs, [torch.as_tensor(x) for x in labels])
            apart = torch.stack([_apart(torch.cat(seen[s.value]), s.axis, *goal) for s, goal in goals.items()]).sum()
            seen.clear()  # a subject may compute a value again on the way back
            flat = [leaf for run in leaves for leaf in run.values()]
            found = iter(torch.autograd.grad(apart + CLASSES * unsure, flat))
        return apart.item(), unsure.item(), [{name: next(found).numpy() for name in run} for run in leaves]

    def told(
        runs: Sequence[Mapping[str, Array]], labels: Sequence[Array]
    ) -> tuple[float, float, list[dict[str, Array]]]:
        try:
            return pulled(runs, labels)
        except RuntimeError as error:  # what torch says of inputs that nothing can be differentiated by
            raise UsageError(
                f"the model cannot be differentiated by its inputs: {str(error).splitlines()[0]}",
                hint="give --calib FILE",
            ) from error

    return told


def _apart(value: Tensor, axis: int, mean: Tensor, variance: Tensor) -> Tensor:
    """Mean over channels of how far one normal distribution is from another (Kullback-Leibler)."""
    others = [other for other in range(value.ndim) if other != axis]
    spread, centre = torch.var_mean(value, others, correction=0)
    wanted = variance + _SPREAD
    ratio = (spread + _SPREAD) / wanted
    return ((ratio + (centre - mean).square() / wanted - 1 - ratio.log()) / 2).mean()
