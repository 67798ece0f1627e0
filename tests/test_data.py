"""Calibration data: from files and from memory, made by the model itself, noise; cut into batches, kept on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import graphprune
from graphprune import Calibration, Request
from graphprune.cost import CostModel
from graphprune.data import Data, bring, cache, inversion, language, synthetic
from graphprune.data.inputs import ids, inputs
from graphprune.errors import UsageError
from graphprune.formats.onnx.last import _upstream
from graphprune.formats.torch.loss import class_loss
from graphprune.loaded import Loaded
from graphprune.stats import Moments
from models import digits
from tests.build import Net
from tests.command import command, contents

pytestmark = pytest.mark.filterwarnings("ignore")

INT64 = TensorProto.INT64
ROWS = 50
CUT: dict[str, Any] = {"macs": 0.5, "multiple": 1, "score": "obs", "verify": "none", "timing": False}


def images(count: int = 40) -> npt.NDArray[np.float32]:
    """Digits."""
    return digits.split()[0][:count]


def brought(loaded: Loaded, source: Any = None, seed: int = 0, **how: Any) -> Data:
    """What `bring` makes of a source."""
    return bring(Calibration(source, **how), loaded.format, loaded.model, seed=seed)


def joined(data: Data, name: str) -> npt.NDArray[Any]:
    """All batches of one input."""
    return np.concatenate([batch[name] for batch in data.batches])


def writer(mixed: bool = False, batch: int | str = "batch", sequence: int | str = "sequence") -> Net:
    """A language model that always says 3 t + 1 after token t; ``mixed``: and looks at what comes later."""
    net = Net()
    net.inputs = []
    tokens = net.input(batch, sequence, dtype=INT64)
    mask = net.input(batch, sequence, dtype=INT64)
    table = np.eye(ROWS)
    after = np.full((ROWS, ROWS), -30.0)
    after[np.arange(ROWS), (3 * np.arange(ROWS) + 1) % ROWS] = 30
    x = net.op("Gather", net.const(table, np.float32), tokens)
    if mixed:
        x = net.op("Add", x, net.op("ReduceMean", x, net.const([1]), keepdims=1))
    heard = net.op("Unsqueeze", net.op("Cast", mask, to=TensorProto.FLOAT), net.const([-1]))
    net.output(net.op("MatMul", net.op("Mul", x, heard), net.const(after, np.float32)))
    return net


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """The digits model."""
    return graphprune.load(digits.PATH)


# Files and memory.


def test_the_same_data_in_every_form(tmp_path: Path, loaded: Loaded) -> None:
    """An .npz, an .npy, a folder of single samples, a mapping, an array, batches: the same numbers, the same model."""
    x = images()
    np.savez(tmp_path / "x.npz", image=x)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "folder").mkdir()
    for i, one in enumerate(x):
        np.save(tmp_path / "folder" / f"{i:03}.npy", one)
    sources = [tmp_path / "x.npz", str(tmp_path / "x.npy"), tmp_path / "folder", {"image": x}, x, [x[:8], x[8:]]]
    for source in sources:
        found = brought(loaded, source)
        np.testing.assert_array_equal(joined(found, "image"), x)
        assert "statistics from 40 samples" in found.words
        assert found.shown is not None
        assert len(found.shown["image"]) == 8
    made = {
        graphprune.prune(digits.PATH, **CUT, calib=Calibration(source, batch=8)).model.SerializeToString()
        for source in sources
    }
    assert len(made) == 1


def test_batches_in_memory_stay_as_they_are(loaded: Loaded) -> None:
    """Unless a size is asked for; a generator is enough."""
    x = images()
    assert [len(b["image"]) for b in brought(loaded, ({"image": p} for p in (x[:30], x[30:]))).batches] == [30, 10]
    assert [len(b["image"]) for b in brought(loaded, [x], batch=16).batches] == [16, 16, 8]
    assert [len(b["image"]) for b in brought(loaded, [x[:10]] * 9, samples=25).batches] == [10] * 3
    assert [len(b["image"]) for b in brought(loaded, torch.as_tensor(x)).batches] == [8] * 5


def test_samples_and_seed(loaded: Loaded) -> None:
    """As many as asked for, in their order, others for another seed; all where fewer are there."""
    x = np.arange(40, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 8, 8), np.float32)
    picked = [joined(brought(loaded, x, seed=seed, samples=12), "image")[:, 0, 0, 0].tolist() for seed in (0, 0, 1)]
    assert picked[0] == picked[1] != picked[2]
    assert all(len(set(found)) == 12 and sorted(found) == found for found in picked)
    assert len(joined(brought(loaded, x, samples=99), "image")) == 40


def test_images_in_a_folder(tmp_path: Path, loaded: Loaded) -> None:
    """In the size and channels that the model takes, from 0 to 1, or as mean and std say."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    image.fromarray(pixels).save(tmp_path / "a.png")
    image.fromarray(np.full((20, 10), 255, np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    x = joined(brought(loaded, tmp_path), "image")
    assert x.shape == (2, 1, 8, 8)
    assert x.dtype == np.float32
    assert 0 <= x.min() < x.max() == pytest.approx(1)
    other = joined(brought(loaded, tmp_path, mean=(0.5,), std=(0.25,)), "image")
    np.testing.assert_allclose(other, (x - 0.5) / 0.25, atol=1e-6)
    assert joined(brought(loaded, tmp_path / "a.png"), "image").shape == (1, 1, 8, 8)


def test_layouts_of_images(tmp_path: Path) -> None:
    """Channels last, bytes as they are, open sizes in proportion to the image's and rounded."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 200, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    net = Net()
    x = net.input("n", 64, "width", 3, dtype=TensorProto.UINT8)
    flat = net.op("Transpose", net.op("Cast", x, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    net.output(net.op("Conv", flat, net.weight(4, 3, 1, 1)))
    found = joined(brought(graphprune.load(net.model()), tmp_path), x)
    assert found.shape == (1, 64, 192, 3)
    assert found.dtype == np.uint8
    assert abs(found.mean() - pixels.mean()) < 5


def text_files(folder: Path, words: int = 300, vocabulary: int = ROWS) -> tuple[Path, Path]:
    """A text of numbers, and a tokenizer that knows as many."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(16)
    made.save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text(" ".join(str(i % vocabulary) for i in range(words)))
    return folder / "text.txt", folder / "tokenizer.json"


def test_text(tmp_path: Path) -> None:
    """Windows of tokens go into the input that picks rows of a table, ones into the mask, whatever their names."""
    text, tokenizer = text_files(tmp_path)
    model = graphprune.load(writer().model())
    found = brought(model, text, tokenizer=tokenizer, length=20, samples=99)
    tokens, mask = (joined(found, name) for name in model.analysis.graph.inputs)
    np.testing.assert_array_equal(tokens.reshape(-1), np.arange(300) % ROWS)
    assert tokens.shape == mask.shape == (15, 20)
    assert (mask == 1).all()
    assert "15 windows of 20 tokens of text.txt" in found.words
    assert (
        len(joined(brought(model, text, tokenizer=tokenizer, length=20, samples=4), model.analysis.graph.inputs[0]))
        == 4
    )


def test_what_goes_beside_text() -> None:
    """Positions count up, token types are zero: by the size of the table that they pick from."""
    net = Net()
    tokens, places, kinds, mask = (net.input("b", "s", dtype=INT64) for _ in range(4))
    x = [net.op("Gather", net.weight(rows, 6), name) for rows, name in ((2, kinds), (ROWS, tokens), (40, places))]
    x.append(net.op("Unsqueeze", net.op("Cast", mask, to=TensorProto.FLOAT), net.const([-1])))
    net.output(net.op("MatMul", net.op("Sum", *x), net.weight(6, ROWS)))
    takes = inputs(graphprune.load(net.model()).analysis.graph)
    one = ids(takes)
    assert one is not None
    assert one.name == tokens
    beside = language.beside_as(takes, np.full((2, 5), 7))
    assert beside[places].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert beside[kinds].tolist() == [[0] * 5] * 2
    assert beside[mask].tolist() == [[1] * 5] * 2


# Batches.


def fixed(batch: int = 3) -> Net:
    """A model that takes ``batch`` samples at once, and a vector that is always the same."""
    net = Net()
    x, y = net.input(batch, 4), net.input(1, 4)
    net.output(
        net.op("Gemm", net.op("Relu", net.op("Gemm", net.op("Add", x, y), net.weight(4, 12))), net.weight(12, 4))
    )
    return net


def test_a_fixed_batch(tmp_path: Path) -> None:
    """Data come in pieces of that size, the rest is left over; what is given once is the same in every batch."""
    net = fixed()
    model = graphprune.load(net.model())
    x, y = model.analysis.graph.inputs
    found = brought(model, {x: np.arange(44).reshape(11, 4)[:9], y: np.ones((1, 4))})
    assert [(b[x].shape, b[y].shape) for b in found.batches] == [((3, 4), (1, 4))] * 3
    assert all(b[x].dtype == np.float32 for b in found.batches)
    assert brought(model, "noise", samples=4).batches[1][x].shape == (3, 4)
    with pytest.raises(UsageError, match=r"shape \[11, 4\]"):
        brought(model, {x: np.zeros((11, 4)), y: np.zeros((1, 4))})
    with pytest.raises(UsageError, match="2 samples are fewer than the 3"):
        brought(model, {x: np.zeros((9, 4)), y: np.zeros((1, 4))}, samples=2)


def test_the_proof_is_made_on_the_first_batch(tmp_path: Path) -> None:
    """And MACs are counted at its size; inputs that are given go before; noise is no better than what proofs make."""
    x = images()
    how: dict[str, Any] = {**CUT, "verify": "full", "keep": 0.5, "macs": None}
    for compensate in (True, False):
        result = graphprune.prune(digits.PATH, calib=[x], compensate=compensate, **how)
        assert result.report.sizes == {"batch": 8}
    assert graphprune.prune(digits.PATH, calib=[x[:5]], **how).report.sizes == {"batch": 5}
    assert graphprune.prune(digits.PATH, calib=[x], inputs={"image": x[:3]}, **how).report.sizes == {"batch": 3}
    noise = graphprune.prune(digits.PATH, calib="noise", **how).report
    assert noise.checks[0].detail.endswith("batch=1 and batch=2")


def test_large_outputs_make_small_batches(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.data.inputs.OUTPUTS", 25)
    assert [len(b["image"]) for b in brought(loaded, images(5)).batches] == [2, 2, 1]


# Text that the model writes.


@pytest.mark.parametrize("shape", [("batch", "sequence"), (2, "sequence"), ("batch", 40), (3, 40)])
def test_a_model_writes_what_it_would_say(shape: tuple[int | str, int | str]) -> None:
    """Whatever of its sizes is fixed; the first token of each snippet is any."""
    model = graphprune.load(writer(batch=shape[0], sequence=shape[1]).model())
    found = brought(model, "self", samples=6, length=40)
    tokens = joined(found, model.analysis.graph.inputs[0])
    assert tokens.shape == (6, 40)
    whole = tokens.size // language.SNIPPET * language.SNIPPET
    snippets = tokens.reshape(-1)[:whole].reshape(-1, language.SNIPPET)
    np.testing.assert_array_equal(snippets[:, 1:], (3 * snippets[:, :-1] + 1) % ROWS)
    assert len(set(snippets[:, 0].tolist())) > 2
    assert "6 windows of 40 tokens that the model wrote itself" in found.words
    assert found.shown is None
    again, other = (brought(model, "self", seed=seed, samples=6, length=40) for seed in (0, 1))
    np.testing.assert_array_equal(joined(again, model.analysis.graph.inputs[0]), tokens)
    assert (joined(other, model.analysis.graph.inputs[0]) != tokens).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_sizes_of_logits_may_have_other_names(transposed: bool) -> None:
    """As exporters write them; where the sizes turn out to be others, it is no language model."""
    net = writer()
    made = net.model()
    if transposed:
        net.outputs = []
        net.output(net.op("Transpose", made.graph.output[0].name, perm=[1, 0, 2]))
        made = net.model()
    for axis, name in enumerate(("logits_dim_0", "logits_dim_1")):
        made.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    model = graphprune.load(made)
    if transposed:
        with pytest.raises(UsageError, match="writes no text"):
            brought(model, "self", samples=6, length=40)
    else:
        assert "6 windows of 40 tokens that the model wrote" in brought(model, "self", samples=6, length=40).words


def test_tokens_are_drawn_by_their_probabilities() -> None:
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = language.draw(np.log(np.tile(chances, (20_000, 1))) + 700, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, chances, atol=0.01)


def test_a_model_that_looks_ahead_writes_nothing() -> None:
    """It has the inputs and outputs of a language model; running it shows what it is."""
    model = graphprune.load(writer(mixed=True).model())
    with pytest.raises(UsageError, match="it is not causal") as error:
        brought(model, "self")
    assert all(word in error.value.hint for word in ("--tokenizer", "noise", "none"))
    assert "samples of noise" in brought(model, samples=2, length=8).words


def test_the_end_of_an_output_alone() -> None:
    """What is asked for comes out, and the last product runs for one position."""
    model = graphprune.load(writer().model())
    graph = model.analysis.graph
    feeds = {name: np.random.default_rng(0).integers(1, ROWS, (3, 7)) for name in graph.inputs}
    (whole,) = model.format.run(model.model)(feeds).values()
    (end,) = model.format.last(model.model, graph.outputs[0])(feeds).values()
    np.testing.assert_array_equal(end, whole[:, -1:])
    product = next(node for node in graph.nodes if node.op == "matmul")
    assert _upstream(graph, graph.outputs[0]) == product.inputs[0]


class Words(nn.Module):
    """A tiny causal model in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(ROWS, 8), nn.Linear(8, 16), nn.Linear(16, ROWS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.down(self.up(self.table(tokens)).relu())
        return found


def test_torch_modules() -> None:
    """The same sources; a traced module of fixed sizes writes as well."""
    torch.manual_seed(0)
    model = graphprune.load(Words().eval(), example_inputs=(torch.zeros(2, 12, dtype=torch.int64),))
    assert joined(brought(model, "self", samples=4), "tokens").shape == (4, 12)
    assert joined(brought(model, "noise", samples=3), "tokens").shape == (4, 12)
    how: dict[str, Any] = {"example_inputs": (torch.zeros(2, 12, dtype=torch.int64),), "keep": 0.5, "score": "obs"}
    result = graphprune.prune(Words().eval(), **how)
    assert result.report.verified
    assert "that the model wrote itself" in str(result.report.notes)


# Images that suit batch norms, and noise.


def test_images_that_suit_batch_norms(loaded: Loaded) -> None:
    """Nearer to what the first batch norms remember than noise, and to the real images, which nobody showed it."""
    real, made, noise = images(500), *(joined(brought(loaded, s, samples=128), "image") for s in ("self", "noise"))
    assert abs(made.mean() - real.mean()) < 0.1 < abs(noise.mean() - real.mean())
    assert abs(made.std() - real.std()) < 0.1 < abs(noise.std() - real.std())


def pulled(loaded: Loaded, images: npt.NDArray[Any]) -> float:
    """How far the statistics before all batch norms are from what these remember."""
    (name,), norms = loaded.analysis.graph.inputs, synthetic.norms(loaded.analysis.graph)
    first = loaded.analysis.graph.shape(name)[0]  # type: ignore[index]
    runs = np.split(images, len(images) // first) if isinstance(first, int) else [images]
    labels = [np.zeros(len(run)) for run in runs]
    apart, *_ = loaded.format.pull(loaded.model, norms)([{name: run} for run in runs], labels)
    return float(apart)


def drawn(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, samples: int) -> Data:
    """What is made where nothing can be differentiated."""
    with monkeypatch.context() as patch:
        patch.setattr(loaded.format, "pull", mock.Mock(side_effect=UsageError("nothing to follow")))
        return brought(loaded, "self", samples=samples, cache=False)


def test_images_follow_every_batch_norm(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times nearer than what is drawn, in the same range, and of all classes alike; by the seed."""
    before = drawn(monkeypatch, loaded, 64)
    made = brought(loaded, "self", samples=64, cache=False)
    start, end = joined(before, "image"), joined(made, "image")
    assert 5 * pulled(loaded, end) < pulled(loaded, start)
    assert start.min() <= end.min() < end.max() <= start.max()
    named = loaded.format.run(loaded.model)({"image": end})["logits"].argmax(1)
    assert set(np.bincount(named, minlength=10)) == {6, 7}
    assert made.words == "statistics from 64 images made to suit the model's batch norms"
    assert made.notes == ()
    few, again, other = (brought(loaded, "self", seed=seed, samples=8, cache=False) for seed in (0, 0, 1))
    np.testing.assert_array_equal(joined(few, "image"), joined(again, "image"))
    assert (joined(few, "image") != joined(other, "image")).any()


def test_descent_stays_inside_the_limits() -> None:
    """And goes as far as they are, down every slope."""
    start, slope = np.zeros((1, 1, 2, 2)), np.array([[1.0, -1.0], [3.0, 0.0]])
    found = inversion._descended(start, lambda x: x + slope - x, 50, 0.1, (-0.5, 0.25), lambda done: None)
    np.testing.assert_array_equal(found[0, 0], [[-0.5, 0.25], [-0.5, 0.0]])


def test_images_without_gradients(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what was drawn, and the report says why."""
    found = [drawn(monkeypatch, loaded, 16)]
    with monkeypatch.context() as patch:
        broken = [{"image": np.full((16, 1, 8, 8), np.nan)}]
        patch.setattr(loaded.format, "pull", lambda *_: lambda *_: (0.0, 0.0, broken))
        found.append(brought(loaded, "self", samples=16, cache=False))
    monkeypatch.delitem(sys.modules, "graphprune.formats.onnx.lift", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    found.append(brought(loaded, "self", samples=16, cache=False))
    for data, why in zip(found, ("nothing to follow", "not finite", "need torch"), strict=True):
        assert data.words == "statistics from 16 smooth images made to suit the model's batch norms"
        assert data.notes[0].startswith("images suit the first batch norms only")
        assert data.notes[0].endswith(why)
        np.testing.assert_array_equal(joined(data, "image"), joined(found[0], "image"))


class Normed(nn.Module):
    """Two convolutions with batch norms that remember something of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = [nn.BatchNorm2d(width) for width in (6, 8)]
        for norm in norms:
            nn.init.normal_(norm.running_mean, 0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.1, 0.5)  # type: ignore[arg-type]
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3), norms[1], nn.ReLU()
        )
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(image).mean((2, 3)))
        return found


@pytest.mark.parametrize("batch", [4, "batch"])
def test_torch_images_follow_every_batch_norm(batch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a module that takes any number of images, and of one that takes four at a time: its runs count together."""
    shapes = ({0: torch.export.Dim(batch)},) if isinstance(batch, str) else None
    how: dict[str, Any] = {"example_inputs": (torch.zeros(4, 3, 12, 12),), "dynamic_shapes": shapes}
    model = graphprune.load(Normed().eval(), **how)
    before, after = drawn(monkeypatch, model, 16), brought(model, "self", samples=16, cache=False)
    assert 3 * pulled(model, joined(after, "image")) < pulled(model, joined(before, "image"))
    assert joined(after, "image").shape == (16, 3, 12, 12)


@pytest.mark.parametrize(("shares", "wanted"), [([1, 0, 1, 0], 0.0), ([1, 0, 0, 1], -np.log(2)), ([0.5] * 4, 0.0)])
@pytest.mark.parametrize("logits", [False, True])
def test_how_unsure_a_model_is_at_many_places(shares: list[float], wanted: float, logits: bool) -> None:
    """Least where it is sure at each place, and not of the same at all; places of all runs count together."""
    net = Net()
    rows = net.op("MatMul", net.input(1, 1, 4), net.weight(4, 2))
    net.output(rows if logits else net.op("Softmax", rows, axis=-1))
    graph = graphprune.load(net.model()).analysis.graph
    (name,) = graph.outputs
    given = torch.tensor(shares).view(2, 1, 1, 2)
    runs = [{name: (run.log().clamp(min=-50) if logits else run)} for run in given]
    found = class_loss(graph)(runs, [torch.zeros(1)] * 2)
    assert float(found) == pytest.approx(wanted, abs=1e-5)


def test_images_of_open_sizes_are_large() -> None:
    """On each side up to 320 pixels, or what the model takes: its rows have places. Or as those that were given."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        places (float[batch, 3, high, wide] image) => (float[batch, 3, high, wide] y)
        <int64 zero = {0}, int64 one = {1}>
        {
            size = Shape <start = 2, end = 3> (image)
            high = Squeeze (size)
            rows = Range (zero, high, one)
            place = Gather (table, rows)
            y = Add (image, place)
        }
    """)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((250, 1), np.float32), "table"))
    high, wide = joined(brought(graphprune.load(model), "noise", samples=2), "image").shape[2:]
    assert 250 / 2 < high <= 250
    assert 320 / 2 < wide <= 320
    given = graphprune.load(model, inputs={"image": np.zeros((2, 3, 7, 9), np.float32)})
    assert joined(brought(given, "noise", samples=2), "image").shape == (2, 3, 7, 9)


def test_large_models_get_fewer_images(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then fewer steps, but some of each."""
    one, each = inputs(loaded.analysis.graph)["image"], CostModel(loaded.analysis).macs({})
    each //= loaded.analysis.graph.example.get("batch", 1)
    counts = []
    for effort in (1e4, 80, 20, 0):
        monkeypatch.setattr(inversion, "EFFORT", effort * 20 * each)
        counts.append(inversion._affordable(loaded.analysis.graph, one, (64, 1, 8, 8)))
    assert counts == [(64, 60), (64, 25), (20, 20), (8, 1)]


def test_a_model_that_can_make_nothing_itself() -> None:
    model = graphprune.load(fixed().model())
    with pytest.raises(UsageError, match="cannot make data itself") as error:
        brought(model, "self")
    assert all(word in error.value.hint for word in ("FILE", "noise", "none"))


def test_noise(loaded: Loaded) -> None:
    """Rows of the table, ones, smooth images of several contrasts; the same for the same seed."""
    model = graphprune.load(writer().model())
    tokens, mask = (joined(brought(model, "noise", samples=20, length=30), n) for n in model.analysis.graph.inputs)
    assert tokens.shape == (20, 30)
    assert (tokens.min(), tokens.max()) == (0, ROWS - 1)
    assert (mask == 1).all()
    x, y, z = (joined(brought(loaded, "noise", seed=seed, samples=64), "image") for seed in (0, 0, 1))
    np.testing.assert_array_equal(x, y)
    assert (x != z).any()
    assert np.corrcoef(x[..., 1:].ravel(), x[..., :-1].ravel())[0, 1] > 0.4
    spread = x.std(axis=(1, 2, 3))
    assert spread.max() > 2 * spread.min()


def test_smooth_noise_has_the_slope_asked_for() -> None:
    one = inputs(graphprune.load(digits.PATH).analysis.graph)["image"]
    power = []
    for slope in (0.0, 1.0, 2.0):
        x = synthetic.image(one, (200, 1, 32, 32), np.random.default_rng(0), slope)
        spectrum = np.abs(np.fft.fft2(x))[:, 0, 0].mean(0)
        power.append(np.log2(spectrum[2] / spectrum[8]) / 2)
    np.testing.assert_allclose(power, [0, 1, 2], atol=0.15)


# Without data.


def test_the_best_source_without_data() -> None:
    """By what the graph is; the report says which it was, and nothing is measured where nothing needs it."""
    for model, words in ((digits.PATH, "suit the model's batch norms"), (writer().model(), "wrote itself")):
        assert words in brought(graphprune.load(model), samples=8, length=8).words
    assert "noise" in brought(graphprune.load(fixed().model()), samples=8).words
    notes = graphprune.prune(digits.PATH, **CUT).report.notes
    assert any("statistics from 256 images" in note for note in notes)
    assert any("least squares" in note for note in notes)
    plain = graphprune.prune(digits.PATH, keep=0.5, verify="none")
    assert plain.report.notes == []
    repaired = graphprune.prune(digits.PATH, keep=0.5, verify="none", compensate=True)
    assert any("least squares" in note for note in repaired.report.notes)
    assert plain.plan == repaired.plan


def test_fewer_samples_than_channels() -> None:
    """It works, and the report says that damping decided."""
    few, many = (graphprune.prune(digits.PATH, **CUT, calib=[images(n)]).report.notes for n in (1, 200))
    assert any("fewer samples than channels" in note for note in few)
    assert not any("fewer samples than channels" in note for note in many)


# Several sources.


def marked(folder: Path, **counts: int) -> dict[str, Path]:
    """A file of so many images under each name; all pixels are the number of the file, from 1 on."""
    made = {}
    for number, (name, count) in enumerate(counts.items()):
        made[name] = folder / f"{name}.npy"
        np.save(made[name], np.full((count, 1, 8, 8), number + 1, np.float32))
    return made


def order(data: Data) -> list[int]:
    """Which file each batch is of."""
    assert all(len(set(batch["image"].flat)) == 1 for batch in data.batches)
    return [int(batch["image"].flat[0]) for batch in data.batches]


def test_several_sources_are_in_both_halves(tmp_path: Path, loaded: Loaded) -> None:
    """Every other batch holds half of each, the first batches have all; the order is that of the seed alone."""
    files = marked(tmp_path, many=400, few=56, one=5)
    found = [brought(loaded, list(paths), seed=1) for paths in (files.values(), [*files.values()][::-1])]
    assert order(found[0]) == order(found[1])
    for file, count in ((1, 50), (2, 7), (3, 2)):
        halves = [order(found[0])[start::2].count(file) for start in (0, 1)]
        assert sum(halves) == count
        assert abs(halves[0] - halves[1]) <= 1
    assert set(order(found[0])[:20]) >= {1, 2}
    assert len({tuple(order(brought(loaded, list(files.values()), seed=seed))) for seed in range(4)}) > 1
    alone = brought(loaded, [files["many"]])
    assert [len(batch["image"]) for batch in alone.batches] == [8] * 50


def test_samples_are_of_each_source(tmp_path: Path, loaded: Loaded) -> None:
    """The words name all, in the order that they were given; what is shown is the user's; a sample is of each."""
    files = marked(tmp_path, a=40, b=30)
    found = brought(loaded, ["noise", files["a"], str(files["b"])], samples=24)
    assert len(joined(found, "image")) == 3 * 24
    assert found.words == "statistics from 24 samples of noise and 24 samples from a.npy and 24 samples from b.npy"
    assert found.shown is not None
    assert found.shown["image"].flat[0] in (1, 2)
    assert len(found.sample) == 3


def test_what_is_a_list_of_sources(tmp_path: Path, loaded: Loaded) -> None:
    """With a path or a word in it; other things beside these are sources too; a list of batches is one source."""
    path, x = marked(tmp_path, a=40)["a"], images()
    assert "40 samples from a.npy and 40 samples given" in brought(loaded, (path, [x[:10], x[10:]])).words
    assert "128 images made to suit" in brought(loaded, [x, "self"], samples=128).words
    assert brought(loaded, [x[:10], x[10:]]).words == "statistics from 40 samples given"
    assert brought(loaded, [path]).words == brought(loaded, path).words


def test_sources_of_several_lengths(tmp_path: Path) -> None:
    """Where the axis is open; else the one that does not fit is refused as it is alone."""
    tokens = np.arange(120).reshape(4, 30) % ROWS
    open_, fixed_ = (graphprune.load(writer(sequence=size).model()) for size in ("sequence", 16))
    names = open_.analysis.graph.inputs
    assert names == fixed_.analysis.graph.inputs
    given: dict[str, Any] = dict.fromkeys(names, tokens)
    np.savez(tmp_path / "x.npz", **given)
    found = brought(open_, ["self", tmp_path / "x.npz"], length=16, samples=4)
    assert {batch[names[0]].shape[1] for batch in found.batches} == {16, 30}
    assert found.shown is not None
    assert found.shown[names[0]].shape[1] == 30
    with pytest.raises(UsageError, match=r"has shape \[4, 30\]"):
        brought(fixed_, ["self", tmp_path / "x.npz"], length=16, samples=4)


def test_sources_that_do_not_go_together(tmp_path: Path, loaded: Loaded) -> None:
    """No forward pass beside data; the same data twice, whatever they are called: held-out error would not be."""
    path = marked(tmp_path, a=40)["a"]
    with pytest.raises(UsageError, match="no forward pass, and data as well"):
        Calibration([path, "none"])
    np.savez(tmp_path / "b.npz", image=np.load(path))
    for twice in ([path, tmp_path / "b.npz"], ["noise", "noise"]):
        with pytest.raises(UsageError, match="two sources of calib are the same data: 40 samples"):
            brought(loaded, twice, samples=40)
    np.savez(tmp_path / "b.npz", other=np.load(path))
    with pytest.raises(UsageError, match=r"the inputs given are \['other'\]"):
        brought(loaded, [path, tmp_path / "b.npz"])


def test_the_drift_is_that_on_every_source(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that runs the model often gets a batch of each, and of all of them the norm over the norm."""
    data = brought(loaded, ["noise", images()])
    atom = loaded.analysis.prunable[0]
    kept = {atom.dim: np.arange(atom.size // 2)}
    run = loaded.format.run
    masked = run(loaded.format.mask(loaded.model, loaded.analysis, kept))
    dense = [run(loaded.model)(feeds)["logits"] for feeds in data.sample]
    change = [masked(feeds)["logits"] - logits for feeds, logits in zip(data.sample, dense, strict=True)]
    wanted = np.linalg.norm(np.concatenate(change)) / np.linalg.norm(np.concatenate(dense))
    assert loaded._drift(data.sample)(kept) == pytest.approx(wanted, rel=1e-4)
    seen: list[int] = []

    def drift(self: Loaded, samples: Any) -> Any:
        seen.append(len(samples))
        return lambda kept: 0.5

    monkeypatch.setattr(Loaded, "_drift", drift)
    graphprune.prune(digits.PATH, keep=0.5, score="cfsp", calib=["noise", images()], verify="none")
    graphprune.prune(digits.PATH, keep=0.5, score="cfsp", calib=[images()], verify="none")
    assert seen == [2, 1]


# The cache.


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def counted(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> list[int]:
    """Grows with each time that moments are added up."""
    passes: list[int] = []
    gather = loaded.format.moments

    def watched(model: Any, sites: Any, batches: Any) -> dict[Any, Moments]:
        passes.append(len(sites))
        return gather(model, sites, batches)

    monkeypatch.setattr(loaded.format, "moments", watched)
    return passes


def test_moments_are_kept(kept: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same model and data; other data, other weights and --no-cache are no match."""
    passes = counted(monkeypatch, loaded)
    request, feeds = Request(keep=0.5), [{"image": images()}]
    first, again = (loaded.measure(feeds, request, cached=True) for _ in range(2))
    assert len(passes) == 1
    assert list(first) == list(again)
    for site, moments in first.items():
        assert again[site].count == moments.count
        np.testing.assert_array_equal(again[site].second, moments.second)
        np.testing.assert_array_equal(again[site].mean, moments.mean)
    loaded.measure([{"image": images()[::-1]}], request, cached=True)
    twice = {"fc.weight": 2 * loaded.analysis.graph.weights["fc.weight"].load()}
    other = loaded.format.replaced(loaded.model, twice, {})
    Loaded(loaded.format, other, graphprune.analyse(other.graph)).measure(feeds, request, cached=True)
    assert len(passes) == 3
    before = contents(kept)
    loaded.measure(feeds, request)
    assert len(passes) == 4
    assert contents(kept) == before
    assert len(before) == 3


def test_moments_of_several_sources_are_kept(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same sources in any order; another one beside the first is another key."""
    loaded = graphprune.load(digits.PATH)
    passes, files = counted(monkeypatch, loaded), marked(tmp_path, a=40, b=40, c=40)
    a, b, c = files.values()
    for pair in ([a, b], [b, a], [a, c]):
        loaded.measure(brought(loaded, pair).batches, cached=True)
    assert len(passes) == 4, "two passes, over two halves"


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-300] + b"x" * 300])
def test_a_damaged_cache_is_written_anew(
    damage: Callable[[bytes], bytes], kept: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted(monkeypatch, loaded)
    feeds = [{"image": images()}]
    loaded.measure(feeds, cached=True)
    (path,) = kept.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    loaded.measure(feeds, cached=True)
    assert len(passes) == 2
    assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_none(kept: Path, loaded: Loaded) -> None:
    kept.write_text("a file where the folder should be")
    assert loaded.measure([{"image": images()}], cached=True)


def test_ctrl_c_leaves_no_half_written_cache(kept: Path, loaded: Loaded) -> None:
    def stopped(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with mock.patch("numpy.savez", stopped), pytest.raises(KeyboardInterrupt):
        loaded.measure([{"image": images()}], cached=True)
    assert contents(kept) == {}


def test_the_cache_does_not_grow_without_end(kept: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for longest goes."""
    monkeypatch.setattr(cache, "LIMIT", 1)
    for n in (10, 11):
        loaded.measure([{"image": images(n)}], cached=True)
        assert len(list(kept.iterdir())) == 1


def test_text_is_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphprune.load(writer().model())
    first = joined(brought(model, "self", samples=3, length=10), model.analysis.graph.inputs[0])
    monkeypatch.setattr(language, "draw", None)
    again = joined(brought(model, "self", samples=3, length=10), model.analysis.graph.inputs[0])
    np.testing.assert_array_equal(first, again)


# The command line.


def test_plan_and_apply_with_data_is_prune(tmp_path: Path) -> None:
    """Given the same data at both steps; twice the same bytes, the first time without and then with the cache."""
    np.savez(tmp_path / "x.npz", image=images())
    how = ("--macs", "0.5", "--score", "obs", "--multiple", "1")
    data = ("--calib", tmp_path / "x.npz", "--samples", "30", "--damping", "0.2")
    command("plan", digits.PATH, "-o", tmp_path / "plan.json", *how, *data[:4]).done()
    command("apply", digits.PATH, tmp_path / "plan.json", "-o", tmp_path / "a.onnx", *data).done()
    for name in ("b.onnx", "c.onnx"):
        command("prune", digits.PATH, "-o", tmp_path / name, *how, *data, "--plan-out", tmp_path / "p.json").done()
    made = contents(tmp_path)
    assert made["a.onnx"] == made["b.onnx"] == made["c.onnx"]
    assert made["plan.json"] == made["p.json"]
    line = ("verify", digits.PATH, tmp_path / "a.onnx", "--plan", tmp_path / "plan.json", *data)
    assert "passed same file" in command(*line).done().out
    assert command(*line, "--no-compensate").code == 6


@pytest.mark.parametrize("source", ["self", "noise"])
def test_sources_that_are_words(source: str, tmp_path: Path) -> None:
    line = ("prune", digits.PATH, "-o", tmp_path / "o.onnx", "--macs", "0.7", "--calib", source, "--samples", "32")
    report = command(*line, "--json").done().json
    assert any(note.startswith("statistics from 32 ") for note in report["notes"])
    assert any("least squares" in note for note in report["notes"])


def test_weights_are_left_where_asked(tmp_path: Path) -> None:
    """With data, and a score that needs none: --no-compensate gives the bytes that no data gives."""
    np.savez(tmp_path / "x.npz", image=images())
    lines = {
        "plain": (),
        "left": ("--calib", tmp_path / "x.npz", "--no-compensate"),
        "changed": ("--calib", tmp_path / "x.npz"),
        "strongly": ("--calib", tmp_path / "x.npz", "--damping", "1e9"),
    }
    for name, options in lines.items():
        command("prune", digits.PATH, "-o", tmp_path / name, "--keep", "0.5", *options).done()
    made = contents(tmp_path)
    assert made["plain"] == made["left"]
    assert len({made[name] for name in ("plain", "changed", "strongly")}) == 3


def test_calib_several_times(tmp_path: Path) -> None:
    """A text and what the model writes: the report names both, the order of the options makes no difference."""
    text, tokenizer = text_files(tmp_path)
    net = writer()
    onnx.save(net.model(), tmp_path / "writer.onnx")
    how = ("--keep", "0.9", "--tokenizer", tokenizer, "--length", "20", "--samples", "4", "--verify", "none", "--force")
    for name, sources in (("a", (text, "self")), ("b", ("self", text))):
        given = [word for source in sources for word in ("--calib", source)]
        report = command("prune", tmp_path / "writer.onnx", "-o", tmp_path / name, *how, *given, "--json").done().json
        (note,) = (note for note in report["notes"] if note.startswith("statistics from "))
        assert all(words in note for words in ("4 windows of 20 tokens of text.txt", "that the model wrote itself"))
    assert contents(tmp_path)["a"] == contents(tmp_path)["b"]
    line = ("prune", tmp_path / "writer.onnx", "-o", tmp_path / "c", *how, "--calib", text, "--calib")
    command(*line, "none").refused(2, "no forward pass, and data as well")
    command(*line, tmp_path / "gone.npz").refused(2, "gone.npz")
    command(*line[:3], text, *how, "--calib", "self", "--calib", text).refused(2, "choose another name")


def test_how_to_compensate(tmp_path: Path) -> None:
    """By name, or as a switch: the same bytes; the report says what was done; what is no way is refused."""
    np.savez(tmp_path / "x.npz", image=images())
    ways = {
        "default": (),
        "alone": ("--compensate",),
        "named": ("--compensate", "best"),
        "asked": ("--compensate", "sequential"),
        "once": ("--compensate", "least-squares"),
        "bias": ("--compensate=bias",),
        "none": ("--compensate", "none"),
        "switch": ("--no-compensate",),
    }
    notes = {}
    for name, options in ways.items():
        line = ("prune", digits.PATH, *options, "-o", tmp_path / name, "--keep", "0.5", "--calib", tmp_path / "x.npz")
        notes[name] = "\n".join(command(*line, "--json").done().json["notes"])
    made = contents(tmp_path)
    assert made["default"] == made["alone"] == made["named"] == made["asked"]
    assert made["none"] == made["switch"]
    assert len({made[name] for name in ("named", "once", "bias", "none")}) == 4
    assert "by least squares, layer after layer" in notes["alone"]
    assert "by least squares" in notes["once"]
    assert "layer after layer" not in notes["once"]
    assert "biases make up for" in notes["bias"]
    assert "least squares" not in notes["bias"]
    assert "make up" not in notes["none"]
    assert "make up" not in str(graphprune.prune(digits.PATH, keep=1.0, calib=[images()]).report.notes)
    command("prune", "--compensate", digits.PATH, "-o", tmp_path / "first", "--keep", "0.5").done()
    command(*line[:2], "--compensate=more", *line[3:]).refused(
        2, "no compensation 'more'", "best, least-squares, sequential, bias, none"
    )
    python = graphprune.prune(digits.PATH, keep=0.5, calib=tmp_path / "x.npz", compensate="bias")
    assert python.model.SerializeToString() == made["bias"]


def test_without_torch_all_layers_are_fitted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is said; and refused where it was asked for by name."""
    how: dict[str, Any] = {"keep": 0.5, "calib": [{"image": images()}], "timing": False}
    once = graphprune.prune(digits.PATH, **how, compensate="least-squares")
    monkeypatch.delitem(sys.modules, "graphprune.formats.onnx.walks", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    best = graphprune.prune(digits.PATH, **how)
    assert best.model.graph.initializer == once.model.graph.initializer
    assert best.report.notes[:-1] == once.report.notes
    assert best.report.notes[-1].startswith("weights were not fitted layer after layer: ")
    with pytest.raises(UsageError, match="torch"):
        graphprune.prune(digits.PATH, **how, compensate="sequential")


def test_scoring_leaves_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a score has to say goes with its plan: once in the report, and through a file."""

    def refuse(*_: Any) -> Any:
        raise UsageError("no gradient is known of Mystery")

    monkeypatch.setattr("graphprune.formats.onnx.lift.lift", refuse)
    loaded, batches = graphprune.load(digits.PATH), [{"image": images()}]
    moments = loaded.measure(batches)
    plans = [loaded.plan(Request(keep=0.5), "obs", moments=moments, batches=batches) for _ in range(2)]
    assert loaded.notes == ()
    read = graphprune.Plan.from_json(plans[1].to_json())
    assert read == plans[1]
    notes = loaded.apply(read, verify="none").report.notes
    assert [note for note in notes if "not by gradients" in note] == list(read.notes) != []


def test_no_data_is_not_called_data() -> None:
    """A run without a forward pass says nothing of data that were seen."""
    notes = str(graphprune.prune(digits.PATH, **CUT, calib="none").report.notes)
    assert "no data: statistics follow from weights" in notes
    assert "calibration data" not in notes
