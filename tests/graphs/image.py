"""Steps on (batch, channels, height, width)."""

from __future__ import annotations

import numpy as np

from tests.graphs.maker import MOST_POSITIONS, Maker, Value, divisors, step


@step("image")
def convolve(g: Maker, x: Value) -> None:
    """Plain, grouped or depthwise."""
    groups = g.pick(1, 1, 1, *divisors(x.width))
    out = groups * g.pick(1, 2, 3) if groups > 1 else g.channels()
    kernel = g.pick(1, 3)
    inside = x.width // groups
    inputs = [x.name, g.matrix(out, inside, kernel, kernel, fan=inside * kernel**2)]
    inputs += [g.vector(out)] if g.flip() else []
    y = g.op("Conv", *inputs, group=groups, pads=[kernel // 2] * 4)
    g.put(g.activation(y), x.shape[0], out, *x.shape[2:])


@step("image")
def residual(g: Maker, x: Value) -> None:
    """Two convolutions beside a shortcut."""
    inside = g.channels()
    y = g.op("Conv", x.name, g.matrix(inside, x.width, 1, 1, fan=x.width), g.vector(inside))
    y = g.op("Conv", g.op("Relu", y), g.matrix(x.width, inside, 3, 3, fan=9 * inside), pads=[1, 1, 1, 1])
    g.put(g.op("Add", *((x.name, y) if g.flip() else (y, x.name))), *x.shape)


@step("image", "tokens", "rows")
def join(g: Maker, x: Value) -> None:
    """With another value of this shape, or with itself where there is none."""
    other = g.other(x)
    kinds = ("Add", "Mul", "Sub", "Max") if other else ("Add", "Mul")
    g.put(g.op(g.pick(*kinds), x.name, (other or x).name), *x.shape)


@step("image")
def normalise(g: Maker, x: Value) -> None:
    """Batch, instance or group normalisation."""
    kind, size = g.pick("batch", "batch", "instance", "group"), x.width
    if kind == "batch":
        statistics = [g.vector(size), g.net.weight(size, positive=True)]
        y = g.op("BatchNormalization", x.name, g.vector(size), g.vector(size), *statistics)
    elif kind == "instance":
        y = g.op("InstanceNormalization", x.name, g.vector(size), g.vector(size), epsilon=1e-2)
    else:
        groups = g.pick(*divisors(size))
        grouped = (x.shape[0], groups, size // groups * x.size(2) * x.size(3))
        y = g.reshape(x.name, x.shape, grouped)
        y = g.op("InstanceNormalization", y, g.vector(groups), g.vector(groups), epsilon=1e-2)
        y = g.reshape(y, grouped, x.shape)
    g.put(g.activation(y), *x.shape)


@step("image")
def gate(g: Maker, x: Value) -> None:
    """Squeeze and excite: a factor a channel, broadcast over the image."""
    inside = g.channels()
    y = g.op("GlobalAveragePool", x.name)
    y = g.op("Relu", g.op("Conv", y, g.matrix(inside, x.width, 1, 1, fan=x.width), g.vector(inside)))
    y = g.op("Sigmoid", g.op("Conv", y, g.matrix(x.width, inside, 1, 1, fan=inside)))
    g.put(g.op("Mul", x.name, y), *x.shape)


@step("image")
def pool(g: Maker, x: Value) -> None:
    """Largest or mean of neighbours."""
    g.put(g.op(g.pick("MaxPool", "AveragePool"), x.name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), *x.shape)


@step("image")
def halve_and_double(g: Maker, x: Value) -> None:
    """Down, up again, and joined to where it came from, as in a feature pyramid."""
    small = g.op("MaxPool", x.name, kernel_shape=[2, 2], strides=[2, 2])
    scales = g.net.const([1, 1, 2, 2], np.float32)
    if g.flip():
        large = g.op("Resize", small, "", scales, mode="nearest")
    else:
        large = g.op("ConvTranspose", small, g.matrix(x.width, x.width, 2, 2, fan=x.width), strides=[2, 2])
    if g.flip() and 2 * x.width <= MOST_POSITIONS:
        g.put(g.op("Concat", large, x.name, axis=1), x.shape[0], 2 * x.width, *x.shape[2:])
    else:
        g.put(g.op("Add", large, x.name), *x.shape)


@step("image", "tokens", "rows")
def concatenate(g: Maker, x: Value) -> None:
    """Features of two or three values, the same one twice among them."""
    parts = [x] + [g.other(x) or x for _ in range(g.pick(1, 2))]
    width = sum(part.width for part in parts)
    axis = 1 if x.flavour == "image" else g.pick(len(x.shape) - 1, -1)
    if width <= MOST_POSITIONS:
        shape = [*x.shape]
        shape[axis] = width
        g.put(g.op("Concat", *(part.name for part in parts), axis=axis), *shape)


@step("image", "tokens", "rows")
def split(g: Maker, x: Value) -> None:
    """Features in two or three parts, by sizes that are written down or follow."""
    axis, size = (1 if x.flavour == "image" else len(x.shape) - 1), x.width
    count = g.pick(2, 3)
    if size % count == 0 and g.flip():
        sizes = [size // count] * count
        names = g.ops("Split", x.name, outs=count, axis=axis, num_outputs=count)
    elif size >= 2:
        first = g.pick(*range(1, size))
        sizes = [first, size - first]
        names = g.ops("Split", x.name, g.net.const(sizes), outs=2, axis=axis)
    else:
        return
    for name, part in zip(names, sizes, strict=True):
        shape = [*x.shape]
        shape[axis] = part
        g.put(name, *shape)


@step("image", "tokens", "rows")
def slice_(g: Maker, x: Value) -> None:
    """Some neighbouring features, or every other one; counted from the front or from the end."""
    axis, size = (1 if x.flavour == "image" else len(x.shape) - 1), x.width
    shape = [*x.shape]
    if size % 2 == 0 and g.flip(3):
        bounds, step_ = (g.pick(0, 1), g.pick(size, 2**62)), 2
        shape[axis] = size // 2
    elif size >= 3:
        start = g.pick(*range(size - 1))
        end = g.pick(*range(start + 1, size + 1))
        shape[axis] = end - start
        bounds, step_ = (start - size if g.flip() else start, end - size if end < size and g.flip() else end), 1
    else:
        return
    starts, ends = (g.net.const([bound]) for bound in bounds)
    g.put(g.op("Slice", x.name, starts, ends, g.net.const([axis]), g.net.const([step_])), *shape)


@step("image")
def shuffle(g: Maker, x: Value) -> None:
    """Channels of the groups taken in turn."""
    groups = g.pick(*divisors(x.width))
    inside = x.width // groups
    split_up = [x.shape[0], groups, inside, x.size(2), x.size(3)]
    y = g.op("Transpose", g.reshape(x.name, x.shape, split_up), perm=[0, 2, 1, 3, 4])
    g.put(g.reshape(y, (x.shape[0], inside, groups, x.size(2), x.size(3)), x.shape), *x.shape)


@step("image")
def to_channels_and_back(g: Maker, x: Value) -> None:
    """Two by two places become channels; a convolution; and places again."""
    if x.size(2) % 2 or 4 * x.width > MOST_POSITIONS:
        return
    out = g.pick(2, 3, 4)
    y = g.op("SpaceToDepth", x.name, blocksize=2)
    y = g.op("Conv", y, g.matrix(4 * out, 4 * x.width, 1, 1, fan=4 * x.width), g.vector(4 * out))
    y = g.op("DepthToSpace", g.activation(y), blocksize=2, mode=g.pick("DCR", "CRD"))
    g.put(y, x.shape[0], out, *x.shape[2:])


@step("image")
def pad(g: Maker, x: Value) -> None:
    """More channels, all of one value."""
    before, after = g.pick(0, 1, 2), g.pick(1, 2)
    pads = [0, before, 0, 0, 0, after, 0, 0]
    y = g.op("Pad", x.name, g.net.const(pads), g.net.const(0.3, np.float32))
    g.put(y, x.shape[0], x.width + before + after, *x.shape[2:])


@step("image")
def slope(g: Maker, x: Value) -> None:
    """A learned slope a channel."""
    g.put(g.op("PRelu", x.name, g.net.weight(x.width, 1, 1)), *x.shape)


@step("image")
def window(g: Maker, x: Value) -> None:
    """Divided by what neighbouring channels hold, inside a layer: their order counts, so that they stay."""
    inside = g.channels()
    y = g.op("Conv", x.name, g.matrix(inside, x.width, 1, 1, fan=x.width), g.vector(inside))
    y = g.op("LRN", y, size=3, alpha=0.3)
    g.put(g.op("Conv", y, g.matrix(x.width, inside, 1, 1, fan=inside)), *x.shape)


@step("image")
def patches(g: Maker, x: Value) -> None:
    """Two by two places and their channels become one token each."""
    if x.size(2) % 2 or 4 * x.width > MOST_POSITIONS:
        return
    rows, columns = x.size(2) // 2, x.size(3) // 2
    parts = (x.shape[0], x.width, rows, 2, columns, 2)
    y = g.op("Transpose", g.reshape(x.name, x.shape, parts), perm=[0, 2, 4, 1, 3, 5])
    turned = (x.shape[0], rows, columns, x.width, 2, 2)
    flat = (x.shape[0], rows * columns, 4 * x.width)
    g.put(g.reshape(y, turned, flat), *flat)


@step("image")
def to_rows(g: Maker, x: Value) -> None:
    """Mean or largest over the image, or all places as features."""
    size = x.width * x.size(2) * x.size(3)
    if size <= MOST_POSITIONS * 2 and g.flip():
        g.put(g.op("Flatten", x.name), x.shape[0], size)
    elif g.flip():
        y = g.op(g.pick("GlobalAveragePool", "GlobalMaxPool"), x.name)
        g.put(g.op("Squeeze", y, g.net.const([2, 3])), x.shape[0], x.width)
    else:
        g.put(g.op("ReduceMean", x.name, g.net.const([-1, -2]), keepdims=0), x.shape[0], x.width)


@step("image")
def to_tokens(g: Maker, x: Value) -> None:
    """Places become tokens."""
    time = x.size(2) * x.size(3)
    flat = g.reshape(x.name, x.shape, [x.shape[0], x.width, time])
    g.put(g.op("Transpose", flat, perm=[0, 2, 1]), x.shape[0], time, x.width)


@step("image")
def last(g: Maker, x: Value) -> None:
    """Channels moved to the last axis, normalised and mixed there, and moved back."""
    inside = g.channels()
    y = g.op("Transpose", x.name, perm=[0, 2, 3, 1])
    y = g.op("LayerNormalization", y, g.vector(x.width), g.vector(x.width), epsilon=1e-2)
    y = g.activation(g.op("MatMul", y, g.matrix(x.width, inside, fan=x.width)))
    y = g.op("Transpose", g.op("MatMul", y, g.matrix(inside, x.width, fan=inside)), perm=[0, 3, 1, 2])
    g.put(g.op("Add", y, x.name), *x.shape)
