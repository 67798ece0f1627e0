"""Recurrent layers: the hidden state is one Dim, met in every gate and again as a contracted axis."""

from __future__ import annotations

from graphprune.rules.registry import STATE, Op, rule


@rule("lstm")
def lstm(op: Op) -> None:
    """ "t b i, d (4 h) i, d (4 h) h', d (8 h), b, d b h, d b h, d (3 h) -> t d b h, d b h, d b h" """
    _recurrent(op, "(4 h)", "(8 h)", ["d b h", "d b h", "d (3 h)"], ["d b h", "d b h"], 4)


@rule("gru")
def gru(op: Op) -> None:
    """ "t b i, d (3 h) i, d (3 h) h', d (6 h), b, d b h -> t d b h, d b h" """
    _recurrent(op, "(3 h)", "(6 h)", ["d b h"], ["d b h"], 3)


@rule("rnn")
def rnn(op: Op) -> None:
    """ "t b i, d h i, d h h', d (2 h), b, d b h -> t d b h, d b h" """
    _recurrent(op, "h", "(2 h)", ["d b h"], ["d b h"], 1)


def _recurrent(op: Op, gates: str, bias: str, states: list[str], finals: list[str], count: int) -> None:
    """``layout`` 1 puts the batch first in the sequence and the states."""
    if op.attr("direction", "forward") == "reverse" and op.attr("layout", 0):
        op.freeze_all("reversed direction with the batch first")
        return
    x, y = "t b i", "t d b h"
    if op.attr("layout", 0):
        x, y = "b t i", "b t d h"
        states, finals = ([text.replace("d b h", "b d h") for text in group] for group in (states, finals))
    recurrent = "d h h'" if gates == "h" else f"d {gates} h'"
    text = f"{', '.join([x, f'd {gates} i', recurrent, f'd {bias}', 'b', *states])} -> {', '.join([y, *finals])}"
    letters = op.axes(text, sizes={"h": "hidden_size"}, macs=f"t b d {count} h i, t b d {count} h h")
    if letters:
        op.role(letters["h"], STATE)
        op.freeze(letters["d"], "it is the direction of the sequence")
        op.freeze(letters["t"], "it is the order of the sequence")
