"""ONNX files that torch differentiates: each op against onnx's own cases, models against ONNX Runtime, and gradients.

Gradients are held against differences of the lifted function itself in double precision, and against torch's on the
same network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from onnx.backend.test.case.node import collect_testcases
from torch.nn.functional import cross_entropy

import graphprune
from graphprune.budget import Request, candidates
from graphprune.errors import UsageError, VerifyError
from graphprune.formats.onnx import OnnxModel
from graphprune.formats.onnx.lift import lift
from graphprune.formats.onnx.lift_ops import OPS
from graphprune.formats.torch.loss import TEMPERATURE, own_loss
from graphprune.scores import Task, score_atoms
from models import digits, light, real
from tests.build import Net
from tests.graphs import Sample, samples

pytestmark = pytest.mark.filterwarnings("ignore")

Floats = npt.NDArray[np.float64]
Feeds = dict[str, npt.NDArray[Any]]
TYPES = {"float16", "float32", "float64", "int64", "int32", "int8", "uint8", "bool"}
STRANGE = ("sequence", "_opt", "empty_set")
"""Cases of values that no weight meets: lists, optional values, reductions of nothing."""
NO_SLOPE = {"Ceil", "Floor", "Round", "Sign", "Mod", "ConstantOfShape", "Range", "BatchNormalization"}
"""Steps, what is made of sizes, and statistics that are taken for constants (the digits network has some)."""
MODELS: dict[str, Callable[[], Any]] = {
    "digits": lambda: digits.PATH,
    **{name: getattr(real, name) for name in ("llama_tiny", "ocr_rec", "ocr_det", "ocr_cls", "silero_vad", "minilm")},
    **{name: getattr(real, name) for name in ("minilm_int8", "mobilenet_v2", "smollm2")},
    **{name: partial(light.light, name) for name in ("shufflenet", "inception_v1", "densenet121", "squeezenet")},
}
CASES = [pytest.param(name, marks=pytest.mark.slow if name == "smollm2" else ()) for name in MODELS]


# Ops.


@cache
def cases() -> dict[str, list[tuple[onnx.ModelProto, Feeds, Feeds]]]:
    """What onnx's own tests give an op and expect of it, for models all of whose ops have a line."""
    found: dict[str, list[tuple[onnx.ModelProto, Feeds, Feeds]]] = {}
    for case in collect_testcases(None):
        proto: Any = case.model
        nodes = proto.graph.node if case.kind == "node" else ()
        if not nodes or any(node.domain or node.op_type not in OPS for node in nodes):
            continue
        if any(word in case.name for word in STRANGE):
            continue
        for inputs, outputs in case.data_sets or ():
            ends = (proto.graph.input, inputs), (proto.graph.output, outputs)
            feeds, wanted = ({i.name: np.asarray(v) for i, v in zip(*end, strict=False)} for end in ends)
            if {str(value.dtype) for value in (*feeds.values(), *wanted.values())} <= TYPES:
                found.setdefault(nodes[0].op_type, []).append((proto, feeds, wanted))
    return found


def check_values(op: str) -> None:
    """The lifted op gives what onnx expects."""
    for proto, feeds, wanted in cases()[op]:
        found = lift(OnnxModel(proto))(feeds)
        for name, value in wanted.items():
            tolerance = 1e-2 if "float16" in {str(v.dtype) for v in (*feeds.values(), value)} else 1e-5
            np.testing.assert_allclose(found[name].numpy(), value, rtol=max(1e-3, tolerance), atol=tolerance)


def check_slopes(op: str) -> None:
    """The gradient along a random direction is how the outputs change along it."""
    random = np.random.default_rng(0)
    for proto, feeds, _ in cases()[op][:6]:
        floats = {k: v.astype(np.float64) for k, v in feeds.items() if v.dtype.kind == "f" and v.size > 1}
        lifted = lift(OnnxModel(proto), torch.float64)
        factors: dict[str, Floats] = {}

        def whole(values: Mapping[str, Any], lifted: Any = lifted, factors: Any = factors) -> Any:
            outputs = {k: v for k, v in lifted(values).items() if v.is_floating_point()}
            for name, value in outputs.items():
                factors.setdefault(name, random.standard_normal(value.shape))
            return sum((v * torch.from_numpy(factors[k])).sum() for k, v in outputs.items())

        moved = {k: v + 1e-3 * random.standard_normal(v.shape) for k, v in floats.items()}  # off the kinks
        leaves = {k: torch.from_numpy(v).requires_grad_() for k, v in moved.items()}
        try:
            value = whole({**feeds, **leaves})
        except UsageError as error:
            assert "no gradient is known" in error.what  # noqa: PT017
            continue
        if not leaves or not isinstance(value, torch.Tensor):  # integers in, or integers out
            continue
        assert value.requires_grad
        slopes: Any = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        directions = [random.standard_normal(leaf.shape) for leaf in leaves.values()]
        pairs = [(d, s.numpy()) for d, s in zip(directions, slopes, strict=True) if s is not None]
        along = sum(float((d * s).sum()) for d, s in pairs)
        ends = []
        for step in (1e-6, -1e-6):
            shifted = {k: v + step * d for (k, v), d in zip(moved.items(), directions, strict=True)}
            ends.append(float(whole({**feeds, **shifted})))
        np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", sorted({op for op in OPS if onnx.defs.has(op)} - {"CastLike"}))
