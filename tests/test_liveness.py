"""What activations take at once: by hand on small networks, and on real files by running them and counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import graphprune
from graphprune.analysis import analyse
from graphprune.cost import CostModel
from graphprune.formats import onnx as format_
from models import digits, real
from models.light import light
from tests.build import BOOL, Body, Net

VIEWS = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def cost(net: Net) -> CostModel:
    """The costs of what was built."""
    return CostModel(analyse(format_.read(net.model()).graph))


def activations(net: Net, cut: dict[int, int] | None = None) -> int:
    """Floats that are alive at once, with the Dims of the given sizes cut to others."""
    analysis = analyse(format_.read(net.model()).graph)
    sizes = {atom.dim: (cut or {})[atom.size] for atom in analysis.prunable if atom.size in (cut or {})}
    assert len(sizes) == len(cut or {}), "each size names one Dim"
    count, rest = divmod(CostModel(analysis).activations(sizes), 4)
    assert not rest
    return count


# By hand.


def test_a_node_has_what_it_reads_and_what_it_makes() -> None:
    net = Net()
    x = net.op("MatMul", net.input(5, 8), net.weight(8, 64))
    net.output(net.op("MatMul", net.op("Relu", x), net.weight(64, 3)))
    assert activations(net) == 5 * (64 + 64)
    assert activations(net, {64: 20}) == 5 * (20 + 20)
    assert activations(net, {64: 2}) == 5 * (8 + 2), "at another node now"


def test_what_is_read_later_stays() -> None:
    net = Net()
    x = net.op("Relu", net.op("MatMul", net.input(5, 8), net.weight(8, 64)))
    y = net.op("Relu", net.op("MatMul", x, net.weight(64, 30)))
    net.output(net.op("MatMul", net.op("Add", net.op("MatMul", y, net.weight(30, 64)), x), net.weight(64, 3)))
    assert activations(net) == 5 * 3 * 64, "the sum and both that it is of"
    assert activations(net, {64: 20}) == 5 * (20 + 30 + 30), "beside the second Relu"


def test_an_output_stays_to_the_end_and_an_input_until_it_is_read() -> None:
    net = Net()
    x = net.op("MatMul", net.input(5, 8), net.weight(8, 7))
    net.output(x)
    net.output(net.op("Relu", net.op("Relu", net.op("MatMul", net.input(5, 9), net.weight(9, 7)))))
    assert activations(net) == 5 * (8 + 7 + 9)
    net.output(net.op("MatMul", net.op("MatMul", net.inputs[0].name, net.weight(8, 40)), net.weight(40, 2)))
    assert activations(net) == 5 * (8 + 7 + 7 + 40)


def test_views_share_memory_and_weights_take_none() -> None:
    net = Net()
    table = net.op("Softplus", net.weight(64, 64))
    x = net.op("Reshape", net.op("MatMul", net.input(5, 8), net.weight(8, 64)), net.const([5, 4, 16]))
    x = net.op("Identity", net.op("Reshape", net.op("Unsqueeze", x, net.const([0])), net.const([5, 64])))
    net.output(net.op("MatMul", net.op("MatMul", x, table), net.weight(64, 3)))
    assert activations(net) == 5 * (64 + 64)


def test_what_a_view_shows_stays_for_as_long_as_the_view() -> None:
    net = Net()
    x = net.op("MatMul", net.input(5, 8), net.weight(8, 64))
    seen = net.op("Reshape", x, net.const([5, 64]))
    y = net.op("MatMul", net.op("Relu", net.op("Relu", x)), net.weight(64, 64))
    net.output(net.op("MatMul", net.op("Add", y, seen), net.weight(64, 3)))
    assert activations(net) == 5 * 3 * 64


def test_a_view_of_a_view() -> None:
    net = Net()
    made = x = net.op("MatMul", net.input(5, 8), net.weight(8, 64))
    y = net.op("MatMul", x, net.weight(64, 64))
    for kind, *given in (("Flatten",), ("Unsqueeze", net.const([0])), ("Squeeze", net.const([0])), ("Dropout",)):
        x = net.op(kind, x, *given)
    net.output(net.op("MatMul", net.op("Add", net.op("Add", y, x), made), net.weight(64, 3)))
    assert activations(net) == 5 * 3 * 64


def test_an_output_that_is_a_view() -> None:
    net = Net()
    x = net.op("MatMul", net.input(5, 8), net.weight(8, 64))
    net.output(net.op("Identity", x))
    net.output(net.op("Relu", net.op("Relu", net.op("Relu", x))))
    assert activations(net) == 5 * 3 * 64


def test_element_types() -> None:
    net = Net()
    x = net.op("Cast", net.op("MatMul", net.input(5, 8), net.weight(8, 64)), to=onnx.TensorProto.DOUBLE)
    x = net.op("Cast", net.op("Relu", x), to=onnx.TensorProto.FLOAT)
    net.output(net.op("MatMul", x, net.weight(64, 3)))
    assert activations(net) == 5 * 64 * (2 + 2)


def _branch(net: Net, x: str, hidden: int) -> onnx.GraphProto:
    body = Body(net)
    y = body.op("Relu", body.op("MatMul", x, body.weight(8, hidden)))
    return body.graph(body.op("MatMul", y, body.weight(hidden, 10)))


def _if(condition: Callable[[Net], str]) -> Net:
    """Two branches, 20 and 30 wide, over [5, 8]; what they read is read again."""
    net = Net()
    x = net.input(5, 8)
    branches = {"then_branch": _branch(net, x, 20), "else_branch": _branch(net, x, 30)}
    y = net.op("If", condition(net), **branches)
    net.output(net.op("MatMul", y, net.weight(10, 2)))
    return net


def test_one_branch_runs_at_a_time() -> None:
    """Beside the Relu of the wider one: its input, what it makes, what both read, and what the op gives."""
    bytes_ = cost(_if(lambda net: net.input(1, dtype=BOOL))).activations({})
    assert bytes_ == 4 * 5 * (30 + 30 + 8 + 10) + 1


def test_what_a_branch_gives_is_what_its_op_gives() -> None:
    net = Net()
    x = net.op("Relu", net.input(5, 8))
    bodies = [Body(net), Body(net)]
    made = [body.graph(body.op("MatMul", x, body.weight(8, 90))) for body in bodies]
    net.output(net.op("If", net.input(1, dtype=BOOL), then_branch=made[0], else_branch=made[1]))
    assert cost(net).activations({}) == 4 * 5 * (8 + 90) + 1


def test_bodies_that_are_not_read_are_no_bodies() -> None:
    """A Loop whose body gives too little, inside an If: what it reads is there until it is done, and no longer."""
    net = Net()
    x = net.op("Relu", net.input(5, 8))
    bodies, made = [Body(net), Body(net)], []
    for body in bodies:
        inner = Body(net, 2)
        y = body.op("Relu", x)
        body.op("Loop", net.const(3), net.const(True, np.bool_), y, body=inner.graph(inner.op("Relu", y)))
        made.append(body.graph(body.op("Relu", body.op("MatMul", y, body.weight(8, 9)))))
    net.output(net.op("If", net.input(1, dtype=BOOL), then_branch=made[0], else_branch=made[1]))
    assert cost(net).activations({}) == 4 * 5 * (8 + 8 + 9 + 9) + 1


def test_a_branch_that_never_runs_takes_nothing() -> None:
    net = _if(lambda net: net.const([True], np.bool_))
    assert cost(net).activations({}) == 4 * 5 * (20 + 20 + 8 + 10)


def test_what_a_loop_reads_from_outside_stays_until_it_ends() -> None:
    net = Net()
    x, beside = net.input(5, 8), net.op("Relu", net.input(5, 8))
    body = Body(net)
    _, go, state = body.given(onnx.TensorProto.INT64, ()), body.given(BOOL, ()), body.given(shape=(5, 8))
    y = body.op("MatMul", body.op("Add", state, beside), body.weight(8, 40))
    y = body.op("MatMul", body.op("Relu", y), body.weight(40, 8))
    graph = body.graph(body.op("Identity", go), y, condition=True)
    net.output(net.op("Loop", net.const(3), net.const(True, np.bool_), x, body=graph))
    # what it starts from, what it reads beside, and what it gives; inside, the Relu and what that reads; a count and a
    # condition
    assert cost(net).activations({}) == 4 * 5 * (8 + 8 + 8 + 40 + 40) + 1


def test_where_they_are_most() -> None:
    net = Net()
    x = net.op("MatMul", net.input(5, 8), net.weight(8, 64))
    net.output(net.op("MatMul", net.op("Relu", x, name="here"), net.weight(64, 3)))
    assert cost(net).fullest({}) == "here"
    wide = Net()
    wide.output(wide.op("ReduceMax", wide.input(5, 8)))
    assert cost(wide).fullest({}) == wide.nodes[0].name
    alone = Net()
    alone.output(alone.input(5, 8))
    assert cost(alone).fullest({}) in ("the inputs", "the outputs")


# By running.


def counted(model: onnx.ModelProto, feeds: dict[str, Any]) -> int:
    """Bytes at the fullest node: each value is made when its node runs, and let go once nobody reads it any more."""
    graph = model.graph
    folded = {tensor.name for tensor in graph.initializer}
    whose: dict[str, str] = {}
    for node in graph.node:
        if all(name in folded for name in node.input if name):
            folded |= set(node.output)
        elif node.op_type in VIEWS:
            whose[node.output[0]] = whose.get(node.input[0], node.input[0])
    reads = Counter(whose.get(name, name) for node in graph.node for name in node.input)
    reads.update(whose.get(output.name, output.name) for output in graph.output)
    sizes = executed(model, feeds)
    alive = {name: sizes[name] for name in feeds if name not in folded}
    most = sum(alive.values())
    for node in graph.node:
        alive |= {name: sizes[name] for name in node.output if name and name not in folded and name not in whose}
        most = max(most, sum(alive.values()))
        reads.subtract(whose.get(name, name) for name in node.input)
        alive = {name: size for name, size in alive.items() if reads[name] > 0}
    return most


def executed(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, int]:
    """Bytes of each value, as ONNX Runtime makes them."""
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    have = {output.name for output in proto.graph.output}
    names = dict.fromkeys(name for node in proto.graph.node for name in node.output if name and name not in have)
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    found = dict(zip(outputs, session.run(outputs, feeds), strict=True)) | feeds
    return {name: value.nbytes for name, value in found.items()}


COUNTED: dict[str, Callable[[], Any]] = {
    "digits": lambda: digits.PATH,
    "llama_tiny": real.llama_tiny,
    "ocr_cls": real.ocr_cls,
    "ocr_rec": real.ocr_rec,
    "silero_vad": real.silero_vad,
    "mobilenet_v2": real.mobilenet_v2,
    "minilm_int8": real.minilm_int8,
    "shufflenet": lambda: light("shufflenet"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_files_take_what_is_counted_when_they_run(name: str) -> None:
    """Whole and cut at random: the polynomials of the whole file against the values of the cut one."""
    given = graphprune.load(COUNTED[name]())
    random, model = np.random.default_rng(0), CostModel(given.analysis)
    for round_ in range(3):
        atoms = [atom for atom in given.analysis.prunable if round_ == 1 or random.random() < 0.5]
        sizes = {a.dim: int(random.integers(a.least, a.size)) // 4 * 4 or a.least for a in atoms} if round_ else {}
        kept = {dim: np.arange(size) for dim, size in sizes.items()}
        made = format_.apply(given.model, given.analysis, kept)
        feeds = format_.trials(made, format_.run(made))[0][1]
        assert model.activations(sizes) == counted(made.inline(), feeds)


@pytest.mark.filterwarnings("ignore")  # tracing
def test_modules() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)).eval()
    given = graphprune.load(module, example_inputs=(torch.zeros(5, 8),))
    assert CostModel(given.analysis).activations({}) == 4 * 5 * (64 + 64)
