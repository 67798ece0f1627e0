"""Torch modules from end to end: traced, pruned, trained, exported again, pruned in steps, refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

import graphprune
from graphprune.errors import ReadError, UsageError
from graphprune.formats.torch.train import TracedModule
from graphprune.iterate import SCHEDULES, prune_in_steps
from models import digits
from models.llama import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")

READ, WRITE = 3, 7
ANY = torch.export.Dim("batch", min=1, max=64)
WIDTH, MLP, HEADS, WORDS = 24, 32, 4, 31


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generic(module: nn.Module) -> nn.Module:
    """``module`` in evaluation mode, nothing in it constant or the same in two places."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and not name.endswith("inv_freq"):
                low = 0.5 if tensor.dim() < 2 else -0.5
                tensor.copy_(torch.rand(tensor.shape, generator=generator).to(tensor) + low)
    return module.eval()


class Residual(nn.Module):
    """Convolutions with batch norm around a sum, a depthwise one with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_bn = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.back = nn.Conv2d(12, 8, 1)
        self.wide, self.norm = nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        x = self.bn(self.stem(x)).relu()
        x = x + self.back(self.inner_bn(self.inner(x)).relu())
        logits: Tensor = self.fc(self.depth(self.norm(self.wide(x)).relu()).mean((2, 3)))
        return logits


class Encoder(nn.Module):
    """A small vision transformer that keeps the number of its heads and their size as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.patch = nn.Conv2d(1, WIDTH, 4, 4)
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, MLP), nn.Linear(MLP, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.ln1(x)).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(functional.gelu(self.up(self.ln2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Tiny(nn.Module):
    """One hidden layer, named."""

    def __init__(self, inputs: int = 4, hidden: int = 8, outputs: int = 3) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        found: Tensor = self.down(self.up(x).relu())
        return found


class HardCoded(Tiny):
    """Its forward knows the size of the hidden layer."""

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        found: Tensor = self.down(self.up(x).reshape(-1, 8).relu())
        return found


class Tied(nn.Module):
    """The embedding is the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.embed.weight
        self.mlp = Tiny(8, 16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of words."""
        x = self.embed(ids)
        logits: Tensor = self.head(x + self.mlp(x))
        return logits


class Branch(Tiny):
    """What it does depends on the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, or their negatives."""
        if x.sum() > 0:  # the line that an error must show
            return super().forward(x)
        return -super().forward(x)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": MLP,
    }
    return BertModel(BertConfig(**sizes, vocab_size=WORDS, max_position_embeddings=16))


def _llama() -> nn.Module:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(tiny_config())


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    sides: dict[str, Any] = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIDE.items()}
    words: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths: dict[str, Any] = {"max_source_positions": 8, "max_target_positions": 16, "num_mel_bins": 4}
    return WhisperModel(WhisperConfig(d_model=WIDTH, vocab_size=WORDS, **sides, **words, **lengths))


_SIDE = {"layers": 1, "attention_heads": HEADS, "ffn_dim": MLP}
IDS = torch.arange(10).reshape(2, 5) + 3
MODULES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "digits": (digits.network, (noise(2, 1, 8, 8),)),
    "cnn": (Residual, (noise(2, 1, 8, 8),)),
    "vit": (Encoder, (noise(2, 1, 8, 8),)),
    "llama": (_llama, {"input_ids": IDS, "use_cache": False}),
    "bert": (_bert, {"input_ids": IDS}),
    "whisper": (_whisper, {"input_features": noise(1, 4, 16), "decoder_input_ids": IDS[:1], "use_cache": False}),
}


