"""Ways to spoil an ONNX file, each by dice: structure in the protobuf, then bytes.

A mutation changes the protobuf in place and says in a line what it did; "" where there was nothing to do it to. Given
the same file and the same dice it does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

Mutation = Callable[[onnx.ModelProto, Random], str]
MUTATIONS: dict[str, Mutation] = {}
BYTES = ("flip", "cut", "repeat", "splice", "number")
"""What is done to the bytes of a file; `splice` takes some of another."""

SIZES = (0, -1, -(2**40), 1, 2, 3, 7, 2**15, 2**24, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
NUMBERS = (*SIZES, -2, -3, 4, 5, 64, 99, -99, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3e38)
NAMES: tuple[str, ...] = (
    "",
    " ",
    "\0",
    "x" * 5000,
    "../../x",
    "/etc/passwd",
    "ключ \u202e\u0301",
    "<script>alert(1)</script>",
    "\x1b[2J",
)
NAMES += ("graphprune/branch", "graphprune/mask_0", "x@2", "[bold]", "a\nb", "{0}", "%s", "'\"")
OUTSIDE = ("../secret.bin", "../../secret.bin", "/etc/passwd", "link/../../secret.bin", "link", "linked/secret.bin")
LOCATIONS = (
    *OUTSIDE,
    "",
    ".",
    "..",
    "\0",
    "absent.bin",
    "loop",
    "model.onnx",
    "C:\\x",
    "file:///etc/passwd",
    "x" * 5000,
)
"""Where external data may be said to lie: names outside the folder of the model, then others."""
DEPTHS = (2, 5, 20, 30, 31, 32, 33)
"""Of bodies in bodies; protobuf reads 100 messages deep, which are 33 bodies."""
VERSIONS = (0, -1, 1, 6, 7, 8, 13, 20, 25, 26, 99, 2**31, 2**62)
GIANT = ("ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad", "OneHot", "EyeLike", "RandomNormal", "Loop")


def mutation(function: Mutation) -> Mutation:
    """Put a mutation into the table."""
    MUTATIONS[function.__name__.rstrip("_")] = function
    return function


# What there is to spoil.


def messages(message: Message) -> Iterator[Message]:
    """A protobuf message and all inside it."""
    todo = [message]
    while todo:
        one = todo.pop()
        yield one
        for field, value in one.ListFields():
            if field.type == field.TYPE_MESSAGE:
                todo += list(value) if field.is_repeated else [value]


def _all(proto: onnx.ModelProto, kind: type) -> list[Any]:
    return [message for message in messages(proto) if isinstance(message, kind)]


def _one(dice: Random, proto: onnx.ModelProto, kind: type) -> Any:
    """One message of a kind; None where there is none."""
    found = _all(proto, kind)
    return dice.choice(found) if found else None


def _names(proto: onnx.ModelProto) -> list[str]:
    """Every value of the main graph, in order."""
    graph = proto.graph
    return [item.name for item in (*graph.input, *graph.initializer)] + [o for n in graph.node for o in n.output if o]


def outside(proto: onnx.ModelProto) -> bool:
    """Whether a tensor that somebody may read is said to lie outside the model's folder."""
    places = {
        e.value
        for t in _all(proto, TensorProto)
        if t.data_location == TensorProto.EXTERNAL
        for e in t.external_data
        if e.key == "location"
    }
    return not places.isdisjoint(OUTSIDE)


# Sizes.


@mutation
def dims(proto: onnx.ModelProto, dice: Random) -> str:
    """A declared size becomes another: of a weight, an input, an output, a value inside."""
    tensors = [t for t in _all(proto, TensorProto) if t.dims]
    infos = _all(proto, onnx.TensorShapeProto.Dimension)
    size = dice.choice(SIZES)
    if infos and (not tensors or dice.random() < 0.5):
        dim = dice.choice(infos)
        dim.dim_value = size
        return f"a declared size becomes {size}"
    if not tensors:
        return ""
    tensor = dice.choice(tensors)
    axis = dice.randrange(len(tensor.dims))
    tensor.dims[axis] = size
    return f"axis {axis} of weight {tensor.name!r} becomes {size}"


