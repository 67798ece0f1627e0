"""Torch modules cut in place: what they compute, the sizes they keep, their configs; a failure changes nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import UsageError, VerifyError
from graphprune.formats.torch import inplace
from graphprune.formats.torch.equal import Trials, difference
from graphprune.formats.torch.read import read
from graphprune.formats.torch.sizes import Size, attribute_size, attributes, solve
from models.llama import tiny_config
from models.transformers_zoo import build
from tests.test_torch import (
    ANY,
    HEADS,
    IDS,
    MLP,
    MODULES,
    WIDTH,
    WORDS,
    Encoder,
    HardCoded,
    Tied,
    Tiny,
    called,
    close,
    count,
    generic,
    half,
    noise,
    shapes,
)

pytestmark = pytest.mark.filterwarnings("ignore")


class Sizes:
    """Numbers that a module keeps in an object of its own."""

    def __init__(self, heads: int, wide: int, groups: int = 1) -> None:
        self.heads, self.wide, self.groups = heads, wide, groups


class Mixer(nn.Module):
    """Keeps sizes as numbers, in lists, in a tuple, in an object; uses them as they are, multiplied and divided."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.each, self.sizes = [8, 16], (3, 4), Sizes(heads=4, wide=24)
        self.repeats, self.limit = 2, 16
        self.up, self.split = nn.Linear(6, 24), nn.Linear(24, 24)
        self.many, self.pair = nn.Linear(8, 16), nn.Linear(8, 8)
        self.down, self.back = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        n, groups, width = x.shape[0], self.sizes.heads // self.repeats, self.each[1]
        x = self.split(self.up(x).view(n, self.sizes.wide).relu())
        left, right = torch.split(x, self.parts, dim=1)
        heads = self.many(left).view(n, self.sizes.heads, width).relu().reshape(n, self.sizes.heads * width)
        pairs = self.pair(left).view(n, groups, width)[:, :, None].expand(n, groups, self.repeats, width)
        logits: Tensor = self.down(heads + pairs.reshape(n, -1)) + self.back(right)
        return logits


class Rooted(nn.Module):
    """Its forward uses a size for more than shapes, where the input is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.hidden = nn.Linear(4, 8), nn.Linear(8, 1), 8

    def forward(self, x: Tensor) -> Tensor:
        """One number."""
        found: Tensor = self.down(self.up(x).view(-1, self.hidden).relu()) + x[:, :1] * math.sqrt(self.hidden)
        return found


class Twice(Rooted):
    """One attribute is the size of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One number."""
        left, right = (part(x).view(-1, self.hidden).relu() for part in (self.up, self.other))
        found: Tensor = self.down(left) + self.last(right)
        return found


@dataclass
class Cut:
    """A module cut in place, beside the traced one."""

    module: nn.Module
    inputs: Any
    dense: int
    result: graphprune.Result
    found: list[Tensor]
    fixed: set[str]


@cache
def cut(name: str) -> Cut:
    """A module of the table, half of every Dim of every kind cut, in place."""
    make, inputs = MODULES[name]
    torch.manual_seed(0)
    module = generic(make())
    dense, fixed = count(module), {name for name, value in module.named_parameters() if not value.requires_grad}
    kinds = "hidden" if name == "vit" else "all"  # see test_head_size_that_scales_attention
    result = half(module, inputs, allow=(kinds,), verify="structure")
    assert result.in_place() is module
    return Cut(module, inputs, dense, result, called(module, inputs), fixed)


@pytest.mark.parametrize("name", MODULES)
def test_in_place(name: str) -> None:
    """The user's own module computes what the traced one does, has its parameters, and trains."""
    made = cut(name)
    close(made.found, called(made.result.model, made.inputs))
    assert shapes(made.module) == {k: v for k, v in shapes(made.result.model).items() if k in shapes(made.module)}
    assert count(made.module) < 0.6 * made.dense
    assert type(made.module).__name__ != type(made.result.model).__name__
    assert {name for name, value in made.module.named_parameters() if not value.requires_grad} == made.fixed