def called(module: nn.Module, inputs: Any) -> list[Tensor]:
    """The outputs on ``inputs``, flat."""
    with torch.no_grad():
        found = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    flat, _ = torch.utils._pytree.tree_flatten(found)
    return [part for part in flat if isinstance(part, Tensor)]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    """The same outputs."""
    assert len(a) == len(b) > 0
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def count(module: nn.Module) -> int:
    """How many parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def half(module: Any, inputs: Any, **request: Any) -> graphprune.Result:
    """``module`` with half of every Dim, unless ``request`` says otherwise."""
    return graphprune.prune(module, example_inputs=inputs, **{"keep": 0.5, "multiple": 1, "timing": False, **request})


# ---- a traced module that trains


@pytest.fixture(scope="module")
def given() -> Any:
    """The digits network, in training mode but for one part."""
    module: Any = generic(digits.network()).train()
    module.block1.eval()
    return module


@pytest.fixture(scope="module")
def pruned(given: nn.Module) -> graphprune.Result:
    """Half of it."""
    return half(given, (noise(2, 1, 8, 8),), dynamic_shapes=({0: ANY},))


@pytest.fixture
def small(pruned: graphprune.Result) -> Any:
    """A copy of the pruned module, to be trained or broken."""
    return copy.deepcopy(pruned.model)


def test_names_and_sizes(given: nn.Module, pruned: graphprune.Result) -> None:
    """The names of parameters and buffers are those of the module; every tensor is no larger, the whole a third."""
    before, after = given.state_dict(), pruned.model.state_dict()
    assert set(shapes(pruned.model)) == set(shapes(given)) > set()
    assert set(after) == set(before)
    assert all(after[name].numel() <= before[name].numel() for name in before)
    assert count(pruned.model) < 0.35 * count(given)
    assert pruned.report.verified


def test_given_module_is_untouched() -> None:
    """Tensors, their identity and the mode of every part are as they were."""
    module: Any = generic(Residual()).train()
    module.bn.eval()
    before = {name: (id(value), value.clone()) for name, value in module.state_dict(keep_vars=True).items()}
    modes = [part.training for part in module.modules()]
    half(module, MODULES["cnn"][1])
    after = module.state_dict(keep_vars=True)
    assert [part.training for part in module.modules()] == modes
    assert all(id(after[name]) == was and torch.equal(after[name], value) for name, (was, value) in before.items())


def test_trains(small: Any) -> None:
    """The loss falls, all parameters move, batch-norm statistics move in training mode and only then."""
    x, y = noise(16, 1, 8, 8), torch.arange(16) % 10
    mean = small.get_buffer("bn.running_mean")
    assert not small.training
    still = mean.clone()
    small(x)
    assert torch.equal(small.get_buffer("bn.running_mean"), still)
    small.train()
    before = {name: value.detach().clone() for name, value in small.named_parameters()}
    optimiser = torch.optim.Adam(small.parameters(), 1e-2)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = functional.cross_entropy(small(x), y)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert not any(torch.equal(value, before[name]) for name, value in small.named_parameters())
    assert not torch.equal(small.get_buffer("bn.running_mean"), still)
    moved = small.eval().get_buffer("bn.running_mean").clone()
    small(x)
    assert torch.equal(small.get_buffer("bn.running_mean"), moved)


def test_copies_and_state(small: Any, tmp_path: Path) -> None:
    """A copy is its own module with a mode of its own; a state_dict goes to a file and back."""
    x = (noise(3, 1, 8, 8),)
    expected = called(small, x)
    twin = copy.deepcopy(small)
    assert isinstance(twin, TracedModule)
    torch.save(small.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    close(called(twin, x), expected)
    assert not torch.allclose(called(small, x)[0], expected[0])
    small.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    close(called(small, x), expected)
    twin.train()
    close(called(small, x), expected)
    assert not torch.allclose(called(twin, x)[0], expected[0])


def test_other_batch_sizes(pruned: graphprune.Result) -> None:
    """Rows do not depend on how many there are."""
    rows = noise(5, 1, 8, 8)
    (whole,) = called(pruned.model, (rows,))
    assert whole.shape == (5, 10)
    torch.testing.assert_close(called(pruned.model, (rows[:1],))[0], whole[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [False, True])
def test_exports_again(small: Any, mode: bool) -> None:
    """torch.export takes it in either mode, and takes the mode with it."""
    x = (noise(3, 1, 8, 8),)
    small.train(mode)
    program = torch.export.export(small, x, dynamic_shapes=({0: ANY},))
    close(called(program.module(), x), called(copy.deepcopy(small), x))


def test_exports_to_onnx(tmp_path: Path) -> None:
    """torch.onnx.export takes it, and onnxruntime computes the same."""
    module = half(generic(Tiny()), (noise(2, 4),)).model
    path = tmp_path / "small.onnx"
    torch.onnx.export(module, (noise(2, 4),), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: noise(2, 4).numpy()})
    np.testing.assert_allclose(found, called(module, (noise(2, 4),))[0].numpy(), rtol=1e-4, atol=1e-5)


def test_prunes_again_in_training_mode(small: Any) -> None:
    """A pruned module that was left in training mode is pruned as in evaluation mode and keeps its mode."""
    small.train()
    x = (noise(4, 1, 8, 8),)
    again = half(small, x)
    assert small.training
    assert again.report.verified
    assert not torch.allclose(called(copy.deepcopy(small), x)[0], called(copy.deepcopy(small).eval(), x)[0])
    model = again.model.eval()
    mean = model.get_buffer("bn.running_mean").clone()
    model(*x)
    assert torch.equal(model.get_buffer("bn.running_mean"), mean)


def test_mode_does_not_change_the_plan() -> None:
    """Dropout and batch norm: the same plan in both modes, each kept."""
    plans = []
    for mode in (True, False):
        module: nn.Module = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
        )
        module = generic(module).train(mode)
        result = half(module, (noise(3, 4),))
        assert [part.training for part in module.modules()] == [mode] * 6
        assert result.report.verified
        plans.append(result.plan.to_json())
    assert plans[0] == plans[1]


# ---- in steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    """All are left at the start, the target at the end, fewer at every step."""
    left = [SCHEDULES[name](0.3, step / 5) for step in range(6)]
    assert left[0] == pytest.approx(1)
    assert left[-1] == pytest.approx(0.3)
    assert left == sorted(left, reverse=True)
    middle = {"linear": 0.65, "cubic": 0.3875, "exponential": 0.3**0.5}
    assert SCHEDULES[name](0.3, 0.5) == pytest.approx(middle[name])


def stepped(module: nn.Module, callback: Callable[[Any, int], None], **options: Any) -> graphprune.Result:
    """A quarter of the parameters in three steps, unless ``options`` say otherwise."""
    asked = {"steps": 3, "params": 0.25, "multiple": 1, "floor": 0.0, "verify": "none", "timing": False, **options}
    return prune_in_steps(module, example_inputs=(noise(2, 16),), callback=callback, **asked)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps(schedule: str) -> None:
    """The callback sees every step, each smaller than the one before, the last at the target."""
    seen: list[tuple[int, int]] = []
    module = generic(Tiny(16, 64, 8))
    result = stepped(module, lambda model, step: seen.append((step, count(model))), schedule=schedule)
    assert [step for step, _ in seen] == [0, 1, 2]
    sizes = [count(module), *(size for _, size in seen)]
    assert sizes == sorted(set(sizes), reverse=True)
    share = count(result.model) / count(module)
    assert 0.2 < share <= 0.25


def test_steps_of_keep() -> None:
    """A share of every Dim is reached however it is cut up."""
    module = generic(Tiny(16, 64, 8))
    result = stepped(module, lambda model, step: None, params=None, keep=0.5, steps=4, schedule="linear")
    assert result.model.up.weight.shape[0] == 32


def test_steps_go_on(tmp_path: Path) -> None:
    """Killed in the second step: a second call starts there and ends where an uninterrupted one does."""
    module = generic(Tiny(16, 64, 8))
    seen: list[int] = []

    def tune(model: Any, step: int) -> None:
        seen.append(step)
        with torch.no_grad():
            model.up.weight.mul_(1.5)

    def killed(model: Any, step: int) -> None:
        tune(model, step)
        if step == 1:
            raise KeyboardInterrupt

    whole = stepped(module, tune)
    with pytest.raises(KeyboardInterrupt):
        stepped(module, killed, state=tmp_path)
    went_on = stepped(module, tune, state=tmp_path)
    assert seen == [0, 1, 2, 0, 1, 1, 2]
    assert shapes(went_on.model) == shapes(whole.model)
    close(called(went_on.model, (noise(2, 16),)), called(whole.model, (noise(2, 16),)))
    done = stepped(module, tune, state=tmp_path)
    assert seen == [0, 1, 2, 0, 1, 1, 2]
    assert shapes(done.model) == shapes(whole.model)


def test_steps_of_another_request(tmp_path: Path) -> None:
    """A state folder goes on with the request it was made for, and says what is different of another."""
    module = generic(Tiny(16, 64, 8))
    stepped(module, lambda model, step: None, state=tmp_path, include=("*",))
    stepped(module, lambda model, step: None, state=tmp_path, include=["*"])
    for changed, words in (
        ({"steps": 7}, "steps was 3 and is 7"),
        ({"params": 0.4}, "params was 0.25 and is 0.4"),
        ({"params": None, "keep": 0.5}, "params was 0.25 and is None"),
        ({"include": ("u*",)}, "include was"),
    ):
        with pytest.raises(UsageError, match=words):
            stepped(module, lambda model, step: None, **{"state": tmp_path, "include": ("*",), **changed})


def test_steps_with_training_mode_left_on(tmp_path: Path) -> None:
    """A callback that leaves the model in training mode: batch norms still follow eval() after the state is read."""
    module = generic(Residual())
    options = {"example_inputs": MODULES["cnn"][1], "steps": 2, "params": 0.5, "verify": "none", "state": tmp_path}
    for _ in range(2):
        result = prune_in_steps(module, callback=lambda model, step: model.train(), **options)
        model = result.model.eval()
        before = model.get_buffer("bn.running_mean").clone()
        model(*MODULES["cnn"][1])
        assert torch.equal(model.get_buffer("bn.running_mean"), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": "sudden"}, "no schedule 'sudden'"),
        ({"steps": 0}, "0 steps"),
        ({"params": None}, "give one of keep, params, macs, bytes"),
        ({"params": 0.0}, "give one of keep, params, macs, bytes"),
        ({"params": 1.5}, "give one of keep, params, macs, bytes"),
    ],
)
def test_bad_steps(options: dict[str, Any], words: str) -> None:
    """What makes no sense is refused before anything runs."""
    with pytest.raises(UsageError, match=words):
        stepped(Tiny(16, 64, 8), lambda model, step: pytest.fail("it ran"), **options)


# ---- bad and unusual input


class Either(nn.Module):
    """Which of two layers is used depends on the numbers, and torch.export can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.wide = Tiny(4, 12, 6), nn.Linear(6, 16)
        self.one, self.two, self.head = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        wide = self.wide(self.mlp(x)).relu()
        layer = torch.cond(x.sum() > 0, lambda h: self.one(h).relu(), lambda h: self.two(h).sigmoid(), (wide,))
        found: Tensor = self.head(layer)
        return found


