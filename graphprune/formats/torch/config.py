"""The configuration of a cut Hugging Face model: which of its integers must change so that it builds the cut model.

Nothing is known of any architecture. Integers of the config that equal a size that changed may take its new value; each
combination is tried by building the model on the meta device, until the shapes of all parameters are those of the cut
model and so is what it computes. A plan that cuts layers unequally has no such config, and the config stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import torch
from torch import nn

_TRIES = 512
Pair = tuple[int, int]


def update_config(module: nn.Module, pairs: Iterable[Pair], agrees: Callable[[nn.Module], bool]) -> bool:
    """Change ``module.config`` so that its class builds what ``module`` is; False, and no change, where none does.

    Equal shapes are not enough (an attention scale, a rotary table may follow from the config): the model built anew,
    with ``module``'s tensors, must satisfy ``agrees``.
    """
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return False
    wanted = _shapes(module)
    for values in _combinations(config, list(pairs)):
        trial = copy.deepcopy(config)
        for name, value in values.items():
            setattr(trial, name, value)
        if _built(type(module), trial) == wanted and agrees(_rebuilt(module, trial)):
            for name, value in values.items():
                setattr(config, name, value)
            return True
    return False


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _built(kind: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]] | None:
    try:
        with torch.device("meta"):
            return _shapes(kind(config))
    except Exception:  # a combination that makes no model
        return None


def _rebuilt(module: nn.Module, config: Any) -> nn.Module:
    twin = type(module)(config)
    twin.load_state_dict(module.state_dict())
    return twin.to(next(module.parameters()).device).eval()


def _combinations(config: Any, pairs: list[Pair]) -> Iterator[dict[str, int]]:
    """Assignments of new values, those that change most first."""
    options: dict[str, list[int]] = {}
    for name, value in vars(config).items():
        if type(value) is int and not name.startswith("_"):
            new = sorted({after for before, after in pairs if before == value and after != before})
            if new:
                options[name] = [*new, value]
    tries = 1
    for values in options.values():
        tries *= len(values)
    if tries <= _TRIES:
        for combination in product(*options.values()):
            yield dict(zip(options, combination, strict=True))