@mutation
def rank(proto: onnx.ModelProto, dice: Random) -> str:
    """A weight or value gets an axis more, or one less."""
    shapes = [t.dims for t in _all(proto, TensorProto)] + [s.dim for s in _all(proto, onnx.TensorShapeProto)]
    shape = dice.choice(shapes)
    if len(shape) and dice.random() < 0.5:
        del shape[dice.randrange(len(shape))]
        return "an axis less"
    if hasattr(shape, "add"):
        shape.add(dim_value=dice.choice(SIZES))
    else:
        shape.append(dice.choice(SIZES))
    return "an axis more"


@mutation
def hollow(proto: onnx.ModelProto, dice: Random) -> str:
    """A weight is declared giant, and holds next to nothing."""
    tensor = _one(dice, proto, TensorProto)
    if tensor is None:
        return ""
    shape = dice.choice(([2**40], [2**20, 2**20], [2**31, 2**31, 2**31], [2**62, 4], [2**63 - 1], [65536, 65536]))
    tensor.dims[:] = shape
    tensor.raw_data = dice.choice((b"", b"\0\0\0\0", tensor.raw_data))
    return f"weight {tensor.name!r} is declared {shape}, with {len(tensor.raw_data)} bytes"


@mutation
def numbers(proto: onnx.ModelProto, dice: Random) -> str:
    """A constant that ops take as a size, an axis or a bound becomes another."""
    found = [t for t in _all(proto, TensorProto) if t.data_type in (6, 7) and 0 < len(t.raw_data) <= 256]
    found = [t for t in found if len(t.raw_data) % (8 if t.data_type == 7 else 4) == 0]
    if not found:
        return ""
    tensor = dice.choice(found)
    values = np.frombuffer(tensor.raw_data, "<i8" if tensor.data_type == 7 else "<i4").copy()
    if not len(values):
        return ""
    number = dice.choice(NUMBERS)
    values[dice.randrange(len(values))] = np.int64(number).astype(values.dtype)
    tensor.raw_data = values.tobytes()
    return f"an entry of {tensor.name!r} becomes {number}"


@mutation
def giant(proto: onnx.ModelProto, dice: Random) -> str:
    """An op that makes something giant of constants, the result of which joins a value of the model."""
    value, node = _reader(proto, dice)
    if node is None:
        return ""
    kind, size = dice.choice(GIANT), dice.choice((2**20, 2**31, 2**34, 2**40, 2**62))
    graph = proto.graph

    def constant(number: Any, dtype: Any = np.int64) -> str:
        name = f"fuzz/{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(np.array(number, dtype), name))
        return name

    ways: dict[str, Callable[[], NodeProto]] = {
        "ConstantOfShape": lambda: helper.make_node(kind, [constant([size])], ["fuzz/made"]),
        "Expand": lambda: helper.make_node(kind, [constant(1.0, np.float32), constant([size])], ["fuzz/made"]),
        "Tile": lambda: helper.make_node(kind, [constant([1.0], np.float32), constant([size])], ["fuzz/made"]),
        "Range": lambda: helper.make_node(kind, [constant(0), constant(size), constant(1)], ["fuzz/made"]),
        "Resize": lambda: helper.make_node(kind, [value, "", "", constant([size] * 4)], ["fuzz/made"]),
        "Pad": lambda: helper.make_node(kind, [value, constant([size] * 4)], ["fuzz/made"]),
        "OneHot": lambda: helper.make_node(
            kind, [constant([1]), constant(size), constant([0.0, 1.0], np.float32)], ["fuzz/made"]
        ),
        "EyeLike": lambda: helper.make_node(kind, [constant(np.zeros((4, 4)))], ["fuzz/made"], k=size),
        "RandomNormal": lambda: helper.make_node(kind, [], ["fuzz/made"], shape=[size]),
        "Loop": lambda: helper.make_node(
            kind, [constant(size), constant(True, np.bool_), value], ["fuzz/made"], body=_body()
        ),
    }
    graph.node.insert(0, helper.make_node("ReduceMax", ["fuzz/made"], ["fuzz/most"], keepdims=0))
    graph.node.insert(0, ways[kind]())
    at = list(node.input).index(value)
    graph.node.insert(
        2,
        helper.make_node(
            dice.choice(("Add", "Mul")), [value, dice.choice(("fuzz/made", "fuzz/most"))], ["fuzz/joined"]
        ),
    )
    node.input[at] = "fuzz/joined"
    _sorted(graph)
    return f"{kind} of {size} joins {value!r}"