def test_branches_are_not_entered() -> None:
    """What flows into and out of torch.cond stays whole, with a reason; the rest is cut, whichever branch is taken."""
    module = generic(Either())
    result = half(module, (noise(2, 4),))
    assert [atom.size for atom in result.loaded.analysis.prunable] == [12, 6]
    held = {atom.size: str(atom.reason) for atom in result.loaded.analysis.frozen}
    assert "cond is frozen: its body is a graph of its own" in held[16]
    assert "cond is frozen" in held[8]
    assert result.report.verified
    a, b = (called(result.model, (sign * noise(2, 4).abs(),)) for sign in (1, -1))
    assert not torch.allclose(a[0], b[0])


def test_graph_module() -> None:
    """A module that torch.fx traced is cut, and cut in place, as any other."""
    module = torch.fx.symbolic_trace(generic(Tiny()))
    result = half(module, (noise(2, 4),))
    assert shapes(result.model) == {"up.weight": (4, 4), "up.bias": (4,), "down.weight": (3, 4), "down.bias": (3,)}
    assert result.in_place() is module
    close(called(module, (noise(5, 4),)), called(Tiny.forward.__get__(module), (noise(5, 4),)))


def test_untraceable() -> None:
    """torch's reason and the line of the user's code."""
    module = generic(Branch())
    with pytest.raises(ReadError, match=r"(?s)cannot trace Branch: .*data-dependent") as caught:
        half(module, (noise(2, 4),))
    assert "if x.sum() > 0:  # the line that an error must show" in str(caught.value)
    assert str(Path(__file__)) in str(caught.value)
    assert not any(part.training for part in module.modules())


