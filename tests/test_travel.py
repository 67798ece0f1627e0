"""Plans that travel: made on the ONNX export of a module and applied to the module, and the other way round."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune import Request
from graphprune.errors import PlanError
from graphprune.loaded import Loaded
from graphprune.places import places
from graphprune.plan import Plan
from graphprune.verify import difference
from tests.build import Net
from tests.test_plan import renamed
from tests.test_torch import IDS, MODULES, Encoder, generic, noise

pytestmark = pytest.mark.filterwarnings("ignore")


class Twins(nn.Module):
    """Two branches whose normalisations have equal weights, which exporters store once."""

    def __init__(self) -> None:
        super().__init__()
        self.up1, self.up2 = nn.Linear(4, 8), nn.Linear(4, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.down1, self.down2 = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches."""
        found: Tensor = self.down1(self.norm1(self.up1(x))) + self.down2(self.norm2(self.up2(x)))
        return found


class Twice(nn.Module):
    """One layer, called twice: exporters may store its transposed weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        """The layer of the layer."""
        for _ in range(2):
            x = x + self.down(self.up(x).relu())
        return x


class Nested(nn.Module):
    """Lists within lists, no biases: the older exporter renames every weight."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU())
        self.body = nn.Sequential(inner, nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU()))
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Three numbers."""
        found: Tensor = self.head(self.body(x))
        return found


def _albert() -> nn.Module:
    from transformers import AlbertConfig, AlbertModel

    sizes: dict[str, Any] = {"hidden_size": 24, "embedding_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
    return AlbertModel(AlbertConfig(**sizes, num_hidden_layers=2, vocab_size=31, max_position_embeddings=16))


CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "digits": MODULES["digits"],
    "vit": (Encoder, (noise(2, 1, 8, 8),)),
    "llama": MODULES["llama"],
    "bert": MODULES["bert"],
    "twins": (Twins, (noise(2, 5, 4),)),
    "twice": (Twice, (noise(2, 5, 6),)),
    "albert": (_albert, {"input_ids": IDS}),
    "nested": (Nested, (noise(2, 5, 4),)),
}
OLDER = ("digits", "nested")
"""Shown through the older exporter too."""


@cache
def both(name: str, *, dynamo: bool = True) -> tuple[Loaded, Loaded]:
    """The module and its ONNX export, read and analysed."""
    make, inputs = CASES[name]
    torch.manual_seed(0)
    module = generic(make()) if name != "twins" else make().eval()
    keywords = inputs if isinstance(inputs, dict) else {}
    file = io.BytesIO()
    if dynamo:
        made: Any = torch.onnx.export(module, () if keywords else inputs, kwargs=keywords, dynamo=True, verbose=False)
        made.save(file)
    else:
        torch.onnx.export(module, inputs, cast("Any", file), dynamo=False)
    return graphprune.load(module, example_inputs=inputs), graphprune.load(onnx.load_from_string(file.getvalue()))


def outputs(result: graphprune.Result, feeds: list[Any]) -> list[Any]:
    """What a pruned model makes of ``feeds``, in order."""
    runner, names = result.loaded.format.run(result.pruned), result.loaded.analysis.graph.inputs
    given = dict(zip(names, feeds, strict=False))
    return list(runner({name: given.get(name, np.zeros(())) for name in names}).values())


def same_function(a: graphprune.Result, b: graphprune.Result, name: str) -> None:
    """Both pruned models compute the same."""
    inputs = CASES[name][1]
    values = inputs.values() if isinstance(inputs, dict) else inputs
    feeds = [value.numpy() for value in values if isinstance(value, Tensor)]
    left, right = ({str(i): value for i, value in enumerate(outputs(result, feeds))} for result in (a, b))
    assert left.keys() == right.keys()
    assert difference(left, right) < 1e-4


@pytest.mark.parametrize("way", ["from the file", "from the module"])
@pytest.mark.parametrize(("name", "dynamo"), [*((name, True) for name in CASES), *((name, False) for name in OLDER)])
def test_there_and_back(name: str, dynamo: bool, way: str) -> None:
    """The plan goes through JSON, cuts every Dim of the other model, and both cut models compute the same."""
    module, file = both(name, dynamo=dynamo)
    source, target = (file, module) if way == "from the file" else (module, file)
    plan = source.plan(Request(keep=0.5, multiple=1, allow=("all",)), "random", seed=1)
    plan = Plan.from_json(plan.to_json())
    moved, stayed = (loaded.apply(plan, verify="structure") for loaded in (target, source))
    assert len(plan.cuts) == len(source.analysis.prunable) > 0
    assert len(plan.chosen(target.analysis)) == len(target.analysis.prunable)
    same_function(moved, stayed, name)
    assert any("another export" in note for note in moved.report.notes)
    assert not any("another export" in note for note in stayed.report.notes)


def test_only_what_was_planned() -> None:
    """A constant that the exporter made of two weights leads to neither branch."""
    module, file = both("twins")
    shared = [name for name, users in file.analysis.graph.consumers.items() if len(users) > 1]
    assert set(shared) & set(file.analysis.graph.weights), "the exporter did not merge the weights"
    plan = module.plan(Request(keep=0.5, multiple=1, include=("up1",), allow=("all",)), "random")
    (dim,) = plan.chosen(file.analysis)
    assert "down1" in str(file.analysis.by_dim[dim].uses[-1].node.scope)


def test_heads_and_their_size_are_told_apart() -> None:
    """Two Dims on one axis have places of their own."""
    module, _ = both("vit")
    plan = module.plan(Request(keep=0.5, multiple=1, allow=("all",)), "random")
    of = {cut.kind: set(cut.places) for cut in plan.cuts}
    assert any(place.startswith("qkv.weight[0]@") for place in of["head"])
    assert not of["head"] & of["head-size"]


def test_a_module_with_two_dims_is_no_place() -> None:
    """Two contractions in one module that make different Dims: its name says nothing of either."""
    net = Net()
    x = net.input(2, 4)
    for width in (6, 8):
        x = net.op("MatMul", x, net.weight(4 if width == 6 else 6, width), name=f"/mix/MatMul_{width}")
    net.output(net.op("MatMul", x, net.weight(8, 3), name="/head/MatMul"))
    loaded = graphprune.load(net.model())
    assert [atom.size for atom in places(loaded.analysis)["mix>[1]"]] == [6, 8]
    plan = loaded.plan(Request(keep=0.5, multiple=1))
    assert [cut.size for cut in plan.cuts] == [6, 8]
    assert all(cut.places and "mix>[1]" not in cut.places for cut in plan.cuts)


def test_names_are_gone() -> None:
    """The error names the Dims and the weights that are not there."""
    module, file = both("digits")
    plan = module.plan(Request(keep=0.5))
    other = graphprune.load(renamed(file.model.proto))
    with pytest.raises(PlanError, match=r"folded or renamed .* no 'conv' \(known there as conv\.weight\[0\]"):
        plan.chosen(other.analysis)


def test_two_cuts_on_one_dim() -> None:
    """Positions of two Dims cannot both stay where the other model has one Dim."""
    module, file = both("digits")
    plan = module.plan(Request(keep=0.5))
    data = json.loads(plan.to_json())
    data["cuts"][1]["places"] = data["cuts"][0]["places"]
    with pytest.raises(PlanError, match="does not fit the model"):
        Plan.from_json(json.dumps(data)).chosen(file.analysis)


@pytest.mark.parametrize("wrong", ["conv.weight[0]", [1], [["a"]]])
def test_places_that_are_none(wrong: Any) -> None:
    plan = both("digits")[0].plan(Request(keep=0.5))
    data = json.loads(plan.to_json())
    data["cuts"][0]["places"] = wrong
    with pytest.raises(PlanError, match="cut number 0 needs"):
        Plan.from_json(json.dumps(data))
