"""Real models, none of them treated by hand: each is proven, halved in every Dim, proven again and run.

The models and what must be removable from them are the table in tools/prove_real.py. Files are fetched or exported on
first use and cached; see models/README.md.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import graphprune
from graphprune.analysis import OPTIONAL_KINDS
from graphprune.budget import Request
from graphprune.verify import TOLERANCE
from models import light, ocr, real
from tools.prove_real import HALF, LLAMA_TINY, SUBJECTS, Subject, kinds

LONG = ("smollm2", "vgg19", "zfnet512")  # the latter two hold no layer that AlexNet does not
SUBJECT_CASES = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SUBJECTS]
PAGE = (480, 640)
LINES = 8  # that fit a page
GAP = 12
ADDED = 100  # bytes a node that a file may grow by where sizes that it computed are overwritten
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _leave_room(tmp_path: Path) -> Iterator[None]:
    """Models are large: pytest would keep the files, and some of what holds a model in memory are cycles."""
    yield
    shutil.rmtree(tmp_path)
    gc.collect()


@pytest.fixture(scope="module")
def page() -> npt.NDArray[np.uint8]:
    """LINES drawn lines of text, one below the other."""
    paper = np.full((*PAGE, 3), 240, np.uint8)
    top = GAP
    for image, _ in ocr.text_lines(LINES, seed=1):
        height, width, _ = image.shape
        paper[top : top + height, GAP : GAP + width] = image
        top += height + GAP
    assert top <= PAGE[0]
    return paper


# Every model: the proof, and half of every Dim.


@pytest.mark.parametrize("name", SUBJECT_CASES)
def test_proof_and_half(name: str, tmp_path: Path) -> None:
    _prove_and_halve(SUBJECTS[name], SUBJECTS[name].path(), tmp_path / "half.onnx")


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_weights_that_are_listed_as_inputs(name: str, tmp_path: Path) -> None:
    """Files of IR version 3 list each initialiser as an input of the graph too; a cut has to keep the two in step."""
    half = tmp_path / "half.onnx"
    _prove_and_halve(SUBJECTS[name], light.light(name, weights_as_inputs=True), half)
    graph = onnx.load(half).graph
    shapes = {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in graph.input}
    assert {tensor.name: list(tensor.dims) for tensor in graph.initializer}.items() <= shapes.items()


def test_networks_inside_an_if() -> None:
    """All weights are Constant nodes of two branches, of which the inputs tried take one; both are cut and proved."""
    loaded = graphprune.load(real.silero_vad_rates())
    result = loaded.apply(loaded.plan(HALF), timing=False)
    assert result.report.verified
    assert all("first branch of every If" in check.detail for check in result.report.checks)
    assert result.report.pruned.params < 0.6 * result.report.dense.params
    branches = {cut.name.partition("__")[0] for cut in result.plan.cuts}
    assert branches == {"If_0_then_branch", "If_0_else_branch"}


def _prove_and_halve(subject: Subject, path: Path, half: Path) -> None:
    loaded = graphprune.load(path)
    assert not subject.kinds or kinds(loaded.analysis) == subject.kinds
    result = loaded.apply(loaded.plan(HALF), timing=False)
    report = result.report
    assert [check.name for check in report.checks] == ["permutation", "zero equals cut", "loads and runs"]
    assert all(check.passed for check in report.checks)
    removed = 1 - report.pruned.params / report.dense.params
    assert removed >= subject.removed
    assert report.pruned.macs < report.dense.macs
    result.save(half)
    saved = report.dense.bytes - report.pruned.bytes
    assert path.stat().st_size - half.stat().st_size > saved - ADDED * len(loaded.analysis.graph.nodes)


def test_detector_on_a_page(page: npt.NDArray[np.uint8]) -> None:
    """The detector ends in a steep sigmoid that random inputs leave at zero; on a page of text it has much to say."""
    image = (page[:, :, ::-1] / 255 - MEAN) / DEVIATION
    inputs = {"x": image.transpose(2, 0, 1)[None].astype(np.float32)}
    loaded = graphprune.load(real.ocr_det(), inputs=inputs)
    checks = loaded.apply(loaded.plan(HALF), timing=False).report.checks
    assert [check.limit for check in checks[:2]] == [TOLERANCE, TOLERANCE]


@pytest.mark.parametrize("name", ["ocr_rec", "ocr_cls", "silero_vad", "minilm_int8", "mobilenet_v2", "llama_tiny"])
def test_nothing_cut_is_the_same_file(name: str, tmp_path: Path) -> None:
    path = SUBJECTS[name].path()
    loaded = graphprune.load(path)
    plan = loaded.plan(Request(keep=1.0))
    assert not plan.cuts
    same = loaded.apply(plan, verify="none").save(tmp_path / "same.onnx")
    assert onnx.load(same).SerializeToString(deterministic=True) == onnx.load(path).SerializeToString(
        deterministic=True
    )


# What is found without hints, and what is left alone without being asked.


def test_structure_of_grouped_query_attention() -> None:
    """Two layers of width 64, 8 query heads on 2 key-value heads of size 16, MLP 160."""
    loaded = graphprune.load(real.llama_tiny())
    assert kinds(loaded.analysis) == LLAMA_TINY
    weights = loaded.analysis.graph.weights
    axes: dict[tuple[str, int], list[set[tuple[int, ...]]]] = {}
    for atom in loaded.analysis.prunable:
        matrices = {weights[name].shape for name in atom.weights if len(weights[name].shape) == 2}
        axes.setdefault((atom.kind, atom.size), []).append(matrices)
    query, key, output, widen, narrow, embedding = (64, 128), (64, 32), (128, 64), (64, 160), (160, 64), (97, 64)
    assert axes["kv-group", 2] == [{query, key, output}] * 2  # keys and values are of one shape
    assert axes["head", 4] == [{query, output}] * 2
    assert axes["head-size", 16] == [{key, output}] * 2  # values only
    assert axes["head-size", 8] == [{query, key}]  # the rotary pairs of all layers
    assert axes["mlp", 160] == [{widen, narrow}] * 2
    (hidden,) = axes["hidden", 64]
    assert {query, key, output, widen, narrow, embedding} <= hidden
    assert {str(atom.reason) for atom in loaded.analysis.frozen} == {
        "it is a table, and the data say which of its entries are read (node node_embedding)",
        "it is the shape of an output of the model, 'logits'",
    }


@pytest.mark.parametrize("name", ["llama_tiny", "ocr_rec", "minilm"])
def test_stream_and_head_size_only_when_asked(name: str) -> None:
    loaded = graphprune.load(SUBJECTS[name].path())
    optional = {atom.kind for atom in loaded.analysis.prunable} & set(OPTIONAL_KINDS)
    cut = {cut.kind for cut in loaded.plan(Request(keep=0.5)).cuts}
    assert cut
    assert not cut & set(OPTIONAL_KINDS)
    for kind in optional:
        also = {cut.kind for cut in loaded.plan(Request(keep=0.5, allow=(kind,))).cuts}
        assert also == cut | {kind}


# The package that the OCR files came from still takes them.


@pytest.mark.parametrize("part", ["rec", "det", "cls"])
def test_package_takes_halved_file(part: str, page: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    path = SUBJECTS[f"ocr_{part}"].path()
    found = _read_page(part, graphprune.load(path), HALF, page, tmp_path)
    if part != "det":  # half of a detector, not trained again, sees no text
        assert len(found) == LINES
    if part == "cls":
        assert _lines_read(found) >= LINES - 2  # it only turns lines that are upside down


def test_package_reads_with_mildly_cut_files(page: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    for part in ("rec", "det"):
        loaded = graphprune.load(SUBJECTS[f"ocr_{part}"].path())
        found = _read_page(part, loaded, Request(params=0.95), page, tmp_path)
        assert _lines_read(found) >= LINES - 2


def test_recogniser_still_reads() -> None:
    """Without 5 % of its parameters it reads nearly as before, by the alphabet in its metadata."""
    path = real.ocr_rec()
    result = graphprune.prune(path, params=0.95, verify="none")
    assert list(result.model.metadata_props) == list(onnx.load(path).metadata_props)
    assert ocr.character_error(path, n=30) < 0.02
    assert ocr.character_error(result.model.SerializeToString(), n=30) < 0.08


def _read_page(part: str, loaded: Any, request: Request, page: npt.NDArray[np.uint8], folder: Path) -> list[str]:
    """What RapidOCR reads on a page with one of its three files cut."""
    from rapidocr_onnxruntime import RapidOCR

    path = loaded.apply(loaded.plan(request), verify="none").save(folder / f"{part}.onnx")
    found, _ = RapidOCR(**{f"{part}_model_path": str(path)}, text_score=0, intra_op_num_threads=1)(page)
    return [text for _, text, _ in found or []]


def _lines_read(found: list[str]) -> int:
    """How many of the page's lines were read, with one wrong character at most."""
    return sum(any(ocr.edit_distance(text, read) <= 1 for read in found) for _, text in ocr.text_lines(LINES, seed=1))
