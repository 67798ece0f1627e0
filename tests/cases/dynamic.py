"""Ops met with a batch, or a sequence, whose size is only known when the model runs: all else stays free."""

from __future__ import annotations

import numpy as np

from tests.build import FEATURES, INT64, OUTPUTS, Net
from tests.cases.table import case


def batch(net: Net, *shape: int) -> str:
    """Activations (N, *shape), all axes but the first free."""
    size = int(np.prod(shape))
    flat = net.op("Gemm", net.input("N", FEATURES), net.weight(FEATURES, size, fan=FEATURES), net.weight(size))
    return net.op("Reshape", net.op("Elu", flat), net.const([-1, *shape]))


def tokens(net: Net, size: int) -> str:
    """Activations (N, T, size)."""
    return net.op("Elu", net.op("MatMul", net.input("N", "T", FEATURES), net.weight(FEATURES, size, fan=FEATURES)))


def sink(net: Net, name: str, *shape: int) -> None:
    """Sum over all axes of ``shape``, for each of the batch; whatever stands in front stays."""
    size = int(np.prod(shape))
    if len(shape) > 1:
        name = net.op("Reshape", name, net.const([-1, size]))
    net.output(net.op("MatMul", name, net.weight(size, OUTPUTS, fan=size)))


@case("reshape", "batch copied", ".+++ . -> .++")
def reshape_copied(net: Net) -> None:
    sink(net, net.op("Reshape", batch(net, 3, 4, 5), net.const([0, 12, 5]), name="tested"), 12, 5)


@case("reshape", "batch follows", ".+++ . -> .++")
def reshape_follows(net: Net) -> None:
    sink(net, net.op("Reshape", batch(net, 3, 4, 5), net.const([-1, 3, 20]), name="tested"), 3, 20)


@case("reshape", "batch and sequence follow", "..+ . -> .+")
def reshape_tokens(net: Net) -> None:
    sink(net, net.op("Reshape", tokens(net, 6), net.const([-1, 6]), name="tested"), 6)


@case("reshape", "batch computed", ".+++ . -> .+")
def reshape_computed(net: Net) -> None:
    x = batch(net, 3, 4, 5)
    first = net.op("Gather", net.op("Shape", x), net.const([0]))
    target = net.op("Concat", first, net.const([60]), axis=0)
    sink(net, net.op("Reshape", x, target, name="tested"), 60)


@case("reshape", "heads of a sequence", "..+ . -> ..++")
def reshape_heads(net: Net) -> None:
    heads = net.op("Reshape", tokens(net, 12), net.const([0, 0, 3, 4]), name="tested")
    back = net.op("Reshape", net.op("Tanh", heads), net.const([0, 0, -1]))
    sink(net, back, 12)


@case("reshape", "heads joined to the batch", "..++ . -> ++")
def reshape_joined(net: Net) -> None:
    """(N·T·heads, width): the product holds sizes that nobody knows, and two factors that may be cut."""
    heads = net.op("Reshape", tokens(net, 12), net.const([0, 0, 3, 4]))
    flat = net.op("Reshape", heads, net.const([-1, 4]), name="tested")
    back = net.op("Reshape", net.op("Tanh", flat), net.op("Shape", heads))
    net.output(net.op("Einsum", back, net.weight(3, 4, OUTPUTS, fan=12), equation="nthd,hdo->nto"))


@case("flatten", "batch", ".+++ -> .+")
def flatten(net: Net) -> None:
    sink(net, net.op("Flatten", batch(net, 3, 4, 5), name="tested"), 60)


@case("transpose", "batch last and back", ".++ -> +.+")
def transpose(net: Net) -> None:
    turned = net.op("Transpose", batch(net, 3, 5), perm=[1, 0, 2], name="tested")
    sink(net, net.op("Transpose", net.op("Tanh", turned), perm=[1, 0, 2]), 3, 5)


@case("expand", "batch computed", ".+ . -> .+")
def expand(net: Net) -> None:
    x = batch(net, 6)
    rows = net.op("Expand", net.weight(1, 6), net.op("Shape", x), name="tested")
    sink(net, net.op("Mul", rows, x), 6)


