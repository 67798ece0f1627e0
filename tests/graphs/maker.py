"""What the steps of a random graph work with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.build import INT64, OUTPUTS, Net

T = TypeVar("T")
Sizes = tuple[int | None, ...]
CHANNELS = (2, 3, 4, 6, 8, 12)
MOST_POSITIONS = 48
FEWEST_STEPS, MOST_STEPS = 3, 12


class Value(NamedTuple):
    """A tensor of the graph; a size of None follows the input."""

    name: str
    shape: Sizes

    @property
    def flavour(self) -> str:
        """image (batch, channels, height, width), tokens (batch, time, features) or rows (batch, features)."""
        return {4: "image", 3: "tokens", 2: "rows"}[len(self.shape)]

    @property
    def width(self) -> int:
        """Channels or features."""
        return self.size(1 if len(self.shape) == 4 else -1)

    def size(self, axis: int) -> int:
        """A size that is known."""
        size = self.shape[axis]
        assert size is not None
        return size


class Sample(NamedTuple):
    """A model, the steps that made it, and the seed of its weights."""

    proto: onnx.ModelProto
    steps: tuple[str, ...]
    seed: int


Step = Callable[["Maker", Value], None]
STEPS: dict[str, list[Step]] = {"image": [], "tokens": [], "rows": []}


def step(*flavours: str) -> Callable[[Step], Step]:
    """Register a step for values of these flavours."""

    def register(function: Step) -> Step:
        for flavour in flavours:
            STEPS[flavour].append(function)
        return function

    return register


class Maker:
    """A graph under construction."""

    def __init__(self, draw: Callable[..., Any], seed: int) -> None:
        self.draw = draw
        self.net = Net(seed)
        self.live: list[Value] = []
        self.read: set[str] = set()
        self.steps: list[str] = []
        self.vectors: dict[Sizes, str] = {}
        self.matrices: dict[Sizes, str] = {}

    # Choices.

    def pick(self, *options: T) -> T:
        """One of ``options``."""
        found: T = self.draw(st.sampled_from(options))
        return found

    def flip(self, chance: int = 2) -> bool:
        """True once in ``chance`` times."""
        return bool(self.draw(st.integers(0, chance - 1)) == chance - 1)

    def channels(self) -> int:
        """A number of channels."""
        return self.pick(*CHANNELS)

    def other(self, x: Value) -> Value | None:
        """Another value of the shape of ``x``."""
        same = [value for value in self.live if value.shape == x.shape and value.name != x.name]
        return self.pick(*same) if same else None

    # Nodes.

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """A node of one output."""
        self.read.update(inputs)
        return self.net.op(kind, *inputs, **attrs)

    def ops(self, kind: str, *inputs: str, **attrs: Any) -> list[str]:
        """A node of several outputs."""
        self.read.update(inputs)
        return self.net.ops(kind, *inputs, **attrs)

    def put(self, name: str, *shape: int | None) -> Value:
        """A value that later steps may take."""
        value = Value(name, shape)
        self.live.append(value)
        return value

    def matrix(self, *shape: int, fan: int) -> str:
        """Weights; once in six times those of an earlier layer of this shape, as tied layers have.

        Some are stored otherwise than they are used: turned around, or behind an op that does nothing.
        """
        if shape in self.matrices and self.flip(6):
            return self.matrices[shape]
        order = list(range(len(shape)))
        if self.flip(8):
            order = self.draw(st.permutations(order))
        stored = self.net.weight(*(shape[order.index(axis)] for axis in range(len(shape))), fan=fan)
        if order != sorted(order):
            stored = self.op("Transpose", stored, perm=order)
        self.matrices[shape] = self.op("Identity", stored) if self.flip(8) else stored
        return self.matrices[shape]

    def vector(self, size: int) -> str:
        """A bias or scale; once in three times one that an exporter merged with an earlier one."""
        if (size,) in self.vectors and self.flip(3):
            return self.vectors[size,]
        self.vectors[size,] = self.net.weight(size)
        return self.vectors[size,]

    def activation(self, name: str) -> str:
        """A pointwise op, or none."""
        kind = self.pick("", "Relu", "Tanh", "Sigmoid", "Elu", "Softplus", "Silu")
        if kind == "Silu":
            return self.op("Mul", name, self.op("Sigmoid", name))
        return self.op(kind, name) if kind else name

    def reshape(self, name: str, before: Sizes, after: Sequence[int | None]) -> str:
        """``after`` has None where an unknown size of ``before`` goes on; the target is written in one of four ways."""
        unknown = [i for i, size in enumerate(after) if size is None]
        ways = ["numbers"] if not unknown else ["computed"]
        if len(unknown) < 2:
            ways.append("minus one")
        if all(i < len(before) and before[i] is None for i in unknown):
            ways.append("zero")
        return self.op("Reshape", name, self._target(self.pick(*ways), name, before, list(after), unknown))

    def _target(self, way: str, name: str, before: Sizes, after: list[int | None], unknown: list[int]) -> str:
        if way == "computed":
            sources = dict(zip(unknown, [i for i, size in enumerate(before) if size is None], strict=True))
            whole = self.op("Shape", name)
            parts = [
                self.op("Gather", whole, self.net.const([sources[i]])) if size is None else self.net.const([size])
                for i, size in enumerate(after)
            ]
            return self.op("Concat", *parts, axis=0)
        numbers = [0 if size is None else size for size in after]
        if way == "minus one":
            free = unknown[0] if unknown else self.pick(*range(len(after)))
            numbers[free] = -1
        return self.net.const(numbers)

    # The whole.

    def run(self) -> None:
        """Inputs, steps, outputs."""
        for _ in range(1 + self.flip(4)):
            self.start(self.pick("image", "tokens", "rows"))
        for _ in range(self.draw(st.integers(FEWEST_STEPS, MOST_STEPS))):
            x = self.live[-1] if self.flip() else self.pick(*self.live)
            chosen = self.pick(*STEPS[x.flavour])
            self.steps.append(f"{x.flavour} {chosen.__name__}")
            chosen(self, x)
        self.finish()

    def start(self, flavour: str) -> None:
        """An input and the layer that reads it."""
        batch = self.pick(2, None)
        out = self.channels()
        named: int | str = batch or "N"
        if flavour == "image":
            side = self.pick(4, 6)
            x = self.net.input(named, 3, side, side)
            made = self.op("Conv", x, self.matrix(out, 3, 3, 3, fan=27), self.vector(out), pads=[1, 1, 1, 1])
            self.put(made, batch, out, side, side)
        elif flavour == "tokens":
            time = self.pick(3, 4, None)
            if self.flip(3):
                ids = self.net.input(named, time or "T", dtype=INT64)
                made = self.op("Gather", self.net.weight(7, out), ids, axis=0)
            else:
                x = self.net.input(named, time or "T", 5)
                made = self.op("MatMul", x, self.matrix(5, out, fan=5))
            self.put(made, batch, time, out)
        else:
            x = self.net.input(named, 5)
            self.put(self.op("Gemm", x, self.matrix(5, out, fan=5), self.vector(out)), batch, out)

    def finish(self) -> None:
        """What nobody has read goes into the output, each batch into one of its own."""
        ends = [value for value in self.live if value.name not in self.read]
        for batch in {value.shape[0] for value in ends}:
            parts = [self.sum_up(value) for value in ends if value.shape[0] == batch]
            self.net.output(self.op("Sum", *parts) if len(parts) > 1 else parts[0])

    def sum_up(self, x: Value) -> str:
        """(batch, OUTPUTS): over all other axes, in one of the ways that models end."""
        name, size = x.name, x.width
        if x.flavour == "tokens":
            name = self.op("ReduceMean", name, self.net.const([1]), keepdims=0)
        elif x.flavour == "image" and self.flip():
            name = self.op("Flatten", self.op("GlobalAveragePool", name))
        elif x.flavour == "image":
            size = x.width * x.size(2) * x.size(3)
            name = self.op("Flatten", name)
        return self.op("MatMul", name, self.net.weight(size, OUTPUTS, fan=size))


@st.composite
def samples(draw: Callable[..., Any]) -> Sample:
    """A random graph."""
    seed = draw(st.integers(0, 2**16))
    maker = Maker(draw, seed)
    maker.run()
    proto = dressed(maker.net.model(), maker.pick("plain", "plain", "constants", "inputs", "shapes"))
    return Sample(proto, tuple(maker.steps), seed)


def dressed(proto: onnx.ModelProto, way: str) -> onnx.ModelProto:
    """The same model as other exporters write it: weights in Constant nodes or listed as inputs, or all shapes told."""
    if way == "constants":
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
        nodes += proto.graph.node
        del proto.graph.initializer[:]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    elif way == "inputs":
        for tensor in proto.graph.initializer:
            proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    elif way == "shapes":
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return proto


def divisors(size: int) -> list[int]:
    """All of them, one and itself included."""
    return [d for d in range(1, size + 1) if size % d == 0]


def volume(shape: Sizes) -> int:
    """The product of the sizes that are known."""
    return math.prod(size for size in shape if size is not None)
