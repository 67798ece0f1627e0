"""Deep graphs made by repeating a layer of a shallow export.

The exporter's time grows with the square of the depth (30 layers take most of a minute, 120 take more than ten), the
graph itself only repeats. So a three-layer export is enough: its second and third layer are the same nodes under other
names, and comparing them shows which names are the layer's own and which one is its input.
"""

import ast
from typing import Any

import numpy as np

SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the module a node comes from


def repeat(model: Any, prefix: str, layers: int) -> None:
    """Grow `model`, an export with three equal layers `<prefix>.0` to `<prefix>.2`, to `layers` of them, in place.

    New layers come at the end; their weights are those of layer 2 in a random order. Raises ValueError for
    fewer than 3, and when the layers are not equal or not joined by one value.
    """
    if layers < 3:
        raise ValueError(f"cannot repeat to {layers} layers: the model has 3 already")
    nodes = list(model.graph.node)
    before, last = (_block(nodes, f"{prefix}.{index}") for index in (1, 2))
    if [node.op_type for node in before] != [node.op_type for node in last]:
        raise ValueError(f"{prefix}.1 and {prefix}.2 are not made of the same nodes")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    own = {name for node in last for name in node.output}
    own |= _inputs(last) & set(tensors) - _inputs(before)
    entry = _inputs(last) & {name for node in before for name in node.output}
    rest = nodes[nodes.index(last[-1]) + 1 :]
    exit_ = _inputs(rest) & own
    if len(entry) != 1 or len(exit_) != 1:
        raise ValueError(f"layers of {prefix} are joined by {sorted(entry)} and {sorted(exit_)}, not by one value")
    (inner,), (outer,) = entry, exit_
    del model.graph.node[len(nodes) - len(rest) :]
    infos = [info for info in model.graph.value_info if info.name in own]
    rng = np.random.default_rng(0)
    joined = outer
    for index in range(3, layers):
        old, new = f"{prefix}.2", f"{prefix}.{index}"
        names = {name: name.replace(old, new) if old in name else f"{name}_layer{index}" for name in own}
        names[inner] = joined
        model.graph.node.extend(_copy(node, names, old, new) for node in last)
        model.graph.initializer.extend(_shuffled(tensors[n], names[n], rng) for n in sorted(own & set(tensors)))
        model.graph.value_info.extend(_renamed(info, names[info.name]) for info in infos)
        joined = names[outer]
    model.graph.node.extend(_copy(node, {outer: joined}, "", "") for node in rest)


def _block(nodes: list[Any], scope: str) -> list[Any]:
    """The nodes from the first to the last that come from the module `scope`."""
    inside = [index for index, node in enumerate(nodes) if scope in _scopes(node)]
    return nodes[inside[0] : inside[-1] + 1]


def _scopes(node: Any) -> list[str]:
    texts = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
    return list(ast.literal_eval(texts[0])) if texts else []


def _inputs(nodes: list[Any]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _copy(node: Any, names: dict[str, str], old: str, new: str) -> Any:
    """The node with other value names; texts that name the module `old` name `new`."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    if old != new:
        copy.name = f"{node.name}_layer{new.rpartition('.')[2]}"
        for entry in copy.metadata_props:
            entry.value = entry.value.replace(old, new)
    return copy


def _shuffled(tensor: Any, name: str, rng: np.random.Generator) -> Any:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(rng.permutation(array.ravel()).reshape(array.shape), name)


def _renamed(item: Any, name: str) -> Any:
    copy = type(item)()
    copy.CopyFrom(item)
    copy.name = name
    return copy
