"""Reductions: sums may lose positions exactly (a zero adds nothing), the others not; and positions as results."""

from __future__ import annotations

from collections.abc import Sequence

from tests.build import Net
from tests.cases.table import STANDARD, add, case

ADDITIVE = ("reduce_sum", "reduce_l1", "reduce_l2", "reduce_sum_square")
OTHERS = ("reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_log_sum", "reduce_log_sum_exp")


def _reduce(op: str, opset: int, axes: Sequence[int] | None, keepdims: int, free: str) -> None:
    """``axes`` as an attribute before opset 18 (13 for sums), as an input since."""
    as_input = opset >= (13 if op == "reduce_sum" else 18)

    def build(net: Net) -> None:
        inputs = [net.const(list(axes))] if axes is not None and as_input else []
        attrs = {"axes": list(axes)} if axes is not None and not as_input else {}
        x = net.free(3, 4, 5, positive=op in ("reduce_prod", "reduce_log_sum"))
        net.sink(net.op(STANDARD[op], x, *inputs, keepdims=keepdims, name="tested", **attrs))

    where = "all" if axes is None else " ".join(map(str, axes))
    add(op, f"opset {opset} axes {where} keepdims {keepdims}", free, build, opset=opset)


for _op in (*ADDITIVE, *OTHERS):
    _s = "+" if _op in ADDITIVE else "~"
    _reduce(_op, 18, [1], 1, f"+{_s}+ . -> +.+")
    _reduce(_op, 18, [-1, 0], 0, f"{_s}+{_s} . -> +")
    _reduce(_op, 18, None, 1, f"{_s}{_s}{_s} -> ...")
    _reduce(_op, 12, [-2], 0, f"+{_s}+ -> ++")
    _reduce(_op, 12, [0, 2], 1, f"{_s}+{_s} -> .+.")
    _reduce(_op, 12, None, 0, f"{_s}{_s}{_s} -> 1")


@case("reduce_sum", "no axes, nothing to do", "+++ . -> +++", opset=13)
def reduce_nothing(net: Net) -> None:
    net.sink(net.op("ReduceSum", net.free(3, 4, 5), net.const([]), noop_with_empty_axes=1, name="tested"))


@case("reduce_sum", "empty axes mean all", "+++ . -> ...", opset=13)
def reduce_empty(net: Net) -> None:
    net.sink(net.op("ReduceSum", net.free(3, 4, 5), net.const([]), name="tested"))


def _arg(op: str, axis: int, keepdims: int, free: str) -> None:
    def build(net: Net) -> None:
        net.sink(net.op(STANDARD[op], net.free(3, 4, 5), axis=axis, keepdims=keepdims, name="tested"))

    add(op, f"axis {axis} keepdims {keepdims}", free, build)


for _op in ("arg_max", "arg_min"):
    _arg(_op, 1, 1, "+.+ -> +.+")
    _arg(_op, -1, 0, "++. -> ++")


@case("top_k", "", "++. . -> ++. ++.")
def top_k(net: Net) -> None:
    values, where = net.ops("TopK", net.free(3, 4, 5), net.const([2]), outs=2, name="tested")
    net.sink(net.op("Add", values, net.op("Cast", where, to=1)))


@case("top_k", "axis 1, k an attribute", "+.+ -> +.+ +.+", opset=9)
def top_k_old(net: Net) -> None:
    values, where = net.ops("TopK", net.free(3, 4, 5), k=2, axis=1, outs=2, name="tested")
    net.sink(net.op("Add", values, net.op("Cast", where, to=1)))


def _cumulative(op: str, axis: int, free: str, opset: int) -> None:
    def build(net: Net) -> None:
        net.sink(net.op(STANDARD[op], net.free(3, 4, 5), net.const(axis), exclusive=1, name="tested"))

    add(op, f"axis {axis}", f"{free} 1 -> {free}", build, opset=opset)


_cumulative("cum_sum", 1, "+.+", 14)
_cumulative("cum_sum", -1, "++.", 14)
_cumulative("cum_prod", 1, "+.+", 26)
_cumulative("cum_prod", -1, "++.", 26)