@case("expand", "a class token for each", "..+ . -> ..+")
def class_token(net: Net) -> None:
    x = tokens(net, 6)
    first = net.op("Gather", net.op("Shape", x), net.const([0]))
    target = net.op("Concat", first, net.const([1]), net.const([6]), axis=0)
    token = net.op("Expand", net.weight(1, 1, 6), target, name="tested")
    sink(net, net.op("Concat", token, x, axis=1), 6)


@case("concat", "along a dynamic axis", "..+ ..+ -> ..+")
def concat(net: Net) -> None:
    sink(net, net.op("Concat", tokens(net, 6), tokens(net, 6), axis=1, name="tested"), 6)


@case("slice", "all but the last token", "..+ . . . -> ..+")
def slice_tokens(net: Net) -> None:
    inputs = net.const([0]), net.const([-1]), net.const([1])
    sink(net, net.op("Slice", tokens(net, 6), *inputs, name="tested"), 6)


@case("gather", "the first token", "..+ 1 -> .+")
def gather(net: Net) -> None:
    sink(net, net.op("Gather", tokens(net, 6), net.const(0), axis=1, name="tested"), 6)


@case("squeeze", "an axis of one", ".+.+ . -> .++")
def squeeze(net: Net) -> None:
    sink(net, net.op("Squeeze", batch(net, 3, 1, 5), net.const([2]), name="tested"), 3, 5)