def test_op(op: str) -> None:
    """Values, and slopes where the op has any."""
    check_values(op)
    if op not in NO_SLOPE:
        check_slopes(op)


WRONG: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + 1.0001 * b,
    "BatchNormalization": lambda x, s, b, m, v, **_: torch.nn.functional.batch_norm(x, m, v, s, b, eps=1e-2),
    "Gather": lambda x, i, axis=0: x.index_select(0, i.flatten()).reshape(*i.shape, *x.shape[1:]),
    "Gemm": lambda a, b, c=None, **_: a @ b if c is None else a @ b + c,
    "LSTM": lambda x, w, r, *rest, **_: OPS["GRU"][0][1](x, w[:, :-1], r),
    "MaxPool": lambda x, kernel_shape, **_: torch.nn.functional.max_pool2d(x, kernel_shape),
    "Resize": lambda x, *_, **__: x,
    "Softmax": lambda x, axis=-1: x.softmax(0),
    "Tanh": lambda x: x.tanh().detach(),
    "Where": lambda c, a, b: torch.where(c, b, a),
}


@pytest.mark.parametrize("op", WRONG)
def test_a_wrong_op_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above."""
    monkeypatch.setitem(OPS, op, [(1, WRONG[op])])
    with pytest.raises((AssertionError, UsageError)):
        test_op(op)


# Models.


def differs(loaded: graphprune.Loaded, trials: int = 2) -> Iterator[tuple[str, float]]:
    """The largest difference of each output from ONNX Runtime's, for its size."""
    lifted, runner = lift(loaded.model), loaded.format.run(loaded.model)
    for _, feeds in loaded.format.trials(loaded.model, runner)[:trials]:
        with torch.no_grad():
            found = lifted(feeds)
        for name, value in runner(feeds).items():
            size = 1e-2 + np.abs(value).max(initial=0)
            yield name, float(np.abs(found[name].numpy() - value).max(initial=0) / size)


@pytest.mark.parametrize("name", CASES)
def test_model(name: str) -> None:
    """Lifted models compute what the files do, and all of their weights get a gradient."""
    loaded = graphprune.load(MODELS[name]())
    assert all(error < 1e-4 for _, error in differs(loaded))


def test_random_graphs() -> None:
    """Graphs of all the steps there are."""

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(samples())
    def holds(sample: Sample) -> None:
        try:
            errors = dict(differs(graphprune.load(sample.proto), 1))
        except VerifyError:
            return
        except UsageError as error:
            if "Scan is not implemented for other input axes" in error.what:  # by onnx's reference implementation
                return
            raise
        assert all(error < 1e-3 for error in errors.values()), (sample.steps, errors)

    holds()


