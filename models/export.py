"""torch modules as ONNX files: the one call to the exporter, quiet, and without paths of this machine in the file."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Axes = dict[int, str]  # axis -> the name of its dynamic size


def export(module: "nn.Module", inputs: dict[str, tuple["Tensor", Axes]], output: str, path: Path) -> None:
    """Write `module` (set to eval mode) to `path` with torch's dynamo exporter, at its default opset.

    `inputs` gives, in the order of the module's arguments, a name, an example, and the axes whose size is dynamic.
    """
    import torch

    examples = tuple(example.clone() for example, _ in inputs.values())  # one tensor given twice would become one input
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            examples,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(axes for _, axes in inputs.values()),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"the exporter made nothing of {type(module).__name__}")
    save(program.model_proto, path)


def export_as_is(module: "nn.Module", image: tuple[int, ...], path: Path) -> None:
    """Write a network from "image" [batch, *image] to "logits" with its batch normalisations as nodes of their own.

    The dynamo exporter folds them into convolutions; the older one can leave them.
    """
    import onnx
    import torch

    with quiet(), torch.no_grad():
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, *image),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=18,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    save(onnx.load(path), path)


def save(model: Any, path: Path) -> None:
    """Save an ONNX model without the stack traces that the exporter leaves in each node: they hold local paths."""
    import onnx

    for node in _nodes(model.graph):
        kept = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
    onnx.save(model, path)
    onnx.checker.check_model(path)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines below errors: the exporter names each optional library that is absent."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in _bodies(attribute):
                yield from _nodes(body)


def _bodies(attribute: Any) -> Sequence[Any]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