def _body() -> GraphProto:
    infos = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("c", 9, []), ("s", 1, None))]
    ends = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("d", 9, []), ("t", 1, None))]
    nodes = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["s"], ["t"])]
    return helper.make_graph(nodes, "body", infos, ends)


def _reader(proto: onnx.ModelProto, dice: Random) -> tuple[str, NodeProto | None]:
    """A value and a node of the main graph that reads it."""
    found = [(name, node) for node in proto.graph.node for name in node.input if name]
    return dice.choice(found) if found else ("", None)


def _sorted(graph: GraphProto) -> None:
    """The nodes put in order once more, where an order exists; each reads only what is there."""
    made = {name for node in graph.node for name in node.output}
    done: set[str] = set()
    left, order = list(graph.node), list[NodeProto]()
    while left:
        ready = [n for n in left if all(name in done or name not in made for name in n.input)]
        if not ready:
            break
        order += ready
        done |= {name for node in ready for name in node.output}
        left = [n for n in left if not any(n is r for r in ready)]
    order = [NodeProto.FromString(node.SerializeToString()) for node in (*order, *left)]
    del graph.node[:]
    graph.node.extend(order)


# Names, and who reads what.


@mutation
def names(proto: onnx.ModelProto, dice: Random) -> str:
    """Something is called what something else is called, or what nothing should be called."""
    kind = dice.choice((NodeProto, TensorProto, onnx.ValueInfoProto, GraphProto, AttributeProto, onnx.FunctionProto))
    one, other = _one(dice, proto, kind), _one(dice, proto, kind)
    if one is None:
        return ""
    before, name = one.name, dice.choice((*NAMES, other.name))
    one.name = name
    return f"{kind.__name__} {before!r} is now {name[:30]!r}"


@mutation
def renamed(proto: onnx.ModelProto, dice: Random) -> str:
    """A value is renamed everywhere, so that the model is as sound as it was."""
    values = _names(proto)
    if not values:
        return ""
    before, after = dice.choice(values), dice.choice((*NAMES[1:], "Ω", "a/b:0"))
    for message in messages(proto):
        if isinstance(message, NodeProto):
            message.input[:] = [after if name == before else name for name in message.input]
            message.output[:] = [after if name == before else name for name in message.output]
        elif isinstance(message, (TensorProto, onnx.ValueInfoProto)) and message.name == before:
            message.name = after
    return f"value {before!r} is {after[:30]!r} everywhere"


@mutation
def dangling(proto: onnx.ModelProto, dice: Random) -> str:
    """Something that is read is not there any more."""
    graph = dice.choice(_all(proto, GraphProto) or [proto.graph])
    where = dice.choice(("input", "node", "initializer", "output"))
    if where == "input":
        _, node = _reader(proto, dice)
        if node is None:
            return ""
        node.input[dice.randrange(len(node.input))] = dice.choice(("nobody", "", *NAMES[:4]))
        return f"an input of {node.op_type} is not there"
    items = getattr(graph, where)
    if not len(items):
        return ""
    at = dice.randrange(len(items))
    if where == "output":
        items[at].name = "nobody"
        return "an output is not there"
    del items[at]
    return f"{where} {at} is gone"