def test_gradients_of_a_file_by_differences() -> None:
    """In double precision: the loss moves along each weight of the digits network as its gradient says."""
    lifted = lift(graphprune.load(digits.PATH).model, torch.float64, trainable=True)
    images, labels, *_ = digits.split()
    feeds, target = {"image": images[:8]}, torch.from_numpy(labels[:8])
    random = np.random.default_rng(0)

    def lost() -> torch.Tensor:
        return cross_entropy(lifted(feeds)["logits"], target)

    names = [name for name in lifted.weights if "running" not in name]
    assert len(names) > 15
    gradients = torch.autograd.grad(lost(), [lifted.weights[name] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        weight = lifted.constants[name].detach()
        along, ends = torch.from_numpy(random.standard_normal(weight.shape)), []
        for step in (1e-6, -1e-6):
            lifted.constants[name] = weight + step * along
            ends.append(float(lost()))
        lifted.constants[name] = weight.requires_grad_()
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, float((gradient * along).sum()), rtol=1e-4, atol=1e-7)


# Scores on files.


def twin() -> Any:
    """The digits network in torch, with the weights of the file."""
    weights = graphprune.load(digits.PATH).model.graph.weights
    module = digits.network().eval()
    state = {name: torch.from_numpy(weights[name].load().copy()) for name in module.state_dict() if name in weights}
    missing = module.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return module


def scored(loaded: graphprune.Loaded, name: str, loss: Any, batches: Any) -> dict[str, Floats]:
    """Scores by the name of the Dim."""
    wanted = candidates(loaded.analysis, Request(keep=0.5))
    made = (make(loaded.model, loss, batches) for make in (loaded.format.gradients, loaded.format.signals))
    task = Task(loaded.analysis, wanted, gradients=next(made), signals=next(made))
    found = score_atoms(task, name)
    return {atom.name: found[atom.dim] for atom in wanted}


@pytest.fixture(scope="module")
def pair() -> tuple[graphprune.Loaded, graphprune.Loaded]:
    """The file and the module."""
    shapes = ({0: torch.export.Dim("batch")},)
    module = graphprune.load(twin(), example_inputs=(torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes)
    return graphprune.load(digits.PATH), module


def labelled() -> list[tuple[Any, Any]]:
    images, labels, *_ = digits.split()
    return [(images[i : i + 32], torch.from_numpy(labels[i : i + 32])) for i in (0, 32)]


@pytest.mark.parametrize("name", ["taylor", "taylor-vector", "fisher", "snip", "grasp", "crop", "synflow", "lrp"])
@pytest.mark.parametrize("own", [False, True], ids=["labels", "own"])
def test_scores_of_a_file_are_those_of_the_module(name: str, own: bool, pair: tuple[Any, Any]) -> None:
    """With labels, and with labels that the model draws itself."""
    file, module = pair
    if own:
        feeds = [{"image": images} for images, _ in labelled()]
        found, wanted = (scored(loaded, name, None, feeds) for loaded in pair)
    else:
        found = scored(file, name, lambda m, b: cross_entropy(m({"image": b[0]})["logits"], b[1]), labelled())
        wanted = scored(module, name, lambda m, b: cross_entropy(m(torch.from_numpy(b[0])), b[1]), labelled())
    assert len(found) == 4
    for dim, values in found.items():
        assert np.ptp(values) > 0
        np.testing.assert_allclose(values / values.max(), wanted[dim] / wanted[dim].max(), rtol=1e-4, atol=1e-6)


def test_prune_a_file_by_fisher() -> None:
    """Calibration data are the batches; without labels the model draws its own."""
    images, *_ = digits.split()
    feeds = [{"image": images[i : i + 64]} for i in range(0, 512, 64)]
    result = graphprune.prune(digits.PATH, macs=0.6, score="fisher", calib=feeds, timing=False)
    assert result.report.verified
    assert digits.accuracy(result.model.SerializeToString()) > 0.9


# Signals.


def test_signals_of_a_file_are_those_of_the_module(pair: tuple[Any, Any]) -> None:
    """The input of the last layer: as ONNX Runtime has it, its gradient that of the logits times the weight."""
    file, module = pair
    feeds = {"image": labelled()[0][0]}
    last = next(node for node in file.analysis.graph.nodes if node.op == "gemm")
    inside, outside = last.inputs[0], last.outputs[0]
    (seen,) = file.format.signals(file.model, None, [feeds])([inside, outside])
    weight = file.analysis.graph.weights["fc.weight"].load()
    np.testing.assert_allclose(seen[inside][1], seen[outside][1] @ weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen[outside][0], file.format.run(file.model)(feeds)["logits"], rtol=1e-4, atol=1e-5)
    node = next(n for n in module.analysis.graph.nodes if n.op == "linear")
    (other,) = module.format.signals(module.model, None, [{next(iter(module.model.inputs)): feeds["image"]}])(
        [node.inputs[0], node.outputs[0]]
    )
    for mine, theirs in zip(seen.values(), other.values(), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_values_that_are_computed_again() -> None:
    """A model of several segments: gradients are what they are when everything is kept."""
    loaded = graphprune.load(real.llama_tiny())
    ids = np.random.default_rng(0).integers(0, 97, (2, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    products = [
        n for n in loaded.analysis.graph.nodes if n.op == "matmul" and n.inputs[1] in loaded.analysis.graph.weights
    ]
    values = [node.outputs[0] for node in products]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphprune.formats.onnx.lift._SEGMENT", (64, 64))
        (seen,) = loaded.format.signals(loaded.model, None, [feeds])(values)
    lifted, kept = lift(loaded.model), dict[str, torch.Tensor]()
    assert len(lifted.steps) > 128

    def keep(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in values:
            kept[name] = value if value.requires_grad else value.detach().requires_grad_()
            return kept[name]
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphprune.formats.onnx.lift._SEGMENT", (10**6, 10**6))
        value = own_loss(loaded.analysis.graph, 0)(lifted(feeds, keep))
    gradients = torch.autograd.grad(value, [kept[name] for name in values])
    for name, gradient in zip(values, gradients, strict=True):
        np.testing.assert_allclose(seen[name][1], gradient.numpy(), rtol=1e-4, atol=1e-6)
        assert np.abs(seen[name][1]).max() > 1e-6


# The model's own loss.


def test_squared_gradients_are_the_fisher_matrix() -> None:
    """Of logits: the mean square over drawn labels is p (1 - p) over T², the mean nothing."""
    loaded = graphprune.load(digits.PATH)
    network = lift(loaded.model)
    image = digits.split()[0][7:8] * 0.3  # a dark digit: the model is not sure
    p = (network({"image": image})["logits"] / TEMPERATURE).softmax(1).numpy()[0]
    assert p.max() < 0.9
    feeds = {"image": np.repeat(image, 4000, 0)}
    (seen,) = loaded.format.signals(loaded.model, None, [feeds])(["logits"])
    gradient = seen["logits"][1].astype(np.float64)
    np.testing.assert_allclose(gradient.mean(0), 0, atol=0.03)
    np.testing.assert_allclose((gradient**2).mean(0) * TEMPERATURE**2, p * (1 - p), atol=0.02)


def test_other_outputs_are_means() -> None:
    """The gradient by an output that is no choice is normal, in units of the output's size."""
    loaded = graphprune.load(real.minilm())
    ids = np.random.default_rng(0).integers(0, 1000, (2, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (seen,) = loaded.format.signals(loaded.model, None, [feeds])(["last_hidden_state"])
    value, gradient = seen["last_hidden_state"]
    unit = gradient * np.sqrt(np.square(value).mean())
    assert abs(unit.mean()) < 0.05
    assert abs(unit.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        *((name, True) for name in ("digits", "llama_tiny", "ocr_rec", "ocr_cls", "mobilenet_v2", "inception_v1")),
        *((name, False) for name in ("minilm", "ocr_det", "silero_vad")),
    ],
)
def test_what_is_a_choice(name: str, choice: bool) -> None:
    """Softmax and linear ends are; a layer norm, a sigmoid and recurrent states are not."""
    from graphprune.classes import classes

    graph = graphprune.load(MODELS[name]()).analysis.graph
    assert any(classes(graph, output) for output in graph.outputs) is choice


def test_draws_follow_the_seed() -> None:
    """One seed, one gradient; another seed, another."""
    loaded = graphprune.load(digits.PATH)
    feeds = [{"image": digits.split()[0][:16] * 0.3}]
    first, again, other = (
        next(loaded.format.signals(loaded.model, None, feeds, seed)(["logits"]))["logits"][1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# What is refused.


def refused(op: str = "Hardmax") -> graphprune.Loaded:
    """A model with an op that has no line."""
    net = Net()
    x = net.op("MatMul", net.input("batch", 4), net.weight(4, 8))
    net.output(net.op("MatMul", net.op(op, x, name="here"), net.weight(8, 3)))
    return graphprune.load(net.model())


def test_an_op_without_a_gradient() -> None:
    """It runs where nothing is differentiated through it, and says so where something is."""
    loaded = refused()
    feeds = {loaded.model.graph.inputs[0]: np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    assert all(error < 1e-4 for _, error in differs(loaded))
    (seen,) = loaded.format.signals(loaded.model, None, [feeds])(loaded.model.graph.outputs)
    assert len(seen) == 1
    with pytest.raises(UsageError, match=r"no gradient is known of Hardmax \(node here\)") as caught:
        list(loaded.format.gradients(loaded.model, None, [feeds])("gradient"))
    assert "prune the torch module instead" in caught.value.hint


@pytest.mark.parametrize(
    ("batches", "values", "words"),
    [
        (None, ["logits"], "needs batches"),
        ([], ["logits"], "no batches"),
        ([{}], ["logits"], "the batch has no input 'image'"),
        ([(1, 2)], ["logits"], "a batch is a tuple"),
        ([{}], ["nowhere"], "no activation 'nowhere'"),
    ],
)
def test_bad_batches(batches: Any, values: list[str], words: str) -> None:
    loaded = graphprune.load(digits.PATH)
    with pytest.raises(UsageError, match=words):
        list(loaded.format.signals(loaded.model, None, batches)(values))


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that installs it."""
    feeds = {"image": digits.split()[0][:8]}
    for name in ("graphprune.formats.onnx.lift", "graphprune.formats.onnx.lift_ops"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="need torch") as caught:
        graphprune.prune(digits.PATH, keep=0.5, score="taylor", calib=[feeds])
    assert "graphprune[torch]" in caught.value.hint
