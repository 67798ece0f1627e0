"""The common check of tools/bench_torch_pruning.py tells a cut from what only looks like one; the page adds up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.transformers_zoo import generic
from tools import zeroed
from tools.bench_torch_pruning import GROWTH, HEADER, Row, best, failures, growth, line, summary

KEPT, INNER = torch.tensor([1, 2, 5, 6]), torch.tensor([0, 2, 5])


class Network(nn.Module):
    """Three linear layers, a norm between the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.three = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Any:
        """A tensor."""
        return self.three(self.two(self.norm(self.one(x))))


def cut(dense: Network, norm: torch.Tensor = KEPT) -> Network:
    """The network with four of its first eight positions, those of the norm taken as given, and three of the six."""
    small = copy.deepcopy(dense)
    small.norm.normalized_shape = (len(KEPT),)
    for part, index in ((small.one, KEPT), (small.norm, norm), (small.two, INNER)):
        part.weight, part.bias = nn.Parameter(part.weight[index]), nn.Parameter(part.bias[index])
    small.two.weight = nn.Parameter(small.two.weight[:, KEPT])
    small.three.weight = nn.Parameter(small.three.weight[:, INNER])
    return small


@pytest.fixture(name="dense")
def _dense() -> Network:
    torch.manual_seed(0)
    network = generic(Network())
    assert isinstance(network, Network)
    return network


def test_check_holds_for_a_cut(dense: Network) -> None:
    assert zeroed.error(dense, cut(dense), {"x": torch.randn(4, 3).double()}) < 1e-12


@pytest.mark.parametrize("norm", [[1, 2, 6, 5], [0, 2, 5, 6]])
def test_check_sees_a_norm_that_is_cut_otherwise(dense: Network, norm: list[int]) -> None:
    assert zeroed.error(dense, cut(dense, torch.tensor(norm)), {"x": torch.randn(4, 3).double()}) > 1e-3


def test_positions() -> None:
    table = np.random.default_rng(0).random((5, 6, 2))
    rows, columns = [0, 3], [5, 1, 2]
    found = zeroed.positions(table, table[np.ix_(rows, columns, [0, 1])])
    assert [list(index) for index in found] == [rows, columns, [0, 1]]
    with pytest.raises(ValueError, match=r"weight \[5, 6, 2\] is no slice of the dense \[5, 6, 2\]"):
        zeroed.positions(table, table + 1, "weight")


def test_page() -> None:
    """The best way is the smallest that works; every line has as many cells as its header; failures are listed."""
    ours = Row("graphprune", kept=0.2, zeros=0.0, export=1.0, analysis=0.1)
    wrong = Row("whole heads", kept=0.1, zeros=0.5)
    right = Row("size of heads", kept=0.3, zeros=1e-9, hints=3, analysis=0.1)
    theirs = [Row("no hints", error="its outputs are ..."), wrong, right, Row("attention left alone")]
    assert best(theirs) is right
    assert best(theirs[:2]) is None
    for rows in (theirs, theirs[:2]):
        assert line("name", ours, rows).count("|") == HEADER.count("|") + 2
    table = list(growth({"llama-8": (ours, theirs), "llama-64": (ours, theirs[:2])}))[2:]
    assert {row.count("|") for row in table} == {GROWTH.count("|") + 2}
    assert "| works, of 2 | 2 | 0 | 1 |" in list(summary({"a": (ours, theirs), "b": (ours, theirs[:2])}))
    assert "- a, Torch-Pruning (attention left alone): it removes nothing" in list(failures({"a": (ours, theirs)}))
