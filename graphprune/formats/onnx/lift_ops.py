"""ONNX ops as torch functions: one line an op, called with its inputs (None where one is absent) and its attributes.

    op("ReduceMean", reduced(torch.mean))
    op("Softmax", lambda x, axis=-1: x.softmax(axis), since=13)

An argument that became an input in a later opset has one name for both, so that either way finds it. Where an op came
to mean something else there are two lines, and the newest that the model's opset knows is taken. What is not here, or
is a rare variant (`ByReference`), is run by onnx's reference implementation, and has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Function = Callable[..., Any]
OPS: dict[str, list[tuple[int, Function]]] = {}


class ByReference(Exception):  # noqa: N818
    """This variant of an op is left to onnx's reference implementation: right, but without a gradient."""


def op(names: str, function: Function, since: int = 1) -> None:
    """Register ``function`` for ``names`` from an opset on."""
    for name in names.split():
        OPS.setdefault(name, []).append((since, function))


def find(name: str, opset: int) -> Function | None:
    """The function of an op as ``opset`` means it; None where there is none."""
    return max((entry for entry in OPS.get(name, ()) if entry[0] <= opset), key=lambda e: e[0], default=(0, None))[1]


def numbers(value: Any) -> list[int]:
    """A list of integers, given as a tensor or as an attribute."""
    return [int(n) for n in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


# Arithmetic.


def _folded(function: Function) -> Function:
    def run(*values: Tensor) -> Tensor:
        found, *rest = values
        for value in rest:
            found = function(found, value)
        return found

    return run


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(x: Tensor, y: Tensor) -> Tensor:
    """A number as the exponent needs no result kept for the way back."""
    return torch.pow(x, y if y.requires_grad or y.numel() > 1 else y.item()).to(x.dtype)


def _clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    return x if min is None and max is None else torch.clamp(x, min, max)


def _dropout(x: Tensor, ratio: Any = None, training: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    if training is not None and bool(training):
        raise ByReference
    return x, torch.ones_like(x, dtype=torch.bool)


def _is_inf(x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return torch.isposinf(x) & bool(detect_positive) | torch.isneginf(x) & bool(detect_negative)


def _shape(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _filled(shape: Tensor, value: Any = None) -> Tensor:
    return torch.full(numbers(shape), 0.0) if value is None else value.reshape(()).expand(numbers(shape)).clone()


op("Add", torch.add)
op("Sub", torch.sub)
op("Mul", torch.mul)
op("Div", _div)
op("Pow", _pow)
op("Mod", lambda a, b, fmod=0: torch.fmod(a, b) if fmod else torch.remainder(a, b))
op("Sum", _folded(torch.add))
op("Max", _folded(torch.maximum))
op("Min", _folded(torch.minimum))
op("Mean", lambda *values: _folded(torch.add)(*values) / len(values))
op("Clip", _clip)
op("Where", torch.where)
op("MatMul", torch.matmul)
op("Einsum", lambda *values, equation: torch.einsum(equation, *values))
op("Equal", torch.eq)
op("Less", torch.lt)
op("LessOrEqual", torch.le)
op("Greater", torch.gt)
op("GreaterOrEqual", torch.ge)
op("And", torch.logical_and)
op("Or", torch.logical_or)
op("Xor", torch.logical_xor)
op("Not", torch.logical_not)
op("Shape", _shape)
op("Size", lambda x: torch.tensor(x.numel()))
op("Range", _range)
op("ConstantOfShape", _filled)

for _name in "Abs Neg Exp Log Sqrt Reciprocal Floor Ceil Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh".split():
    op(_name, getattr(torch, _name.lower()))
for _name in "Asinh Acosh Atanh Tanh Sigmoid Erf Relu IsNaN".split():
    op(_name, getattr(torch, _name.lower()))

op("LeakyRelu", lambda x, alpha=0.01: F.leaky_relu(x, alpha))
op("PRelu", lambda x, slope: torch.where(x < 0, slope * x, x))
op("Elu", lambda x, alpha=1.0: F.elu(x, alpha))
op("Celu", lambda x, alpha=1.0: F.celu(x, alpha))
op("Selu", lambda x, alpha=1.67326319, gamma=1.05070102: gamma * torch.where(x > 0, x, alpha * x.clamp(max=0).expm1()))
op("HardSigmoid", lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1))
op("HardSwish", lambda x: x * (x / 6 + 0.5).clamp(0, 1))
op("Softplus", lambda x: F.softplus(x, threshold=40))
op("Softsign", F.softsign)
op("Gelu", lambda x, approximate="none": F.gelu(x, approximate=approximate))
op("Mish", F.mish)
op("Swish", lambda x, alpha=1.0: x * torch.sigmoid(alpha * x))
op("ThresholdedRelu", lambda x, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)))
op("Identity", lambda x: x)
op("IsInf", _is_inf)
op("Dropout", _dropout)


def _gemm(a: Tensor, b: Tensor, c: Any = None, alpha: float = 1, beta: float = 1, **turned: int) -> Tensor:
    a, b = (x.T if turned.get(flag) else x for x, flag in ((a, "transA"), (b, "transB")))
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


op("Gemm", _gemm)


# Reductions and normalisation.


def _axes(x: Tensor, axes: Any) -> list[int]:
    """The axes reduced over; all where none is named."""
    named = [] if axes is None else numbers(axes)
    return [axis % max(1, x.dim()) for axis in named] or list(range(x.dim()))


def reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    """A reduction of ``function(x, axes, keepdim)``."""

    def run(x: Tensor, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if noop_with_empty_axes and (axes is None or not numbers(axes)):
            return x
        return function(x, _axes(x, axes), bool(keepdims)) if x.dim() else function(x[None], [0], False)

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _flat(function: Callable[[Tensor, int], Tensor]) -> Function:
    """Softmax as it was before opset 13: over all axes from ``axis`` on together."""
    return lambda x, axis=1: function(x.reshape(math.prod(x.shape[:axis]), -1), -1).reshape(x.shape)


def _standardised(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _channels(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 2))


def _batch_norm(x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, **attrs: Any) -> Tensor:
    """Statistics are no weights: they follow the data, and have no gradient in torch either."""
    if attrs.get("training_mode"):
        raise ByReference
    return F.batch_norm(x, mean.detach(), var.detach(), scale, b, eps=attrs.get("epsilon", 1e-5))


def _layer_norm(x: Tensor, scale: Tensor, b: Any = None, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Any:
    axes = list(range(axis % x.dim(), x.dim()))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = F.layer_norm(x, x.shape[axes[0] :], eps=epsilon) * scale
    return (y if b is None else y + b), mean, inverse


def _rms_norm(x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Tensor:
    axes = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


def _instance_norm(x: Tensor, scale: Tensor, b: Tensor, epsilon: float = 1e-5) -> Tensor:
    return _standardised(x, range(2, x.dim()), epsilon) * _channels(scale, x) + _channels(b, x)


def _group_norm(x: Tensor, scale: Tensor, b: Tensor, num_groups: int, epsilon: float = 1e-5, **_: Any) -> Tensor:
    grouped = _standardised(x.reshape(len(x), num_groups, -1), [2], epsilon).reshape(x.shape)
    if len(scale) == num_groups:  # as opset 18 has it
        scale, b = (value.repeat_interleave(x.shape[1] // num_groups) for value in (scale, b))
    return grouped * _channels(scale, x) + _channels(b, x)


def _lrn(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    padded = F.pad(x.square().movedim(1, -1), ((size - 1) // 2, size // 2))
    return x / (bias + alpha / size * padded.unfold(-1, size, 1).sum(-1).movedim(-1, 1)) ** beta


op("ReduceSum", reduced(torch.sum))
op("ReduceMean", reduced(torch.mean))
op("ReduceMax", reduced(torch.amax))
op("ReduceMin", reduced(torch.amin))
op("ReduceProd", reduced(_product))
op("ReduceL1", reduced(lambda x, axes, keep: x.abs().sum(axes, keep)))
op("ReduceL2", reduced(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()))
op("ReduceSumSquare", reduced(lambda x, axes, keep: x.square().sum(axes, keep)))
op("ReduceLogSum", reduced(lambda x, axes, keep: x.sum(axes, keep).log()))
op("ReduceLogSumExp", reduced(torch.logsumexp))
op("Softmax", _flat(torch.softmax))
op("LogSoftmax", _flat(torch.log_softmax))
op("Softmax", lambda x, axis=-1: x.softmax(axis), since=13)
op("LogSoftmax", lambda x, axis=-1: x.log_softmax(axis), since=13)
op("BatchNormalization", _batch_norm)
op("LayerNormalization", _layer_norm)
op("RMSNormalization", _rms_norm)
op("InstanceNormalization", _instance_norm)
op("GroupNormalization", _group_norm)
op("LRN", _lrn)
op("LpNormalization", lambda x, axis=-1, p=2: F.normalize(x, p, axis, eps=1e-30))
op("MeanVarianceNormalization", lambda x, axes=(0, 2, 3): _standardised(x, axes, 1e-18))


# Convolution and images.


def _windows(
    x: Tensor, kernel: Sequence[int], attrs: dict[str, Any]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, pads before and pads after."""
    n = len(kernel)
    strides, dilations = (list(attrs.get(name) or [1] * n) for name in ("strides", "dilations"))
    pads = list(attrs.get("pads") or [0] * 2 * n)
    auto = attrs.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        spans = zip(x.shape[2:], kernel, strides, dilations, strict=True)
        whole = [max(0, (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size) for size, k, s, d in spans]
        small, large = [total // 2 for total in whole], [total - total // 2 for total in whole]
        pads = small + large if auto == "SAME_UPPER" else large + small
    return strides, dilations, pads[:n], pads[n:]


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0) -> Tensor:
    pairs = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def _conv(x: Tensor, w: Tensor, b: Any = None, group: int = 1, **attrs: Any) -> Tensor:
    strides, dilations, before, after = _windows(x, w.shape[2:], attrs)
    function = (F.conv1d, F.conv2d, F.conv3d)[w.dim() - 3]
    if before == after:
        return function(x, w, b, strides, before, dilations, group)
    return function(_padded(x, before, after), w, b, strides, 0, dilations, group)


def _conv_transpose(x: Tensor, w: Tensor, b: Any = None, group: int = 1, **attrs: Any) -> Tensor:
    n = w.dim() - 2
    extra = list(attrs.get("output_padding") or [0] * n)
    strides, dilations, before, after = _windows(x, w.shape[2:], {**attrs, "auto_pad": "NOTSET"})
    spans = zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
    full = [(size - 1) * s + (k - 1) * d + 1 + e for size, k, s, d, e in spans]
    auto = attrs.get("auto_pad", "NOTSET")
    wanted = attrs.get("output_shape")
    if auto.startswith("SAME"):
        wanted = wanted or [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if wanted:
        whole = [have - want for have, want in zip(full, wanted[-n:], strict=True)]
        small, large = [total // 2 for total in whole], [total - total // 2 for total in whole]
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    y = _padded(function(x, w, b, strides, 0, 0, group, dilations), [0] * n, extra)
    if any(extra) and b is not None:  # what is added at the end holds the bias too
        y = _padded(function(x, w, None, strides, 0, 0, group, dilations), [0] * n, extra) + _channels(b, y)
    return _padded(y, [-p for p in before], [-p for p in after])


def _max_pool(x: Tensor, kernel_shape: Sequence[int], ceil_mode: int = 0, **attrs: Any) -> Tensor:
    if not x.is_floating_point():
        raise ByReference
    strides, dilations, before, after = _windows(x, kernel_shape, attrs)
    after = _ends(x, kernel_shape, strides, dilations, before, after, ceil_mode)
    function: Function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel_shape) - 1]
    found: Tensor = function(_padded(x, before, after, -math.inf), kernel_shape, strides, 0, dilations)
    return found


def _average_pool(x: Tensor, kernel_shape: Sequence[int], ceil_mode: int = 0, **attrs: Any) -> Tensor:
    """A mean of what is there: the sum over each window, divided by how many positions of it count."""
    strides, dilations, before, after = _windows(x, kernel_shape, attrs)
    end = _ends(x, kernel_shape, strides, dilations, before, after, ceil_mode)
    inside = torch.ones_like(x[:1, :1])
    if attrs.get("count_include_pad"):
        inside = _padded(inside, before, after, 1)
        inside = _padded(inside, [0] * len(end), [e - a for e, a in zip(end, after, strict=True)])
    else:
        inside = _padded(inside, before, end)
    kernel = x.new_ones(1, 1, *kernel_shape)
    function = (F.conv1d, F.conv2d, F.conv3d)[len(kernel_shape) - 1]
    total = function(_padded(x, before, end).flatten(0, 1)[:, None], kernel, None, strides, 0, dilations)
    return total.reshape(*x.shape[:2], *total.shape[2:]) / function(inside, kernel, None, strides, 0, dilations)


def _ends(
    x: Tensor, kernel: Sequence[int], strides: Any, dilations: Any, before: Any, after: Any, ceil_mode: int
) -> list[int]:
    """Pads after that hold the last window whole; there is always one, and none that starts behind the end."""
    ends = []
    for size, k, s, d, a, b in zip(x.shape[2:], kernel, strides, dilations, before, after, strict=True):
        room = a + size + b - (k - 1) * d - 1
        count = max(0, -(-room // s) if ceil_mode else room // s)
        count -= ceil_mode and count * s >= a + size
        ends.append(max(b, count * s + (k - 1) * d + 1 - a - size))
    return ends


def _spread(x: Tensor, matrices: dict[int, Tensor]) -> Tensor:
    """Each axis times a matrix [old, new]."""
    for axis, matrix in matrices.items():
        x = torch.tensordot(x, matrix, dims=([axis], [0])).movedim(-1, axis)
    return x


def _resize(
    x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, axes: Any = None, **attrs: Any
) -> Tensor:
    """Linear in x and one axis after the other: onnx's own resize of an identity matrix is the matrix of an axis."""
    mode = attrs.get("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize" or attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ByReference
    over = numbers(axes) if axes is not None else list(range(x.dim()))
    given = numbers(sizes) if sizes is not None and len(sizes) else [float(s) for s in scales]
    matrices = {}
    for axis, wanted in zip(over, given, strict=True):
        n = x.shape[axis]
        if wanted != (n if sizes is not None and len(sizes) else 1):
            matrices[axis % x.dim()] = torch.from_numpy(_resize_matrix(n, wanted, attrs)).to(x.dtype)
    return _spread(x, matrices)


def _resize_matrix(n: int, wanted: float, attrs: dict[str, Any]) -> Any:
    by_size = isinstance(wanted, int)
    inputs = ["x", "", "", "s"] if by_size else ["x", "", "s"]
    given = np.array([n, wanted], np.int64) if by_size else np.array([1, wanted], np.float32)
    node = helper.make_node("Resize", inputs, ["y"], **attrs)
    types = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "s", "y")]
    graph = helper.make_graph([node], "resize", types[:2], types[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    found: Any = ReferenceEvaluator(model).run(None, {"x": np.eye(n, dtype=np.float32), "s": given})
    return found[0]


def _depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    parts = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, -1, h * blocksize, w * blocksize)


def _space_to_depth(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    parts = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, -1, h // blocksize, w // blocksize)


def _grid_sample(
    x: Tensor, grid: Tensor, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, mode, padding_mode, bool(align_corners))


op("Conv", _conv)
op("ConvTranspose", _conv_transpose)
op("MaxPool", _max_pool)
op("AveragePool", _average_pool)
op("GlobalAveragePool", lambda x: x.mean(list(range(2, x.dim())), keepdim=True))
op("GlobalMaxPool", lambda x: x.amax(list(range(2, x.dim())), keepdim=True))
op("Resize", _resize)
op(
    "Upsample",
    lambda x, scales, mode="nearest": _resize(
        x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
)
op("DepthToSpace", _depth_to_space)
op("SpaceToDepth", _space_to_depth)
op("GridSample", _grid_sample)


# Shapes.


def _reshape(x: Tensor, shape: Any, allowzero: int = 0) -> Tensor:
    wanted = numbers(shape)
    return x.reshape(wanted if allowzero else [size or x.shape[i] for i, size in enumerate(wanted)])


def _flatten(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[: axis % x.dim() if axis < 0 else axis]), -1)


def _squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(numbers(axes)))


def _unsqueeze(x: Tensor, axes: Any) -> Tensor:
    rank = x.dim() + len(numbers(axes))
    for axis in sorted(axis % rank for axis in numbers(axes)):
        x = x.unsqueeze(axis)
    return x


def _slice(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    bounds = list(zip(numbers(starts), numbers(ends), strict=True))
    over = numbers(axes) if axes is not None else list(range(len(bounds)))
    jumps = numbers(steps) if steps is not None else [1] * len(bounds)
    for (start, end), axis, step in zip(bounds, over, jumps, strict=True):
        first, last, _ = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(first, max(first, last), step),)]
        else:
            x = x.index_select(axis, torch.arange(first, min(first, last), step))
    return x


def _split(x: Tensor, split: Any = None, axis: int = 0, num_outputs: int = 1) -> tuple[Tensor, ...]:
    return torch.split(x, -(-x.shape[axis] // num_outputs) if split is None else numbers(split), axis)


def _expand(x: Tensor, shape: Any) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(numbers(shape))))


def _pad(x: Tensor, pads: Any, value: Any = None, axes: Any = None, mode: str = "constant") -> Tensor:
    """Reflected and repeated positions are picked by number; constants are added around."""
    ends = numbers(pads)
    over = numbers(axes) if axes is not None else list(range(x.dim()))
    for axis, before, after in zip(over, ends[: len(over)], ends[len(over) :], strict=True):
        if mode == "constant" or before < 0 or after < 0:
            pairs = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [before, after]
            x = F.pad(x, pairs, value=0 if value is None else float(value)) if any(pairs) else x
        elif before or after:
            x = x.index_select(axis, torch.from_numpy(np.pad(np.arange(x.shape[axis]), (before, after), mode)))  # type: ignore[call-overload]
    return x


def _cast(x: Tensor, to: torch.dtype, **_: Any) -> Tensor:
    return x.to(to)


op("Reshape", _reshape)
op("Flatten", _flatten)
op("Transpose", lambda x, perm=None: x.permute(list(perm or range(x.dim())[::-1])))
op("Squeeze", _squeeze)
op("Unsqueeze", _unsqueeze)
op("Concat", lambda *values, axis: torch.cat(values, axis))
op("Slice", _slice)
op("Split", _split)
op("Expand", _expand)
op("Tile", lambda x, repeats: x.tile(numbers(repeats)))
op("Pad", _pad)
op("Cast", _cast)
op("CastLike", lambda x, like, **_: x.to(like.dtype))
op("Trilu", lambda x, k=None, upper=1: (torch.triu if upper else torch.tril)(x, 0 if k is None else int(k)))


# Indices.


def _within(index: Tensor, size: int) -> Tensor:
    """Positions counted from the start."""
    return torch.where(index < 0, index + size, index).long()


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    axis %= x.dim()
    found = x.index_select(axis, _within(index, x.shape[axis]).flatten())
    return found.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _gather_nd(x: Tensor, index: Tensor, batch_dims: int = 0) -> Tensor:
    shape = index.shape[:batch_dims]
    rows = torch.meshgrid(*map(torch.arange, shape), indexing="ij") if shape else ()
    before = [row.reshape(*shape, *[1] * (index.dim() - 1 - batch_dims)) for row in rows]
    columns = [_within(part, x.shape[batch_dims + i]) for i, part in enumerate(index.unbind(-1))]
    return x[(*before, *columns)]


def _scatter_nd(x: Tensor, index: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    if reduction not in ("none", "add"):
        raise ByReference
    columns = tuple(_within(part, x.shape[i]) for i, part in enumerate(index.unbind(-1)))
    return x.index_put(columns, updates, accumulate=reduction == "add")


def _scatter_elements(x: Tensor, index: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    index = _within(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(
        axis, index, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    )


def _cumsum(x: Tensor, axis: Tensor, exclusive: int = 0, reverse: int = 0) -> Tensor:
    over = int(axis)
    x = x.flip(over) if reverse else x
    found = x.cumsum(over) - (x if exclusive else 0)
    return found.flip(over) if reverse else found


def _top_k(x: Tensor, k: Any, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    count = k if isinstance(k, int) else int(k)
    values, indices = x.sort(dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


op("Gather", _gather)
op("GatherND", _gather_nd)
op("GatherElements", lambda x, index, axis=0: x.gather(axis, _within(index, x.shape[axis])))
op("ScatterND", _scatter_nd)
op("ScatterElements Scatter", _scatter_elements)
op("CumSum", _cumsum)
op("TopK", _top_k)


# Quantised weights: a scale is a weight like any other. What rounds has no gradient, and no line here.


def _dequantise(x: Tensor, scale: Tensor, zero: Any = None, axis: int = 1, block_size: int = 0, **_: Any) -> Tensor:
    zero = torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)
    if block_size:
        scale, zero = (v.repeat_interleave(block_size, axis) for v in (scale, zero))
    elif scale.dim() == 1 and len(scale) > 1:
        scale, zero = (v.reshape(-1, *[1] * (x.dim() - 1 - axis % x.dim())) for v in (scale, zero))
    found: Tensor = (x.to(scale.dtype) - zero) * scale
    return found


op("DequantizeLinear", _dequantise)


# Recurrent layers, a direction and a step at a time.


def _recurrent(step: Function, states: int, activations: Sequence[str]) -> Function:
    """``step(gates of x, states, recurrent weight, recurrent bias) -> states``; outputs all steps, then the last."""

    def run(x: Tensor, w: Tensor, r: Tensor, b: Any = None, lengths: Any = None, *given: Any, **attrs: Any) -> Any:
        _plain(attrs, activations, [lengths if lengths is None or (lengths < len(x)).any() else None, *given[states:]])
        start = [*given, None, None][:states]
        outputs, ends = [], []
        for d in range(len(w)):
            bias, inner = b[d].chunk(2) if b is not None else (None, x.new_zeros(r.shape[1]))
            order = -1 if d or attrs.get("direction") == "reverse" else 1
            state = [x.new_zeros(x.shape[1], r.shape[-1]) if s is None else s[d] for s in start]
            found = []
            for gates in F.linear(x, w[d], bias).unbind()[::order]:
                state = step(gates, state, r[d], inner, bool(attrs.get("linear_before_reset")))
                found.append(state[0])
            outputs.append(torch.stack(found[::order]))
            ends.append(state)
        return torch.stack(outputs, 1), *(torch.stack(parts) for parts in zip(*ends, strict=True))

    return run


def _plain(attrs: dict[str, Any], activations: Sequence[str], inputs: Sequence[Any]) -> None:
    """Only what most layers are is written."""
    own = [name.lower() for name in attrs.get("activations", activations)]
    odd = own[: len(activations)] != list(activations) or set(own) - set(activations)
    if odd or any(attrs.get(name) for name in ("clip", "layout", "input_forget")) or any(v is not None for v in inputs):
        raise ByReference


def _lstm(gate: Tensor, state: list[Tensor], r: Tensor, bias: Tensor, _: bool) -> list[Tensor]:
    i, o, f, c = (gate + F.linear(state[0], r, bias)).chunk(4, -1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(c)
    return [torch.sigmoid(o) * torch.tanh(cell), cell]


def _gru(gate: Tensor, state: list[Tensor], r: Tensor, inner: Tensor, linear: bool) -> list[Tensor]:
    (h,), n = state, r.shape[-1]
    z, reset = torch.sigmoid(gate[:, : 2 * n] + F.linear(h, r[: 2 * n], inner[: 2 * n])).chunk(2, -1)
    new, rest = r[2 * n :], inner[2 * n :]
    inside = reset * F.linear(h, new, rest) if linear else F.linear(reset * h, new, rest)
    return [(1 - z) * torch.tanh(gate[:, 2 * n :] + inside) + z * h]


def _rnn(gate: Tensor, state: list[Tensor], r: Tensor, bias: Tensor, _: bool) -> list[Tensor]:
    return [torch.tanh(gate + F.linear(state[0], r, bias))]


op("LSTM", _recurrent(_lstm, 2, ("sigmoid", "tanh", "tanh")))
op("GRU", _recurrent(_gru, 1, ("sigmoid", "tanh")))
op("RNN", _recurrent(_rnn, 1, ("tanh",)))
