"""Quantised values: scale and zero point are weights on the same Dim; blocks stay whole."""

from __future__ import annotations

from graphprune.rules.registry import Op, rule


@rule("quantize_linear", "dequantize_linear")
def quantize(op: Op) -> None:
    """ "... -> ...", scale and zero point along `axis`; blocks stay whole"""
    op.tie_same(op.x, op.y)
    axis = op.attr("axis", 1)
    for layout in op.ins[1:]:
        if layout is None:
            continue
        if len(layout) == 1 and layout[0].size != 1:
            op.tie(layout[0], op.x[axis])
        elif len(layout) > 1:
            for dim, scale in zip(op.x, layout, strict=True):
                if dim.size == scale.size:
                    op.tie(dim, scale)
                else:
                    op.freeze(dim, "it is quantised in blocks")
                    op.freeze(scale, "it is quantised in blocks")