@mutation
def rewired(proto: onnx.ModelProto, dice: Random) -> str:
    """A node reads another value, one more, one less, or the same ones in another order."""
    node = _one(dice, proto, NodeProto)
    values = _names(proto)
    if node is None or not values:
        return ""
    way = dice.choice(("other", "more", "less", "order"))
    if way == "more" or not node.input:
        node.input.append(dice.choice(values))
    elif way == "less":
        del node.input[dice.randrange(len(node.input))]
    elif way == "order":
        mixed = list(node.input)
        dice.shuffle(mixed)
        node.input[:] = mixed
    else:
        node.input[dice.randrange(len(node.input))] = dice.choice(values)
    return f"{node.op_type} reads {way} inputs"


@mutation
def order(proto: onnx.ModelProto, dice: Random) -> str:
    """Nodes in another order, or in a ring."""
    graph = dice.choice(_all(proto, GraphProto) or [proto.graph])
    if len(graph.node) < 2:
        return ""
    if dice.random() < 0.5:
        first, last = sorted(dice.sample(range(len(graph.node)), 2))
        if graph.node[first].input and graph.node[last].output:
            at = dice.randrange(len(graph.node[first].input))
            graph.node[first].input[at] = graph.node[last].output[0]
        return f"node {first} waits for node {last}"
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    dice.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    return "nodes are shuffled"


@mutation
def outputs(proto: onnx.ModelProto, dice: Random) -> str:
    """Outputs twice, outputs that are inputs or weights, nodes that make the same value, none at all."""
    graph = dice.choice(_all(proto, GraphProto) or [proto.graph])
    way = dice.choice(("twice", "input", "weight", "inner", "same", "none", "untyped"))
    if way == "twice" and len(graph.output):
        graph.output.append(graph.output[0])
    elif way == "input" and len(graph.input):
        graph.output.append(graph.input[0])
    elif way == "weight" and len(graph.initializer):
        tensor = dice.choice(graph.initializer)
        graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)[:8]))
    elif way == "inner" and len(graph.node):
        graph.output.append(onnx.ValueInfoProto(name=dice.choice([o for n in graph.node for o in n.output] or ["x"])))
    elif way == "same" and len(graph.node) > 1:
        one, other = dice.sample(list(graph.node), 2)
        if one.output and other.output:
            one.output[0] = other.output[0]
    elif way == "none":
        del graph.output[:]
    elif way == "untyped" and len(graph.output):
        dice.choice(graph.output).ClearField("type")
    return f"outputs: {way}"


@mutation
def listed(proto: onnx.ModelProto, dice: Random) -> str:
    """A weight is an input, too, of a size of its own; or an input comes twice."""
    graph = dice.choice(_all(proto, GraphProto) or [proto.graph])
    if len(graph.initializer) and dice.random() < 0.8:
        tensor = dice.choice(graph.initializer)
        shape = [dice.choice((size, size, "N", dice.choice(SIZES))) for size in tensor.dims][:8]
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
        return f"weight {tensor.name!r} is an input of {shape}"
    if not len(graph.input):
        return ""
    graph.input.append(dice.choice(graph.input))
    return "an input twice"


@mutation
def sparse(proto: onnx.ModelProto, dice: Random) -> str:
    """A sparse initialiser that may say what it likes."""
    values = numpy_helper.from_array(np.ones(2, np.float32), dice.choice((*_names(proto)[:3], "sparse", "")))
    places = numpy_helper.from_array(np.array(dice.choice(([0, 1], [2**40, 5], [-1, 3], [[0, 1], [1, 2]])), np.int64))
    size = [dice.choice(SIZES) for _ in range(dice.choice((1, 1, 2)))]
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=places, dims=size))
    return f"a sparse weight of {size}"


# What nodes say.


