"""Whole models in fused ops: what may be cut, and that a decoder with a cache generates what it does without one.

The cache is the heads that inputs and outputs of the model have: it is cut on request alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.formats import onnx as format_
from graphprune.graph import Array
from graphprune.loaded import Result
from models.fused import DECODERS, GROUPS, HEADS, LARGER, LAYERS, MLP, VOCABULARY, WIDTH, bert, exported
from tests.build import Net
from tests.cases import CASES, Case
from tests.prove import Subject

STEPS, PROMPT = 64, [7, 3, 11, 20, 5]
CLOSE = 2e-5
"""Of the largest logit: float32 sums in another order."""
pytestmark = pytest.mark.filterwarnings("ignore")


def sizes(loaded: graphprune.Loaded) -> dict[str, list[int]]:
    """Sizes of prunable Dims by kind."""
    found: dict[str, list[int]] = {}
    for atom in loaded.analysis.prunable:
        found.setdefault(atom.kind, []).append(atom.size)
    return found


def proved(result: Result) -> bool:
    """Whether all three checks passed, and zeros were compared."""
    return result.report.verified and not any("nothing to compare" in check.detail for check in result.report.checks)


# BERT, as ONNX Runtime's optimiser leaves it.


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return bert()


def test_bert_is_fused_and_prunable(encoder: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in encoder.graph.node]
    assert kinds.count("Attention") == kinds.count("BiasGelu") == LAYERS
    assert kinds.count("SkipLayerNormalization") == 2 * LAYERS
    assert kinds.count("EmbedLayerNormalization") == 1
    loaded = graphprune.load(encoder)
    found = sizes(loaded)
    assert found["head"] == [HEADS] * LAYERS
    assert found["head-size"] == [WIDTH // HEADS] * LAYERS
    assert found["hidden"] == [WIDTH]
    assert sorted(found["mlp"]) == [WIDTH, *[MLP] * LAYERS], "the pooler too"


def test_bert_is_cut(encoder: onnx.ModelProto) -> None:
    result = graphprune.prune(encoder, keep=0.5, multiple=1, allow="all", timing=False)
    assert proved(result)
    assert result.report.pruned.params < 0.25 * result.report.dense.params
    (node, *_) = [node for node in result.model.graph.node if node.op_type == "Attention"]
    held = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert held["num_heads"] == HEADS // 2
    assert held["scale"] == pytest.approx((WIDTH // HEADS) ** -0.5), "the scale that it was trained with"


# Decoders.


def cut(name: str, *allow: str) -> Result:
    return graphprune.prune(DECODERS[name](), keep=0.5, multiple=1, allow=allow, timing=False)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_is_prunable(name: str) -> None:
    found = sizes(graphprune.load(DECODERS[name]()))
    assert found["cache"] == [HEADS if name == "gpt" else GROUPS] * LAYERS
    assert found.get("head", []) == ([] if name == "gpt" else [HEADS // GROUPS] * LAYERS)
    assert found["hidden"] == [WIDTH]
    assert found["mlp"] == [MLP] * LAYERS


@pytest.mark.parametrize("name", DECODERS)
def test_without_a_cache_heads_are_heads(name: str) -> None:
    found = sizes(graphprune.load(DECODERS[name](cache=False)))
    assert "cache" not in found
    assert found["kv-group" if name == "llama" else "head"] == [GROUPS if name == "llama" else HEADS] * LAYERS
    if name == "llama":
        assert found["head-size"] == [LARGER // 2], "halves are rotated, by the same angles in all layers"
    else:
        assert found["head-size"] == [WIDTH // HEADS] * LAYERS


@pytest.mark.parametrize("name", DECODERS)
def test_the_interface_stays_unless_asked(name: str) -> None:
    dense, result = DECODERS[name](), cut(name, "all")
    assert proved(result)
    assert not [note for note in result.report.notes if "changed shape" in note]
    assert "cache" not in {dim["kind"] for dim in result.report.dims}
    assert result.model.graph.input == dense.graph.input
    assert result.model.graph.output == dense.graph.output


@pytest.mark.parametrize("name", DECODERS)
def test_the_cache_shrinks_with_its_heads(name: str) -> None:
    result = cut(name, "all", "cache")
    assert proved(result)
    (note,) = [note for note in result.report.notes if "changed shape" in note]
    caches = [info for info in result.model.graph.input if info.name.startswith("past")]
    assert len(caches) == LAYERS * (1 if name == "gpt" else 2)
    for info in caches:
        heads = info.type.tensor_type.shape.dim[-3].dim_value
        assert heads == (HEADS if name == "gpt" else GROUPS) // 2
        assert f"{info.name!r} [" in note


@pytest.mark.parametrize("name", DECODERS)
def test_generates_as_without_a_cache(name: str) -> None:
    """Token by token with the cut cache, and all at once by the decoder without one, cut by the same plan."""
    result = cut(name, "all", "cache")
    whole = graphprune.load(DECODERS[name](cache=False)).apply(result.plan, timing=False)
    assert proved(whole)
    tokens, steps = generated(result.model)
    assert len(tokens) == len(PROMPT) + STEPS
    assert len(set(tokens)) > 5, "it does not repeat itself, which would prove little"
    (logits,) = run(whole.model, feeds(whole.model, tokens, 0, {}))
    seen = logits[0, len(PROMPT) - 1 : -1]
    assert np.abs(seen - steps).max() < CLOSE * np.abs(seen).max()
    np.testing.assert_array_equal(seen.argmax(-1), tokens[len(PROMPT) :])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exports_generate_as_without_a_cache(name: str) -> None:
    """The same for what torch exports, whose caches are concatenations: all at once is with an empty one."""
    result = graphprune.prune(exported(name), keep=0.5, multiple=1, allow=("all", "cache"), timing=False)
    assert proved(result)
    cut = [dim for dim in result.report.dims if dim["kind"] == "cache"]
    assert [dim["after"] for dim in cut] == [(HEADS if name == "gpt2" else GROUPS) // 2] * LAYERS
    tokens, steps = generated(result.model)
    assert len(set(tokens)) > 5
    (logits, *_) = run(result.model, feeds(result.model, tokens, 0, empty(result.model)))
    seen = logits[0, len(PROMPT) - 1 : -1]
    assert np.abs(seen - steps).max() < CLOSE * np.abs(seen).max()


def generated(model: onnx.ModelProto) -> tuple[list[int], Array]:
    """The likeliest token again and again, with the keys and values of the steps before; the logits of each step."""
    runner = format_.run(format_.read(model))
    past = empty(model)
    tokens, new, logits = list(PROMPT), list(PROMPT), []
    for _ in range(STEPS):
        found = runner(feeds(model, new, len(tokens) - len(new), past))
        past = {name: found[name.replace("past", "present")] for name in past}
        logits.append(found["logits"][0, -1])
        new = [int(logits[-1].argmax())]
        tokens += new
    return tokens, np.stack(logits)


def empty(model: onnx.ModelProto) -> dict[str, Array]:
    """Caches of no places."""
    held = {i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: np.zeros([*shape[:-2], 0, shape[-1]], np.float32) for name, shape in held.items() if "past" in name}


def feeds(model: onnx.ModelProto, new: list[int], before: int, past: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs for ``new`` tokens after ``before`` others."""
    places = np.arange(before, before + len(new))[None]
    given = {"input_ids": np.array([new]), "position_ids": places}
    given |= {"attention_mask": np.ones((1, before + len(new)), np.int64)}
    return {info.name: {**given, **past}[info.name] for info in model.graph.input}


