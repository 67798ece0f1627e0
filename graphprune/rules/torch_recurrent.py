"""LSTM, GRU and plain recurrent layers as torch calls them: all layers in one call, their states in one tensor.

The hidden state is one Dim over all layers and directions, because the stacked states share the axis.
"""

from __future__ import annotations

from graphprune.dims import Dim, product
from graphprune.rules.registry import STATE, Op, rule
from graphprune.rules.shape import ORDERED

GATES = {"lstm": 4, "gru": 3}

rule("lstm_cell", text="b i, b h, b h, (4 h) i, (4 h) h', (4 h), (4 h) -> b h, b h", macs="b 4 h i, b 4 h h", h=STATE)
rule("gru_cell", text="b i, b h, (3 h) i, (3 h) h', (3 h), (3 h) -> b h", macs="b 3 h i, b 3 h h", h=STATE)
rule("rnn_cell", text="b i, b h, h i, h h', h, h -> b h", macs="b h i, b h h", h=STATE)


@rule("torch_recurrent")
def torch_recurrent(op: Op) -> None:
    """ "t b i, l b h, (4 h) i, (4 h) h', (4 h), (4 h) -> t b (d h), l b h" a layer and direction; projections freeze"""
    ways = 2 if op.attr("bidirectional", False) else 1
    layers, count = op.attr("layers", 1), 4 if op.attr("has_biases", True) else 2
    states = 2 if op.node.kind == "lstm" else 1
    if not op.x or len(op.ins) != 1 + states + layers * ways * count:
        op.freeze_all("its weights are not those of plain layers: packed sequences and projections stay whole")
        return
    time, batch = (1, 0) if op.attr("batch_first", False) else (0, 1)
    direction, hidden = Dim(ways), Dim((op.y[2].size or 0) // ways)
    op.freeze(direction, "its positions are directions")
    op.tie_same(op.x, op.y, leave=[2])
    op.freeze(op.x[time], ORDERED)
    op.tie(op.y[2], product(direction, hidden))
    for state in (*op.ins[1 : 1 + states], *op.outs[1:]):
        stacked, among, width = state or ()
        op.freeze(stacked, "its positions are layers")
        op.tie(among, op.x[batch])
        op.tie(width, hidden)
    op.speak_of(op.x[2])
    op.mask(0, 2)
    op.role(hidden, STATE)
    for number in range(layers * ways):
        first = 1 + states + number * count
        _layer(op, range(first, first + count), op.x[2] if number < ways else op.y[2], hidden)


def _layer(op: Op, places: range, given: Dim, hidden: Dim) -> None:
    """The weights of one layer and direction: input, recurrent, and two biases."""
    gate = Dim(GATES.get(op.node.kind, 1))
    op.freeze(gate, "its positions are gates")
    for i in places:
        weight = op.ins[i] or ()
        op.tie(weight[0], product(gate, hidden))
        op.speak_of(weight[0])
    for i, dim in zip(places, (given, hidden), strict=False):
        op.tie((op.ins[i] or ())[1], dim)
        op.macs(gate.size or 1, *op.x[:2], hidden, dim)
        if dim is not op.x[2]:
            op.mask(i, 1)
