"""The nine classic ImageNet graphs inside the onnx package, filled with random weights that keep the signal alive.

onnx ships these graphs for its backend tests with the weights left out: a ConstantOfShape node stands in for each
large weight, and only a few small trained ones are left. Here each such node becomes an initialiser of the same name
and shape, drawn so that the network does something: He-scaled convolutions, batch-norm statistics around one, and a
last layer scaled so that the logits spread by about one. The leftover trained weights are drawn again too, because
running statistics of the lost weights do not fit the new ones (one variance is 1.7e-12, another 52908). Every weight
is thus generic: no two channels are equal, none is zero. Accuracy means nothing here; structure, costs and exactness
do.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.packages import make

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
"""The names `light` knows."""

VERSION = 1  # part of the cached file's name: raise it when the weights change
SPREAD = 1.0  # standard deviation of the logits over the classes

Array = npt.NDArray[np.float32]


def light(name: str, weights_as_inputs: bool = False) -> Path:
    """The graph `light_<name>.onnx` with weights, as an ONNX file in the cache. Image [1, 3, 224, 224] in, classes out.

    `weights_as_inputs=True` keeps the oldest way to write a file (IR version 3), where every initialiser is also listed
    as a graph input; otherwise the file says IR version 8 and the image is the only input.

    >>> light("squeezenet").name
    'squeezenet-1.onnx'
    """
    if name not in LIGHT:
        raise ValueError(f"no light model {name!r}; there are {', '.join(LIGHT)}")
    suffix = "-listed" if weights_as_inputs else ""
    return make(f"light/{name}-{VERSION}{suffix}.onnx", lambda path: _build(name, weights_as_inputs, path))


def _build(name: str, weights_as_inputs: bool, path: Path) -> None:
    import onnx

    source = resources.files("onnx") / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    model = onnx.load_from_string(source.read_bytes())
    weights = _weights(model.graph, np.random.default_rng(LIGHT.index(name)))
    _replace(model.graph, weights)
    _list_inputs(model, weights_as_inputs)
    _scale_last(model)
    onnx.save(model, path)
    onnx.checker.check_model(path)


def _weights(graph: Any, rng: np.random.Generator) -> dict[str, Array]:
    """A random array for each float weight: what a ConstantOfShape node fills, and what is an initialiser already."""
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: tuple(t.dims) for name, t in tensors.items() if t.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in tensors:
            shapes[node.output[0]] = tuple(numpy_helper.to_array(tensors[node.input[0]]).tolist())
    users = defaultdict(list)
    for node in graph.node:
        for slot, value in enumerate(node.input):
            users[value].append((node, slot))
    roles = {name: _role(name, users) for name in shapes}
    return {name: _draw(roles[name], shapes[name], rng) for name in sorted(shapes) if roles[name]}


def _role(name: str, users: dict[str, list[tuple[Any, int]]]) -> str:
    """What a weight is to the node that uses it: matrix, positive, or shift; "" when nothing takes it as a weight."""
    if not users[name]:
        return ""
    node, slot = users[name][0]
    if node.op_type in ("Unsqueeze", "Reshape") and slot == 0:
        return _role(node.output[0], users)
    table = {
        ("Conv", 1): "matrix",
        ("Conv", 2): "shift",
        ("Gemm", 1): "matrix",  # transB=1 in every one of these files: outputs first, as in Conv
        ("Gemm", 2): "shift",
        ("BatchNormalization", 1): "positive",
        ("BatchNormalization", 2): "shift",
        ("BatchNormalization", 3): "shift",
        ("BatchNormalization", 4): "positive",
        ("Mul", 1): "positive",
        ("Add", 1): "shift",
    }
    return table.get((node.op_type, slot), "")


def _draw(role: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if role == "positive":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if role == "shift":
        return 0.1 * rng.standard_normal(shape, dtype=np.float32)
    sizes = [size for size in shape if size > 1]  # one Gemm weight is stored as [1, 1, outputs, inputs]
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / np.prod(sizes[1:])))


def _replace(graph: Any, weights: dict[str, Array]) -> None:
    """Put the weights in: out go the nodes that made them, the shapes those read, and the old initialisers."""
    from onnx import numpy_helper

    makers = [node for node in graph.node if node.op_type == "ConstantOfShape" and node.output[0] in weights]
    gone = {name for node in makers for name in node.input}
    for node in makers:
        graph.node.remove(node)
    keep = [tensor for tensor in graph.initializer if tensor.name not in gone and tensor.name not in weights]
    _assign(graph.initializer, keep + [numpy_helper.from_array(array, name) for name, array in weights.items()])
    _assign(graph.input, [value for value in graph.input if value.name not in gone])


def _list_inputs(model: Any, weights_as_inputs: bool) -> None:
    """List each initialiser as a graph input, as IR version 3 demands, or none of them, as IR version 4 allows."""
    from onnx import helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    _assign(model.graph.input, [value for value in model.graph.input if value.name not in tensors])
    if weights_as_inputs:
        listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors.values()]
        model.graph.input.extend(listed)
    else:
        model.ir_version = 8


def _scale_last(model: Any) -> None:
    """Scale the last weight so that the logits of a random image spread by SPREAD over the classes.

    Sums over residual branches grow with depth; without this the softmax of a deep net would be a single one.
    """
    from onnx import numpy_helper

    ends = model.graph.node[-1]
    last = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")][-1]
    name = _source(model.graph, last.input[1])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    spread = np.std(_run_to(model, ends.input[0] if ends.op_type == "Softmax" else ends.output[0]))
    scaled = numpy_helper.to_array(tensor) * np.float32(SPREAD / spread)
    tensor.CopyFrom(numpy_helper.from_array(scaled, name))


def _source(graph: Any, name: str) -> str:
    """The initialiser behind a value that a Reshape may have made."""
    makers = {node.output[0]: node for node in graph.node}
    while name in makers:
        name = makers[name].input[0]
    return name


def _run_to(model: Any, output: str) -> Array:
    """The value `output` for a seeded standard normal image."""
    import onnxruntime
    from onnx import TensorProto, helper

    outputs = list(model.graph.output)
    _assign(model.graph.output, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
    content = model.SerializeToString()  # without a copy of the model: the largest has 575 MB
    _assign(model.graph.output, outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    result: Array = session.run([output], {session.get_inputs()[0].name: image})[0]
    return result


def _assign(field: Any, items: Iterable[Any]) -> None:
    items = list(items)
    del field[:]
    field.extend(items)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or LIGHT:
        print(light(chosen))