@mutation
def attributes(proto: onnx.ModelProto, dice: Random) -> str:
    """An attribute goes, or holds another number, another type, or more than it should."""
    attribute = _one(dice, proto, AttributeProto)
    way = dice.choice(("gone", "number", "type", "list", "text", "new"))
    if attribute is None or way == "new":
        node = _one(dice, proto, NodeProto)
        if node is None:
            return ""
        name = dice.choice(("axis", "axes", "group", "num_heads", "perm", "to", "mode", "scale", "domain", "body"))
        node.attribute.append(helper.make_attribute(name, dice.choice((*NUMBERS, 0.5, "x"))))
        return f"{node.op_type} says {name}"
    name = attribute.name
    if way == "gone":
        holders = [n for n in _all(proto, NodeProto) if attribute in n.attribute]
        if not holders:
            return ""
        holders[0].attribute.remove(attribute)
    elif way == "type":
        attribute.type = dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11))
    elif way == "text":
        attribute.s, attribute.type = dice.choice((b"", b"\xff\xfe", b"NOTSET", b"SAME_UPPER", b"reflect")), 3
    elif attribute.type == AttributeProto.INTS or way == "list":
        attribute.type = AttributeProto.INTS
        values = [*attribute.ints, dice.choice(NUMBERS)]
        attribute.ClearField("ints")
        attribute.ints.extend(
            values[dice.randrange(2) :] if dice.random() < 0.5 else [dice.choice(NUMBERS)] * len(values)
        )
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = dice.choice(FLOATS)
    else:
        attribute.i, attribute.type = dice.choice(NUMBERS), AttributeProto.INT
    return f"attribute {name!r}: {way}"


@mutation
def ops(proto: onnx.ModelProto, dice: Random) -> str:
    """A node is another op, or one of a domain of its own."""
    node, other = _one(dice, proto, NodeProto), _one(dice, proto, NodeProto)
    if node is None:
        return ""
    before = node.op_type
    if dice.random() < 0.6:
        schemas = onnx.defs.get_all_schemas()
        node.op_type = dice.choice((other.op_type, dice.choice(schemas).name))
        node.domain = ""
    else:
        node.domain = dice.choice(("evil.so", "../evil", "com.microsoft", "ai.onnx.contrib", "ai.onnx.ml", "\0"))
        node.op_type = dice.choice((before, "PythonOp", "../../evil.so", "", "ExternalCustomOp"))
        if dice.random() < 0.7:
            proto.opset_import.append(helper.make_opsetid(node.domain, dice.choice((1, *VERSIONS))))
        proto.metadata_props.add(key="custom_ops_library", value="../evil.so")
    return f"{before} is {node.domain}:{node.op_type}"


@mutation
def dtypes(proto: onnx.ModelProto, dice: Random) -> str:
    """A weight, an input or a Cast is of another type."""
    kind = dice.randrange(0, 30)
    found: list[Any] = [*_all(proto, TensorProto), *_all(proto, onnx.TypeProto.Tensor)]
    found += [a for a in _all(proto, AttributeProto) if a.name == "to"]
    one = dice.choice(found)
    field = {"TensorProto": "data_type", "Tensor": "elem_type", "AttributeProto": "i"}[type(one).__name__]
    setattr(one, field, kind)
    return f"a {type(one).__name__} is of type {kind}"


@mutation
def values(proto: onnx.ModelProto, dice: Random) -> str:
    """A float weight holds something that trained ones do not."""
    found = [t for t in _all(proto, TensorProto) if t.data_type == 1 and len(t.raw_data) >= 4]
    if not found:
        return ""
    tensor = dice.choice(found)
    data = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], "<f4").copy()
    number = dice.choice(FLOATS)
    data[slice(None) if dice.random() < 0.5 else dice.randrange(len(data))] = number
    tensor.raw_data = data.tobytes()
    return f"weight {tensor.name!r} holds {number}"


