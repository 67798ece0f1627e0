"""ONNX files: ``read, apply, run, save``.

The protobuf stays the document. Analysis sees a format-free view of it; a cut edits the few nodes, weights and shapes
that change and leaves everything else byte for byte as it was, unknown fields included.
"""

from __future__ import annotations

from graphprune.formats.onnx.functions import remarks
from graphprune.formats.onnx.gradients import gradients, pull, signals, walk
from graphprune.formats.onnx.last import last
from graphprune.formats.onnx.model import OnnxModel, native
from graphprune.formats.onnx.moments import moments, replaced
from graphprune.formats.onnx.names import vocabulary
from graphprune.formats.onnx.proof import check, forced, mask, maskable, masked, nudge
from graphprune.formats.onnx.read import read
from graphprune.formats.onnx.recover import reestimate_batch_norm
from graphprune.formats.onnx.runtime import give, run, trials
from graphprune.formats.onnx.surgery import apply
from graphprune.formats.onnx.timing import timings, version
from graphprune.formats.onnx.unrounded import unrounded
from graphprune.formats.onnx.write import cut_in_place, disk_bytes, exported, same, save

__all__ = [
    "OnnxModel",
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
