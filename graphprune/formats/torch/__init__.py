"""Torch modules traced by torch.export: ``read, apply, run, save``, on the same rules as ONNX files."""

from __future__ import annotations

import graphprune.rules.torch
import graphprune.rules.torch_recurrent  # noqa: F401
from graphprune.formats.torch.calls import vocabulary
from graphprune.formats.torch.gradients import gradients, signals
from graphprune.formats.torch.inplace import cut_in_place
from graphprune.formats.torch.model import TorchModel, native
from graphprune.formats.torch.moments import moments, replaced
from graphprune.formats.torch.proof import (
    check,
    forced,
    give,
    last,
    mask,
    maskable,
    masked,
    nudge,
    remarks,
    run,
    same,
    trials,
    unrounded,
)
from graphprune.formats.torch.pull import pull
from graphprune.formats.torch.read import read
from graphprune.formats.torch.recover import reestimate_batch_norm
from graphprune.formats.torch.surgery import apply
from graphprune.formats.torch.timing import timings, version
from graphprune.formats.torch.walks import walk
from graphprune.formats.torch.write import disk_bytes, exported, save

__all__ = [
    "TorchModel",
    "apply",
    "check",
    "cut_in_place",
    "disk_bytes",
    "exported",
    "forced",
    "give",
    "gradients",
    "last",
    "mask",
    "maskable",
    "masked",
    "moments",
    "native",
    "nudge",
    "pull",
    "read",
    "reestimate_batch_norm",
    "remarks",
    "replaced",
    "run",
    "same",
    "save",
    "signals",
    "timings",
    "trials",
    "unrounded",
    "version",
    "vocabulary",
    "walk",
]