@pytest.mark.parametrize("name", MODULES)
def test_sizes_that_layers_keep(name: str) -> None:
    """out_channels, in_features, num_features, normalized_shape ... are those of the tensors, in every layer."""
    for part in cut(name).module.modules():
        if isinstance(part, nn.Linear):
            assert (part.out_features, part.in_features) == part.weight.shape
        elif isinstance(part, nn.Conv1d | nn.Conv2d):
            assert (part.out_channels, part.in_channels // part.groups) == part.weight.shape[:2]
        elif isinstance(part, nn.BatchNorm2d):
            assert (part.num_features,) == part.weight.shape
            assert part.running_mean is not None
            assert part.running_mean.shape == part.weight.shape
        elif isinstance(part, nn.LayerNorm):
            assert part.normalized_shape == part.weight.shape
        elif isinstance(part, nn.GroupNorm):
            assert (part.num_channels,) == part.weight.shape
        elif isinstance(part, nn.Embedding):
            assert (part.num_embeddings, part.embedding_dim) == part.weight.shape


def test_sizes_by_hand() -> None:
    """Numbers of a few layers, worked out by hand."""
    cnn: Any = cut("cnn").module
    assert (cnn.stem.out_channels, cnn.inner.out_channels, cnn.inner.in_channels, cnn.bn.num_features) == (4, 6, 4, 4)
    assert (cnn.depth.groups, cnn.depth.in_channels, cnn.depth.out_channels) == (cnn.wide.out_channels,) * 3
    assert (cnn.norm.num_channels, cnn.norm.num_groups) == (4, 2)
    vit: Any = cut("vit").module
    assert (vit.up.out_features, vit.patch.out_channels, vit.ln1.normalized_shape) == (16, 12, (12,))
    assert (vit.num_heads, vit.head_dim, vit.qkv.out_features) == (2, 6, 36)
    bert: Any = cut("bert").module
    attention = bert.encoder.layer[0].attention.self
    assert (attention.attention_head_size, attention.query.out_features) == (3, 6)


def test_in_place_failure_restores() -> None:
    """A forward that knows a size: VerifyError, and everything is as it was, down to the identity of tensors."""
    module: Any = generic(HardCoded())
    x = (noise(2, 4),)
    state = {name: (value, value.clone()) for name, value in module.state_dict(keep_vars=True).items()}
    kept = {path: {k: v for k, v in vars(part).items() if k[0] != "_"} for path, part in module.named_modules()}
    expected = called(module, x)
    result = half(module, x)
    with pytest.raises(VerifyError, match="HardCoded cannot be cut in place") as caught:
        result.in_place()
    assert "result.model" in str(caught.value)
    after = module.state_dict(keep_vars=True)
    assert all(after[name] is was and torch.equal(was, value) for name, (was, value) in state.items())
    assert {path: {k: v for k, v in vars(p).items() if k[0] != "_"} for path, p in module.named_modules()} == kept
    assert (module.up.out_features, module.down.in_features) == (8, 8)
    torch.testing.assert_close(called(module, x), expected, rtol=0, atol=0)
    assert result.model(x[0]).shape == (2, 3)


def test_head_size_that_scales_attention() -> None:
    """Attention that divides by the root of its own head size changes with it: refused, the module as it was."""
    module: Any = generic(Encoder())
    inputs = MODULES["vit"][1]
    expected, before = called(module, inputs), shapes(module)
    result = half(module, inputs, allow=("head-size",))
    assert result.report.verified
    with pytest.raises(VerifyError, match="it computes something else"):
        result.in_place()
    assert (module.num_heads, module.head_dim, shapes(module)) == (HEADS, WIDTH // HEADS, before)
    torch.testing.assert_close(called(module, inputs), expected, rtol=0, atol=0)


def test_in_place_needs_a_module() -> None:
    """An ExportedProgram cannot be changed."""
    program = torch.export.export(generic(Tiny()), (noise(2, 4),))
    with pytest.raises(UsageError, match=r"only an nn\.Module"):
        half(program, None).in_place()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_config_round_trip(name: str, tmp_path: Path) -> None:
    """MLPs cut alike: the config says so, and from_pretrained builds the same model."""
    make, inputs = MODULES[name]
    module: Any = generic(make())
    mlp = ("*intermediate*",) if name == "bert" else ("*mlp*",)
    before = module.config.intermediate_size
    half(module, inputs, include=mlp, verify="none").in_place()
    assert module.config.intermediate_size == before // 2
    module.save_pretrained(tmp_path)
    again = type(module).from_pretrained(tmp_path).eval()
    close(called(again, inputs), called(module, inputs))


def test_config_of_the_default_kinds(tmp_path: Path) -> None:
    """Heads and MLPs of a Llama, as prune cuts them by default."""
    make, inputs = MODULES["llama"]
    module: Any = generic(make())
    result = half(module, inputs, verify="none")
    assert result.plan.cuts
    result.in_place()
    module.save_pretrained(tmp_path)
    close(called(type(module).from_pretrained(tmp_path).eval(), inputs), called(module, inputs))


def test_config_of_an_uneven_cut() -> None:
    """One layer of two is cut: no config says so, and it stays."""
    make, inputs = MODULES["bert"]
    module: Any = generic(make())
    before = module.config.to_dict()
    half(module, inputs, include=("encoder.layer.0.intermediate*",), verify="none").in_place()
    assert module.config.to_dict() == before
    sizes = [layer.intermediate.dense.out_features for layer in module.encoder.layer]
    assert sizes == [MLP // 2, MLP]


def test_tied_parameters_in_place() -> None:
    """One parameter under two names, before and after; the sizes of both layers follow."""
    module: Any = generic(Tied())
    result = half(module, (IDS,), allow=("all",))
    assert result.report.verified
    result.in_place()
    assert module.embed.weight is module.head.weight
    assert (module.embed.embedding_dim, module.head.in_features, module.head.out_features) == (4, 4, WORDS)
    close(called(module, (IDS,)), called(result.model, (IDS,)))


def held(module: nn.Module) -> dict[str, Any]:
    """Everything that a module and its parts keep, by identity where it is no number."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in (*vars(part).items(), *part._parameters.items(), *part._buffers.items()):
            found[f"{path}.{name}"] = value if isinstance(value, int | float | str) else id(value)
        for name, value in vars(part).get("config", part).__dict__.items() if hasattr(part, "config") else ():
            found[f"{path}.config.{name}"] = value if isinstance(value, int | float | str) else id(value)
    return found


def gpt2() -> tuple[Any, Any]:
    """A small GPT-2 and its inputs, in float32."""
    module, inputs = build("gpt2")
    return module.float(), inputs


@pytest.mark.parametrize("excluded", [(), ("up*",), ("many",), ("many:mlp",)])
def test_sizes_of_all_sorts(excluded: tuple[str, ...]) -> None:
    """Lists, tuples, objects, products and ratios follow the calls that use them; what no call uses stays."""
    module: Any = generic(Mixer())
    inputs = (noise(3, 6),)
    result = half(module, inputs, allow=("all",), exclude=excluded)
    assert result.in_place() is module
    close(called(module, inputs), called(result.model, inputs))
    groups = module.sizes.heads // module.repeats
    assert groups * module.each[1] == module.pair.out_features
    assert module.sizes.heads * module.each[1] == module.many.out_features
    assert sum(module.parts) == module.split.out_features < 24
    assert module.sizes.wide == module.up.out_features == (24 if "up*" in excluded else 12)
    assert (module.limit, module.each[0]) == (16, 3)


def test_arithmetic_is_remembered() -> None:
    """What was computed from attributes is solved for them; a place with two open ones keeps one at a time."""
    kept = Sizes(heads=8, wide=4, groups=2)
    heads, width, groups = found = attributes([kept])
    sizes: list[Any] = [attribute_size(attribute) for attribute in found]
    product, ratio = sizes[0] * sizes[1], sizes[0] // sizes[2]
    assert (product, ratio, 1 + product) == (32, 4, 33)
    assert next(solve([(product, 16), (sizes[1], 4)])) == {width: 4, heads: 4}
    assert next(solve([(ratio, 4), (sizes[0], 4)])) == {heads: 4, groups: 1}
    assert [{a.name: v for a, v in each.items()} for each in solve([(product, 16)])] == [
        {"heads": 8, "wide": 2},
        {"wide": 4, "heads": 4},
    ]
    assert type(product / 2) is float


def test_gpt2() -> None:
    """Split sizes that are attributes."""
    module, inputs = gpt2()
    result = half(module, inputs, verify="none")
    result.in_place()
    close(called(module, inputs), called(result.model, inputs))
    attention: Any = module.get_submodule("transformer.h.0.attn")
    assert attention.split_size * 3 == attention.c_attn.nf == attention.c_attn.weight.shape[1] < 192


def test_unequal_layers() -> None:
    """Layers cut to sizes of their own work in place, where each has attributes of its own."""
    module, inputs = gpt2()
    result = half(module, inputs, exclude=("transformer.h.1*",), verify="none")
    before = module.config.to_dict()
    result.in_place()
    close(called(module, inputs), called(result.model, inputs))
    sizes = [module.get_submodule(f"transformer.h.{i}.attn").split_size for i in (0, 1)]
    assert sizes == [32, 64]
    assert module.config.to_dict() == before


@pytest.mark.parametrize("wrong", ["split_size", "nf"])
def test_wrong_attribute_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute set to a size it should not have: the proof refuses, and nothing is left of the attempt."""
    module, inputs = gpt2()
    result = half(module, inputs, allow=("hidden",), verify="none")
    before, expected = held(module), called(module, inputs)

    def swapped(equations: Any) -> Iterator[dict[Any, int]]:
        for values in solve(equations):
            yield {at: 8 if at.name == wrong else value for at, value in values.items()}

    monkeypatch.setattr(inplace, "solve", swapped)
    with pytest.raises(VerifyError, match="cannot be cut in place"):
        result.in_place()
    assert held(module) == before
    torch.testing.assert_close(called(module, inputs), expected, rtol=0, atol=0)
    monkeypatch.undo()
    result.in_place()
    assert held(module) != before


def test_other_inputs_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that the example inputs do not show is found on others; without them it would go through."""
    module: Any = generic(Rooted())
    x = noise(3, 4)
    x[:, 0] = 0
    result = half(module, (x,))
    before = held(module)
    with pytest.raises(VerifyError, match="something else on other inputs than the example inputs"):
        result.in_place()
    assert held(module) == before
    monkeypatch.setattr("graphprune.formats.torch.equal._others", lambda model, leaves: iter(()))
    result.in_place()
    assert difference(module(x + 1), result.model(x + 1)) > 0.01


def test_other_sizes_are_tried() -> None:
    """Axes that are dynamic are one longer in the last trial."""
    module = generic(Tiny())
    trials = Trials(read(module, (noise(2, 4),), ({0: ANY},)))
    assert [tuple(inputs[0].shape) for inputs in trials.inputs] == [(2, 4), (2, 4), (3, 4)]
    assert len(Trials(read(module, (noise(2, 4),))).inputs) == 2


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while the module runs with marked sizes: everything is as it was."""
    module, inputs = gpt2()
    result = half(module, inputs, verify="none")
    before = held(module)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graphprune.formats.torch.used._equation", stop)
    with pytest.raises(KeyboardInterrupt):
        result.in_place()
    assert held(module) == before
    assert all(type(value) is not Size for part in module.modules() for value in vars(part).values())


def test_two_sizes_at_once() -> None:
    """One attribute that would have to be two sizes: refused, by name."""
    module = generic(Twice())
    with pytest.raises(VerifyError, match="hidden is used as 4 and as 8 where it was 8"):
        half(module, (noise(3, 4),), include=("up*",)).in_place()


def test_changed_since_it_was_traced() -> None:
    """A module that was trained after the trace is refused, not overwritten."""
    module: Any = generic(Tiny())
    result = half(module, (noise(2, 4),))
    with torch.no_grad():
        module.up.bias.add_(1)
    kept = module.up.bias.clone()
    with pytest.raises(VerifyError, match="no longer computes what was traced"):
        result.in_place()
    assert torch.equal(module.up.bias, kept)


def test_recurrent() -> None:
    """An LSTM lists its weights a second time; both are cut."""
    module: Any = generic(nn.Sequential(nn.Linear(4, 6), nn.LSTM(6, 8, batch_first=True)))
    inputs = (noise(2, 3, 4),)
    result = half(module, inputs, include=("0*",))
    assert result.plan.cuts
    result.in_place()
    close(called(module, inputs), called(result.model, inputs))
    assert (module[1].input_size, module[1].weight_ih_l0.shape) == (3, (32, 3))
    assert all(any(p is q for q in module[1].parameters()) for p in module[1]._flat_weights)


def test_config_that_computes_something_else() -> None:
    """A config could say the new head size, but attention would then scale by another root: it stays."""
    module: Any = cut("llama").module
    attention = module.model.layers[0].self_attn
    assert attention.head_dim < module.config.head_dim == tiny_config().head_dim
    assert attention.scaling == pytest.approx(module.config.head_dim**-0.5)


CONFIGS: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "hidden", {"n_embd": 32, "n_head": 2, "n_inner": 48}),
    ("qwen2", "", {"intermediate_size": 48, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}),
    ("resnet", "", {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48]}),
    ("mamba", "", {"intermediate_size": 64, "time_step_rank": 2}),
    ("whisper", "hidden", {"d_model": 32, "encoder_ffn_dim": 48, "decoder_attention_heads": 2}),
    ("clip", "hidden", {}),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face models cut in place, as save_pretrained writes them, beside inputs and outputs."""
    folder = tmp_path_factory.mktemp("saved")
    for name, allow, sizes in CONFIGS:
        module, inputs = build(name)
        inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
        result = half(module.float(), inputs, allow=(allow,) if allow else (), multiple=8, verify="none")
        result.in_place()
        model: Any = next(part for part in module.modules() if hasattr(part, "save_pretrained"))
        assert {key: getattr(model.config, key) for key in sizes} == sizes
        assert count(module) < 0.6 * result.report.dense.params
        model.save_pretrained(folder / name)
        torch.save((inputs, called(model, inputs)), folder / name / "called.pt")
    return folder


def test_fresh_process_loads_them(saved: Path) -> None:
    """Another process loads modules whole, or builds them from their configs, and they compute the same."""
    for name in ("cnn", "vit", "llama", "bert", "whisper"):
        made = cut(name)
        torch.save((made.module, made.inputs, made.found), saved / f"whole-{name}.pt")
    code = (
        "import sys, torch, transformers\n"
        "from pathlib import Path\n"
        "from tests.test_torch import called, close\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    if path.is_file():\n"
        "        module, inputs, expected = torch.load(path, weights_only=False)\n"
        "    else:\n"
        "        config = transformers.AutoConfig.from_pretrained(path)\n"
        "        module = getattr(transformers, config.architectures[0]).from_pretrained(path).eval()\n"
        "        inputs, expected = torch.load(path / 'called.pt')\n"
        "    close(called(module, inputs), expected)\n"
        "    print(path.stem)\n"
    )
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, timeout=120, check=False, cwd=root
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == sorted(path.stem for path in saved.iterdir())
    assert len(ended.stdout.split()) == 5 + len(CONFIGS)


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    """Modules cut for this file are let go at its end."""
    yield
    cut.cache_clear()