def test_modes_survive_an_untraceable_module() -> None:
    """A module in training mode stays in it though it cannot be traced."""
    module = Branch().train()
    module.up.eval()
    with pytest.raises(ReadError):
        half(module, (noise(2, 4),))
    assert (module.training, module.up.training, module.down.training) == (True, False, True)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "traced with example inputs"),
        ((noise(2, 5),), "cannot trace Tiny"),
        ((noise(2, 4), 1), "cannot trace Tiny"),
        ({"nope": noise(2, 4)}, "cannot trace Tiny"),
        ("text", "cannot trace Tiny"),
    ],
)
def test_wrong_example_inputs(inputs: Any, words: str) -> None:
    """Missing, of a wrong shape, too many, misnamed, not tensors."""
    with pytest.raises(ReadError, match=words) as caught:
        half(generic(Tiny()), inputs)
    assert "example" in caught.value.hint


def test_no_batch_size_to_specialise() -> None:
    """Dynamic shapes for an axis that is not there."""
    with pytest.raises(ReadError, match="cannot trace Tiny"):
        half(generic(Tiny()), (noise(2, 4),), dynamic_shapes=({5: ANY},))


def test_weights_that_are_not_there() -> None:
    """A module on the meta device has shapes and no numbers."""
    module, x = Tiny().to("meta").eval(), (noise(2, 4).to("meta"),)
    with pytest.raises(ReadError, match=r"'up.weight' is on the meta device"):
        half(module, x)


