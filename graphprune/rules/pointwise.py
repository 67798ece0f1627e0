"""Ops that treat every element alike: activations, arithmetic, comparison, casts."""

from __future__ import annotations

from graphprune.rules.registry import Op, rule

rule(
    *"abs acos acosh asin asinh atan atanh bitwise_not cast ceil celu cos cosh elu erf exp floor gelu".split(),
    *"hard_sigmoid hard_swish identity is_inf is_nan leaky_relu log mish neg not reciprocal relu round".split(),
    *"selu shrink sigmoid sign sin sinh softplus softsign sqrt swish tan tanh thresholded_relu".split(),
    *"com.microsoft.gelu com.microsoft.quick_gelu".split(),
    text="... -> ...",
)
rule(
    *"add and bit_shift bitwise_and bitwise_or bitwise_xor div equal greater greater_or_equal less".split(),
    *"less_or_equal mod mul or pow prelu sub swiglu xor com.microsoft.bias_gelu com.microsoft.fast_gelu".split(),
    text="..., ... -> ...",
)
rule("where", "clip", text="..., ..., ... -> ...")


@rule("dropout")
def dropout(op: Op) -> None:
    """ "..., , -> ..., ..."; frozen in training mode"""
    training = op.known(2)
    if op.given("training_mode", 2) and (training is None or training.any()):
        op.freeze_all("Dropout is in training mode: export the model in evaluation mode")
    else:
        op.axes("..., , -> ..., ...")


@rule("max", "min", "sum", "mean")
def variadic(op: Op) -> None:
    """any number of "..." -> "..." """
    op.axes(", ".join(["..."] * len(op.ins)) + " -> ...")


@rule("cast_like")
def cast_like(op: Op) -> None:
    """ "..., type -> ..." (the second input only lends its type, so its axes stay whole)"""
    op.broadcast(op.x, op.y)