@case("matmul", "attention over a dynamic sequence", ".+.+ .++. -> .+..")
def attention(net: Net) -> None:
    parts = [net.op("Reshape", tokens(net, 12), net.const([0, 0, 3, 4])) for _ in range(3)]
    q, v = (net.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
    k = net.op("Transpose", parts[1], perm=[0, 2, 3, 1])
    seen = net.op("Softmax", net.op("MatMul", q, k, name="tested"))
    mixed = net.op("Transpose", net.op("MatMul", seen, v), perm=[0, 2, 1, 3])
    sink(net, net.op("Reshape", mixed, net.const([0, 0, 12])), 12)


@case("attention", "a dynamic sequence", "..+ ..+ ..+ -> ..+", opset=23)
def fused(net: Net) -> None:
    inputs = [tokens(net, 12) for _ in range(3)]
    heads = {"q_num_heads": 3, "kv_num_heads": 3}
    sink(net, net.op("Attention", *inputs, name="tested", **heads), 12)


@case("lstm", "a dynamic batch", "..+ .++ .++ .+ -> ...+ ..+ ..+")
def lstm(net: Net) -> None:
    x = net.op("Transpose", tokens(net, 4), perm=[1, 0, 2])
    weights = net.weight(1, 20, 4, fan=4), net.weight(1, 20, 5, fan=5), net.weight(1, 40)
    for name in net.ops("LSTM", x, *weights, outs=3, hidden_size=5, name="tested"):
        sink(net, name, 5)


@case("tile", "the batch, a computed number of times", ".+ . -> .+")
def tile(net: Net) -> None:
    x = batch(net, 6)
    first = net.op("Gather", net.op("Shape", x), net.const([0]))
    repeats = net.op("Concat", first, net.const([1]), axis=0)
    sink(net, net.op("Tile", net.weight(1, 6), repeats, name="tested"), 6)
    sink(net, x, 6)


@case("tile", "the batch, as torch's older exporter counts", ".+ . -> .+")
def tile_counted(net: Net) -> None:
    x = batch(net, 6)
    first = net.op("Gather", net.op("Shape", x), net.const([0]))
    counts = net.op("OneHot", net.const([0]), net.const(2), net.op("Concat", net.const([1]), first, axis=0))
    repeats = net.op("Reshape", counts, net.const([-1]))
    sink(net, net.op("Tile", net.weight(1, 6), repeats, name="tested"), 6)
    sink(net, x, 6)


@case("constant_of_shape", "first state of a dynamic batch", ". -> ..+")
def first_state(net: Net) -> None:
    x = net.op("Transpose", tokens(net, 4), perm=[1, 0, 2])
    second = net.op("Gather", net.op("Shape", x), net.const([1]))
    state = net.op("ConstantOfShape", net.op("Concat", net.const([1]), second, net.const([5]), axis=0), name="tested")
    weights = net.weight(1, 15, 4, fan=4), net.weight(1, 15, 5, fan=5), net.weight(1, 30)
    for name in net.ops("GRU", x, *weights, "", state, outs=2, hidden_size=5):
        sink(net, name, 5)


@case("resize", "to a computed size", ".+.. / / . -> .+..")
def resize(net: Net) -> None:
    image = net.input("N", 3, "H", "W")
    x = net.op("Conv", image, net.weight(6, 3, 3, 3, fan=27), pads=[1, 1, 1, 1])
    small = net.op("MaxPool", net.op("Elu", x), kernel_shape=[2, 2], strides=[2, 2])
    space = net.op("Slice", net.op("Shape", x), net.const([2]), net.const([4]))
    front = net.op("Slice", net.op("Shape", small), net.const([0]), net.const([2]))
    sizes = net.op("Concat", front, space, axis=0)
    large = net.op("Resize", small, "", "", sizes, name="tested", mode="nearest")
    pooled = net.op("ReduceMean", net.op("Add", large, x), net.const([2, 3]), keepdims=0)
    sink(net, pooled, 6)


# Parameters that come as inputs of the model: nobody knows them before it runs.


def _asked(net: Net, *shape: int) -> str:
    """Small integers that the user gives."""
    return net.input(*shape, dtype=INT64)


@case("slice", "a start that is an input", "+.+ . . . -> +.+")
def slice_asked(net: Net) -> None:
    x = net.free(3, 8, 5)
    made = net.op("Slice", x, _asked(net, 1), net.const([8]), net.const([1]), name="tested")
    net.output(net.op("ReduceSum", net.op("Einsum", made, net.weight(3, 5), equation="aib,ab->i"), keepdims=1))
    net.sink(x)


@case("slice", "an axis that is an input", "... . . . -> ...")
def slice_axis_asked(net: Net) -> None:
    x = net.free(3, 4, 5)
    made = net.op("Slice", x, net.const([0]), net.const([2]), _asked(net, 1), name="tested")
    net.output(net.op("ReduceSum", made, keepdims=1))
    net.sink(net.op("Tanh", net.free(7)))


@case("reduce_sum", "an axis that is an input", "... . -> ...", opset=13)
def reduce_asked(net: Net) -> None:
    made = net.op("ReduceSum", net.free(3, 4, 5), _asked(net, 1), keepdims=1, name="tested")
    net.output(net.op("ReduceMax", net.op("Reshape", net.op("Tanh", made), net.const([-1])), keepdims=1))
    net.sink(net.op("Tanh", net.free(7)))


@case("top_k", "a count that is an input", "... . -> ... ...")
def top_k_asked(net: Net) -> None:
    values, _ = net.ops("TopK", net.free(3, 4, 5), _asked(net, 1), outs=2, name="tested")
    net.output(net.op("Einsum", values, net.weight(3, 4), equation="abi,ab->"))
    net.sink(net.op("Tanh", net.free(7)))


@case("cum_sum", "an axis that is an input", "... 1 -> ...", opset=14)
def cum_sum_asked(net: Net) -> None:
    net.sink(net.op("CumSum", net.free(3, 4, 5), _asked(net), name="tested"), hidden=5)


@case("gather", "an index that is an input", "+.+ 1 -> ++")
def gather_asked(net: Net) -> None:
    net.sink(net.op("Gather", net.free(3, 4, 5), _asked(net), axis=1, name="tested"))


@case("tile", "repeats that are an input", "... . -> ...")
def tile_asked(net: Net) -> None:
    made = net.op("Tile", net.free(3, 4, 5), net.op("Add", _asked(net, 3), net.const([1, 1, 1])), name="tested")
    net.output(net.op("ReduceSum", net.op("Tanh", made), keepdims=1))
    net.sink(net.op("Tanh", net.free(7)))
