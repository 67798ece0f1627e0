"""Where statistics come from: files, arrays in memory, the model itself, noise, or no data at all.

A `Calibration` says what is wanted, `bring` makes `Data` of it: batches of inputs that the model takes, and words for
the report. Nothing here knows an architecture: what a model can write or match is read off its graph.
"""

from graphprune.data.bring import bring
from graphprune.data.wanted import WORDS, Calibration, Data

__all__ = ["WORDS", "Calibration", "Data", "bring"]
