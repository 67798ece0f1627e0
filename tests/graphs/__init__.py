"""Random graphs made of the ops that have a rule: images, sequences and rows, and the ways from one to another.

Each step takes a value of the graph and puts new ones there; what nobody has read in the end is summed into the output.
"""

from __future__ import annotations

from tests.graphs import control, fused, image, integers, rows, tokens
from tests.graphs.maker import STEPS, Maker, Sample, samples

__all__ = ["STEPS", "Maker", "Sample", "control", "fused", "image", "integers", "rows", "samples", "tokens"]