def run(model: onnx.ModelProto, given: Mapping[str, Array]) -> list[Array]:
    return list(format_.run(format_.read(model))(given).values())


# What the proofs would say.


def test_a_cache_that_is_not_handed_on_stays() -> None:
    """The same decoder without its caches as outputs: where they come from is not known."""
    model = DECODERS["gpt"]()
    del model.graph.output[:-1]
    found = sizes(graphprune.load(model))
    assert "cache" not in found
    assert "head" not in found
    reasons = {str(atom.reason) for atom in graphprune.load(model).analysis.frozen if atom.kind == "head"}
    assert reasons == {f"it is the shape of an input of the model, 'past_{i}'" for i in range(LAYERS)}


def test_inputs_that_are_not_fitted_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches in the old order for a permuted model."""
    subject = Subject(DECODERS["gpt"]())
    assert subject.failures() == []
    monkeypatch.setattr(Analysis, "fit", lambda self, values, chosen: dict(values))
    assert any(failure.startswith("FAILED permutation") for failure in subject.failures())


# Head sizes that a kernel takes.


def test_head_sizes_are_multiples() -> None:
    """Half a rotated head is a multiple of 8: 16 positions are cut to 8, and not to 4 or 12."""
    loaded = graphprune.load(DECODERS["llama"](cache=False))
    (atom, *_) = [atom for atom in loaded.analysis.prunable if atom.kind == "head-size"]
    assert (atom.size, atom.multiple) == (16, 8)
    for share in (0.2, 0.5, 0.7):
        request = graphprune.Request(keep=share, multiple=1, allow=("head-size",))
        plan = loaded.plan(request)
        kept = {len(cut.keep) for cut in plan.cuts if cut.kind == "head-size"}
        assert kept == {8}, share
    result = loaded.apply(plan, timing=False)
    assert proved(result)


def test_a_part_of_a_head_that_is_no_multiple_stays() -> None:
    """Heads of (3 · 8): neither 2 of 3 eights nor 3 sevens would be a size that the kernel takes in all cases."""
    net = Net()
    keys = [net.op("Reshape", net.free(1, 3, 2, 3, 8), net.const([1, 3, 48])) for _ in range(2)]
    query = net.op("Reshape", net.free(1, 3, 4, 3, 8), net.const([1, 3, 96]))
    inputs = query, *keys, "", "", net.const([2], np.int32), net.const(3, np.int32)
    attrs = {"num_heads": 4, "kv_num_heads": 2, "domain": "com.microsoft"}
    net.sink(net.op("GroupQueryAttention", *inputs, name="tested", **attrs), shape=(1, 3, 96))
    subject = Subject(net.model())
    assert subject.freedom(subject.node("tested")).startswith("..+ ..+ ..+")
    reasons = [str(atom.reason) for atom in subject.analysis.frozen if atom.size == 3]
    assert "it is a part of an axis that is cut in multiples of 8 (node tested)" in reasons
    assert subject.failures() == []


def test_an_operand_that_the_line_does_not_name_freezes() -> None:
    net = Net()
    inputs = [net.free(1, 3, 8) for _ in range(3)]
    extra = [""] * 7 + [net.weight(2)]
    y = net.op("MultiHeadAttention", *inputs, *extra, num_heads=2, domain="com.microsoft", name="tested")
    net.sink(y, shape=(1, 3, 8))
    analysis = analyse(format_.read(net.model()).graph)
    assert not analysis.prunable
    assert any("it has more inputs than its rule" in str(atom.reason) for atom in analysis.frozen)


def test_a_plan_of_another_multiple_is_refused() -> None:
    loaded = graphprune.load(DECODERS["llama"](cache=False))
    plan = loaded.plan(graphprune.Request(keep=0.5, multiple=1, allow=("head-size",)))
    text = plan.to_json()
    (line, *_) = [line for line in text.splitlines() if '"kind": "head-size"' in line]
    keep = line.split('"keep": "')[1].split('"')[0]
    edited = graphprune.Plan.from_json(text.replace(line, line.replace(f'"keep": "{keep}"', '"keep": "0-3"')))
    with pytest.raises(graphprune.PlanError, match="the kernel takes a multiple of 8"):
        loaded.apply(edited)


# Gradients.


LIFTED = [case for case in CASES if case.op.startswith("com.microsoft.") or "Runtime" in case.title]


@pytest.mark.parametrize("case", LIFTED, ids=str)
def test_lifted_ops(case: Case) -> None:
    """What torch differentiates gives what ONNX Runtime does; what it cannot is an error."""
    from graphprune.errors import UsageError
    from graphprune.formats.onnx.lift import lift

    model = format_.read(case.model())
    runner = format_.run(model)
    (feeds,) = [feeds for _, feeds in format_.trials(model, runner)]
    if case.op in NOT_LIFTED or case.op.startswith(IN_INTEGERS):
        with pytest.raises(UsageError, match="cannot be run for gradients"):
            lift(model)(feeds)
        return
    found = lift(model)(feeds)
    for name, value in runner(feeds).items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=2e-5 * np.abs(value).max())


IN_INTEGERS = tuple(
    f"com.microsoft.{stem}" for stem in "q_ quantize deq dynamic_q gather_block mat_mul_n mat_mul_integer".split()
)
"""What rounds, or has its weights in integers, has no line for torch."""
NOT_LIFTED = {
    "com.microsoft.causal_conv_with_state",
    "com.microsoft.decoder_masked_multi_head_attention",
    "com.microsoft.linear_attention",
    "com.microsoft.mo_e",
    "com.microsoft.nhwc_max_pool",
}


def test_a_wrong_lifted_op_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.formats.onnx.lift_ops import OPS

    (case,) = [case for case in LIFTED if str(case) == "com.microsoft.fast_gelu-bias"]
    monkeypatch.setitem(OPS, "com.microsoft.FastGelu", OPS["com.microsoft.BiasGelu"])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_lifted_ops(case)


@pytest.mark.parametrize("name", DECODERS)
def test_scores_that_need_gradients(name: str) -> None:
    """A decoder in fused ops is scored by the gradients of its own loss."""
    model = DECODERS[name](cache=False)
    texts = np.random.default_rng(0).integers(0, VOCABULARY, (4, 9))
    batches = [feeds(model, list(text), 0, {}) for text in texts]
    result = graphprune.prune(model, keep=0.5, multiple=1, score="fisher", calib=batches, timing=False)
    assert proved(result)
    assert {dim["kind"] for dim in result.report.dims} >= {"mlp", "head" if name == "gpt" else "kv-group"}