@mutation
def stored(proto: onnx.ModelProto, dice: Random) -> str:
    """The bytes of a weight are too many, too few, or in another field."""
    tensor = _one(dice, proto, TensorProto)
    if tensor is None:
        return ""
    way = dice.choice(("short", "long", "none", "field", "text"))
    if way == "short":
        tensor.raw_data = tensor.raw_data[: dice.randrange(len(tensor.raw_data) + 1)]
    elif way == "long":
        tensor.raw_data += b"\1" * dice.choice((1, 4, 1000))
    elif way == "none":
        tensor.ClearField("raw_data")
    elif way == "field":
        getattr(tensor, dice.choice(("int32_data", "int64_data", "uint64_data"))).extend([dice.randrange(2**30)] * 3)
        tensor.float_data.append(1.0)
    else:
        tensor.string_data.append(b"\xff")
        tensor.data_type = TensorProto.STRING
    return f"bytes of {tensor.name!r}: {way}"


# Files beside the model.


@mutation
def external(proto: onnx.ModelProto, dice: Random) -> str:
    """A weight is said to lie in another file: one outside, one that is not there, one of another length."""
    tensor = _one(dice, proto, TensorProto)
    if tensor is None:
        return ""
    entries = {"location": dice.choice(LOCATIONS)}
    if dice.random() < 0.5:
        entries["offset"] = str(dice.choice((0, 4096, 1, -1, 2**40, 2**70, "x", "", "1e3", "٣")))
    if dice.random() < 0.5:
        entries["length"] = str(dice.choice((len(tensor.raw_data), 0, -1, 2**40, 2**70, "x")))
    if dice.random() < 0.3:
        tensor.dims[:] = [2**40]
    elif dice.random() < 0.3:
        tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return f"weight {tensor.name!r} lies in {entries['location'][:40]!r}"


# Bodies and functions.


@mutation
def deep(proto: onnx.ModelProto, dice: Random) -> str:
    """Branches in branches in branches around a value."""
    value, node = _reader(proto, dice)
    if node is None:
        return ""
    depth, inner = dice.choice(DEPTHS), value
    body = helper.make_graph(
        [helper.make_node("Neg", [inner], ["deep_0"])], "b", [], [onnx.ValueInfoProto(name="deep_0")]
    )
    for level in range(1, depth):
        branches = {"then_branch": body, "else_branch": body if level < 8 else _end(value, level)}
        node_ = helper.make_node("If", ["fuzz/yes"], [f"deep_{level}"], **branches)
        body = helper.make_graph([node_], "b", [], [onnx.ValueInfoProto(name=f"deep_{level}")])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "fuzz/yes"))
    node.input[list(node.input).index(value)] = "fuzz/deep"
    proto.graph.node.insert(
        0, helper.make_node("If", ["fuzz/yes"], ["fuzz/deep"], then_branch=body, else_branch=_end(value, 0))
    )
    _sorted(proto.graph)
    return f"{depth} branches deep"


def _end(value: str, level: int) -> GraphProto:
    node = helper.make_node("Neg", [value], [f"end_{level}"])
    return helper.make_graph([node], "b", [], [onnx.ValueInfoProto(name=f"end_{level}")])


