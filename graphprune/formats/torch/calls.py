"""ATen calls under the names that rules use: one line a call.

    "conv2d": Call("conv", "input weight bias", group="groups")

says that ``aten.conv2d`` is a ``conv`` whose inputs are the arguments of those names and whose attribute ``group`` is
the argument ``groups`` (so a slot on ``group`` rewrites that argument). ``@size`` is a list or number given as an
input, as ONNX gives it; ``*tensors`` a list of tensors. ``=`` fixes an attribute: ``axis="=0"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """How to read one ATen call; ``fix`` changes the attributes where names alone do not do."""

    op: str
    inputs: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    fix: Callable[[dict[str, Any], dict[str, Any], list[int]], None] | None = None


CALLS: dict[str, Call] = {}


def call(names: str, op: str, inputs: str, fix: Any = None, **attrs: str) -> None:
    """Register ``names`` (ATen names without overload, or with it where overloads differ)."""
    for name in names.split():
        CALLS[name] = Call(op, inputs, attrs, fix)


POINTWISE = (
    "__and__ __or__ __xor__ _to_copy abs acos acosh add addcdiv addcmul alpha_dropout and_ asin asinh atan atan2 "
    "atanh bernoulli_ bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min conj copy "
    "copysign cos cosh div dropout dropout_ elu empty_like eq erf erfc erfinv exp exp2 expm1 feature_dropout fill "
    "float_power floor floor_divide fmod full_like ge gelu gt hardshrink hardsigmoid hardswish hardtanh isfinite "
    "isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or "
    "logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num native_dropout ne neg ones_like pow "
    "reciprocal relu relu6 remainder resolve_conj resolve_neg round rsqrt rsub selu sgn sigmoid sign silu sin sinh "
    "softplus softshrink softsign sqrt square sub tan tanh threshold to true_divide trunc type_as where xlogy zero "
    "zeros_like"
)
for _name in POINTWISE.split():
    for _variant in (_name, f"{_name}_"):
        CALLS[_variant] = Call("pointwise", "*")


def _transpose(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    perm = list(range(len(shape)))
    a, b = args.get("dim0", 0), args.get("dim1", 1)
    if len(shape) > 1:
        perm[a], perm[b] = perm[b], perm[a]
    attrs["perm"] = perm


def _permute(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    attrs["perm"] = [dim % len(shape) for dim in args["dims"]]


def _movedim(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    def listed(dims: Any) -> list[int]:
        return [d % len(shape) for d in (dims if isinstance(dims, list | tuple) else [dims])]

    source, target = listed(args["source"]), listed(args["destination"])
    rest = [axis for axis in range(len(shape)) if axis not in source]
    perm = [-1] * len(shape)
    for s, t in zip(source, target, strict=True):
        perm[t] = s
    attrs["perm"] = [axis if axis >= 0 else rest.pop(0) for axis in perm]


def _axes(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    dim = args.get("dim")
    if dim is not None and dim != []:
        attrs["axes"] = list(dim) if isinstance(dim, list | tuple) else [dim]
    attrs["keepdims"] = int(bool(args.get("keepdim", False)))


def _norm(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    """Zeros add nothing to a norm of positive order."""
    _axes(attrs, args, shape)
    order = args.get("ord", args.get("p"))
    if order is not None and not order > 0:
        attrs["op"] = "reduce_mean"


def _slice(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    attrs["axes"] = [args.get("dim", 0)]
    for name, source, default in (("starts", "start", 0), ("ends", "end", 2**63 - 1), ("steps", "step", 1)):
        value = args.get(source)
        value = default if value is None else value
        attrs[name] = [value if isinstance(value, int) else float("nan")]


def _normalized(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    attrs["axis"] = -len(args["normalized_shape"])


def _window(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    if args.get("transposed"):
        attrs["op"] = "conv_transpose"
        return
    rank = len(shape) - 2
    strides, padding, dilations = (_each(args.get(k, d), rank) for k, d in _GEOMETRY.items())
    attrs.update(strides=strides, dilations=dilations)
    attrs.update({"auto_pad": padding} if isinstance(padding, str) else {"pads": [*padding, *padding]})


_GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}


def _each(given: Any, rank: int) -> Any:
    """One number an axis; words as they are."""
    numbers = [given] if isinstance(given, int) else given
    return numbers if isinstance(numbers, str) or len(numbers) != 1 else [*numbers] * rank


def _pad(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    given = list(args["pad"])
    given += [0] * (2 * len(shape) - len(given))
    pairs = [(given[2 * i], given[2 * i + 1]) for i in range(len(shape))][::-1]
    attrs["pads"] = [before for before, _ in pairs] + [after for _, after in pairs]
    attrs["mode"] = args.get("mode", "constant")


def _parts(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    """``split`` says how large the parts are, ``chunk`` how many there are at most; the last may be smaller."""
    size = shape[args.get("dim", 0)]
    part = args["split_size"] if "split_size" in args else -(-size // args["chunks"])
    attrs["split"] = [min(part, size - start) for start in range(0, size, part)]


def _shuffle(attrs: dict[str, Any], args: dict[str, Any], shape: list[int]) -> None:
    attrs.update(blocksize=args.get("upscale_factor", args.get("downscale_factor")), mode="CRD")


# Contractions and convolutions.
call("linear", "linear", "input weight bias")
call("matmul", "matmul", "self other")
call("mm bmm", "matmul", "self mat2")
call("addmm", "gemm", "mat1 mat2 self")
call("baddbmm", "baddbmm", "self batch1 batch2")
call("einsum", "einsum", "*tensors", equation="equation")
call("conv1d conv2d conv3d", "conv", "input weight bias", fix=_window, group="groups")
call("convolution", "conv", "input weight bias", fix=_window, group="groups")
call("conv_transpose1d conv_transpose2d conv_transpose3d", "conv_transpose", "input weight bias", group="groups")
call("bilinear", "bilinear", "input1 input2 weight bias")
call("mv", "matrix_vector", "self vec")
call("dot vdot", "dot", "self tensor|other")
call("transformers.grouped_mm_fallback _grouped_mm", "grouped_matmul", "input|self weight|mat2 offs")
# Normalisation.
call("batch_norm", "batch_norm", "input weight bias running_mean running_var", training_mode="training")
call("layer_norm rms_norm", "torch_norm", "input weight bias", fix=_normalized, normalized_shape="normalized_shape")
call("native_layer_norm", "torch_norm", "input weight bias", fix=_normalized, normalized_shape="normalized_shape")
call("group_norm", "group_norm", "input weight bias", num_groups="num_groups")
call("native_group_norm", "native_group_norm", "input weight bias", num_groups="group", channels="C")
call("_native_batch_norm_legit_no_training", "batch_norm", "input weight bias running_mean running_var")
call("_weight_norm", "weight_norm", "v g", axis="dim")
call("instance_norm", "torch_instance_norm", "input weight bias running_mean running_var")
call("softmax _softmax log_softmax _log_softmax", "softmax", "self", axis="dim")
call("mean var std amax amin logsumexp prod all any", "reduce_mean", "self", fix=_axes)
call("linalg_vector_norm norm", "reduce_l2", "self", fix=_norm)
call("sum", "reduce_sum", "self", fix=_axes)
# Pooling and images.
call(
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d reflection_pad2d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact2d",
    "image",
    "self|input",
)
call("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", "max_pool_indices", "self")
call("grid_sampler grid_sampler_2d", "grid_sample", "input grid")
call("pixel_shuffle", "depth_to_space", "self", fix=_shuffle)
call("pixel_unshuffle", "pixel_unshuffle", "self", fix=_shuffle)
call("im2col", "im2col", "self", kernel="kernel_size")
call("col2im", "col2im", "self @output_size @kernel_size")
call("prelu _prelu_kernel", "torch_prelu", "self weight")
# Shapes.
call("alias clone contiguous detach detach_ lift_fresh lift_fresh_copy", "identity", "self|input")
call("view _unsafe_view", "reshape", "self @size", allowzero="=1")
call("reshape", "reshape", "self @shape", allowzero="=1")
call("flatten", "reshape", "self", allowzero="=1")
call("unflatten", "unflatten", "self", axis="dim", sizes="sizes")
call("permute", "transpose", "self", fix=_permute)
call("transpose t swapaxes numpy_T", "transpose", "self", fix=_transpose)
call("movedim", "transpose", "self", fix=_movedim)
call("unsqueeze", "unsqueeze", "self", fix=_axes)
call("squeeze", "squeeze", "self", fix=_axes)
call("expand", "expand", "self @size")
call("expand_as", "expand_as", "self other")
call("view_as reshape_as", "reshape_as", "self other")
call("repeat", "repeat", "self @repeats")
call("repeat_interleave.self_int", "repeat_interleave", "self", repeats="repeats", axis="dim")
call("cat concat", "concat", "*tensors", axis="dim")
call("stack", "stack", "*tensors", axis="dim")
call("split_with_sizes", "split", "self", axis="dim", split="split_sizes")
call("split.sizes", "split", "self", axis="dim", split="split_size")
call("split chunk", "split", "self", fix=_parts, axis="dim", split="?sizes")
call("glu", "glu", "self", axis="dim")
call("unbind", "unbind", "self", axis="dim")
call("slice", "slice", "self", fix=_slice, starts="start", ends="end")
call("select", "gather", "self @index", axis="dim")
call("index_select", "gather", "self index", axis="dim")
call("embedding", "gather", "weight indices", axis="=0")
call("embedding_bag _embedding_bag", "embedding_bag", "weight indices offsets per_sample_weights")
call("gather", "gather_elements", "self index", axis="dim")
call("index", "index", "self *indices")
call("pad constant_pad_nd", "pad", "self", fix=_pad, pads="pad")
call("roll flip", "ordered", "self", fix=_axes, axes="dims")
call("cumsum cumprod", "ordered", "self", fix=_axes)
call("max.dim min.dim", "extreme", "self", axis="dim")
call("max.other min.other", "pointwise", "*")
call("max min", "reduce_max", "self")
call("argmax argmin", "arg_max", "self", axis="dim", keepdims="keepdim")
call("topk", "top_k", "self", axis="dim", k="k")
call("sort argsort", "top_k", "self", axis="dim")
call("tril triu", "trilu", "self")
call("zeros ones empty", "filled", "@size")
call("full", "filled", "@size")
call("new_zeros new_ones new_empty new_full", "filled", "-self @size")
call("_scaled_dot_product_flash_attention_for_cpu", "sdpa", "query key value attn_mask", scale="scale")
call("scaled_dot_product_attention", "sdpa", "query key value attn_mask", gqa="enable_gqa", scale="scale")
# Recurrent layers.
call(
    "lstm gru rnn_tanh rnn_relu",
    "torch_recurrent",
    "input *hx *params",
    layers="num_layers",
    bidirectional="bidirectional",
    batch_first="batch_first",
    has_biases="has_biases",
)
call("lstm_cell", "lstm_cell", "input *hx w_ih w_hh b_ih b_hh")
call("gru_cell", "gru_cell", "input hx w_ih w_hh b_ih b_hh")
call("rnn_tanh_cell rnn_relu_cell", "rnn_cell", "input hx w_ih w_hh b_ih b_hh")


def vocabulary() -> list[tuple[str, str, str]]:
    """Domain, name and rule name of every ATen call that is read."""
    return [("aten", name, found.op) for name, found in sorted(CALLS.items())]