def test_quantised_before_it_is_cut() -> None:
    """Packed weights cannot be traced: the error says what to do instead, and names no line of Python's own."""
    quantised: Any = torch.ao.quantization
    module = quantised.quantize_dynamic(generic(Tiny()), {nn.Linear})
    with pytest.raises(ReadError, match="quantise after pruning") as caught:
        half(module, (noise(2, 4),))
    assert "contextlib" not in str(caught.value)


def test_fake_quantisation_stays_whole() -> None:
    """An op without a rule freezes what it touches, with its name as the reason; the rest is cut."""

    class Fake(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            """The outputs, rounded on the way."""
            rounded = torch.fake_quantize_per_tensor_affine(self.up(x), 0.1, 0, -128, 127)
            found: Tensor = self.down(rounded)
            return found

    result = half(nn.Sequential(generic(Tiny(4, 8, 4)), generic(Fake())), (noise(2, 4),))
    assert [cut.size for cut in result.plan.cuts] == [8, 4]
    assert any("fake_quantize_per_tensor_affine" in str(atom.reason) for atom in result.loaded.analysis.frozen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """The dtype stays, the proof passes, also in place."""
    module = generic(Tiny()).to(dtype)
    inputs = (noise(2, 4).to(dtype),)
    result = half(module, inputs)
    assert result.report.verified
    expected = called(result.model, inputs)
    result.in_place()
    for made in (result.model, module):
        assert {parameter.dtype for parameter in made.parameters()} == {dtype}
        assert shapes(made)["up.weight"] == (4, 4)
        torch.testing.assert_close(called(made, inputs), expected, rtol=0, atol=0)


def test_tied_parameters_in_the_traced_module() -> None:
    """One parameter under two names, before and after."""
    result = half(generic(Tied()), (IDS,), allow=("all",))
    assert result.model.embed.weight.shape == (WORDS, 4)
    assert result.model.embed.weight is result.model.head.weight


@pytest.mark.parametrize(
    ("wrap", "hidden"),
    [
        (parametrizations.weight_norm, 4),
        (parametrizations.spectral_norm, 4),
        (parametrizations.orthogonal, 8),
        (torch.nn.utils.weight_norm, 4),
        (torch.nn.utils.spectral_norm, 4),
    ],
    ids=["weight", "spectral", "orthogonal", "old-weight", "old-spectral"],
)
def test_parametrisations(wrap: Callable[[nn.Module], nn.Module], hidden: int) -> None:
    """Cut and proved, or frozen; never wrong."""
    torch.manual_seed(0)
    module: Any = Tiny().eval()
    module.up, module.down = (wrap(part) for part in (module.up, module.down))
    x = (noise(2, 4),)
    dense = called(module, x)
    result = half(module, x)
    assert result.report.verified
    assert result.model.up.bias.shape == (hidden,)
    if hidden == 8:
        close(called(result.model, x), dense)
    result.in_place()
    assert is_parametrized(module.up) == ("parametrizations" in dir(module.up))
    close(called(module, x), called(result.model, x))