@mutation
def functions(proto: onnx.ModelProto, dice: Random) -> str:
    """Functions that call themselves, each other, or a great many others; or that are called what an op is called."""
    value, node = _reader(proto, dice)
    if node is None:
        return ""
    way = dice.choice(("itself", "each other", "doubling", "shadow", "missing", "arity"))
    domain = "" if way == "shadow" else "fuzz"
    kinds = {"shadow": "Relu", "missing": "Nowhere"}
    depth = dice.choice((10, 18, 40, 400))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("fuzz", 1)]

    def function(name: str, calls: Sequence[str]) -> None:
        inner, last = [], "x"
        for i, call in enumerate(calls):
            last = "y" if i == len(calls) - 1 else f"t{i}"
            inner.append(
                helper.make_node(call, ["x" if not i else f"t{i - 1}"], [last], domain="fuzz" if call != "Neg" else "")
            )
        proto.functions.append(helper.make_function(domain, name, ["x"], ["y"], inner, opsets))

    if way in ("itself", "each other"):
        function("F0", ["F0" if way == "itself" else "F1"])
        function("F1", ["F0"])
    elif way == "doubling":
        for level in range(depth):
            function(f"F{level}", [f"F{level + 1}"] * 2 if level < depth - 1 else ["Neg"])
    else:
        function(kinds.get(way, "F0"), ["Neg"])
    proto.opset_import.append(helper.make_opsetid("fuzz", 1))
    at = list(node.input).index(value)
    inputs = [value, value, value] if way == "arity" else [value]
    proto.graph.node.insert(
        0,
        helper.make_node(
            "F0" if way not in kinds else ("Relu" if way == "shadow" else "F0"), inputs, ["fuzz/f"], domain=domain
        ),
    )
    node.input[at] = "fuzz/f"
    _sorted(proto.graph)
    return f"a function: {way}"


# The file as a whole.


@mutation
def versions(proto: onnx.ModelProto, dice: Random) -> str:
    """Versions of the format and of the ops that nobody has heard of."""
    version = dice.choice(VERSIONS)
    way = dice.choice(("ir", "opset", "twice", "none", "domain", "function"))
    if way == "ir":
        proto.ir_version = version
    elif way == "opset" and len(proto.opset_import):
        dice.choice(proto.opset_import).version = version
    elif way == "twice":
        proto.opset_import.append(helper.make_opsetid(dice.choice(("", "ai.onnx")), version))
    elif way == "none":
        del proto.opset_import[:]
    elif way == "domain":
        proto.opset_import.append(helper.make_opsetid(dice.choice(NAMES), version))
    elif len(proto.functions):
        dice.choice(proto.functions).opset_import.append(helper.make_opsetid("", version))
    return f"version {way}: {version}"


@mutation
def fields(proto: onnx.ModelProto, dice: Random) -> str:
    """A field of some message is cleared, or an entry of one is there twice."""
    message = dice.choice(list(messages(proto)))
    found = message.ListFields()
    if not found:
        return ""
    field, value = dice.choice(found)
    if field.is_repeated and field.type == field.TYPE_MESSAGE and dice.random() < 0.5:
        value.append(dice.choice(value))
        return f"{type(message).__name__}.{field.name}: one twice"
    message.ClearField(field.name)
    return f"{type(message).__name__}.{field.name} is cleared"


def spoil_bytes(data: bytes, way: str, dice: Random, other: bytes) -> bytes:
    """The bytes of a file: some flipped, the rest cut off, a span repeated or taken from ``other``, or a number set.

    The head and the small parts hold the structure, so half of the places are near the start or the end.
    """
    if not data:
        return data
    spoilt = bytearray(data)

    def place() -> int:
        near = min(len(spoilt), 2000)
        return dice.choice((dice.randrange(len(spoilt)), dice.randrange(near), len(spoilt) - 1 - dice.randrange(near)))

    if way == "flip":
        for _ in range(dice.choice((1, 1, 3, 20))):
            spoilt[place()] ^= 1 << dice.randrange(8)
    elif way == "cut":
        start = place()
        del spoilt[start : dice.choice((len(spoilt), start + dice.randrange(1, 64)))]
    elif way == "repeat":
        start, long = place(), dice.randrange(1, 300)
        spoilt[start:start] = spoilt[start : start + long]
    elif way == "splice":
        start, source, long = place(), dice.randrange(max(1, len(other))), dice.randrange(1, 400)
        spoilt[start : start + dice.choice((0, long))] = other[source : source + long]
    else:
        start = place()
        spoilt[start : start + 1] = dice.choice(
            (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x80\x40")
        )
    return bytes(spoilt)
