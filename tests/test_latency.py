"""Latency as a cost: what is learnt from measurements is right, by clocks of the tests' own. None asserts a time."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.allocate import ALLOCATORS, edges
from graphprune.analysis import analyse
from graphprune.budget import Request
from graphprune.cost import CostModel
from graphprune.dims import Dim, counts
from graphprune.errors import BudgetError, ReadError, UsageError
from graphprune.formats import onnx as format_
from graphprune.formats.onnx.timing import kernels
from graphprune.latency import RUNTIME, STRUCTURE, Kernel, LatencyModel, Profile, Run, Timing, held_out
from graphprune.loaded import Loaded
from graphprune.profile import at_sizes, drawn, take_profile
from models import digits
from tests.build import Net
from tests.command import command

Cost = Callable[[int, int], float]
OVERHEAD = 5e-6
SIDE = 4


def up(size: int, step: int) -> int:
    """``size`` rounded up to a multiple of ``step``."""
    return -(-size // step) * step


def plain(inputs: int, outputs: int) -> float:
    """A kernel that is bound by memory and by arithmetic."""
    return 1e-6 + 1e-9 * (inputs + outputs) + 2e-9 * inputs * outputs


def blocks(inputs: int, outputs: int) -> float:
    """A kernel that computes 16 outputs at once."""
    return plain(inputs, up(outputs, 16))


def fussy(inputs: int, outputs: int) -> float:
    """A kernel that has a fast way for multiples of 4 only."""
    return plain(inputs, outputs) * (3 if inputs % 4 or outputs % 4 else 1)


def picky(inputs: int, outputs: int) -> float:
    """A kernel that has a fast way for multiples of 4 inputs only, whatever it gives."""
    return plain(inputs, outputs) * (1 if inputs % 4 else 0.4)


@cache
def network(layers: int = 4) -> Loaded:
    """Convolutions of 96 channels each, one after the other, and a pool."""
    net = Net()
    value, inputs = net.input(1, 8, SIDE, SIDE), 8
    for _ in range(layers):
        value = net.op("Relu", net.op("Conv", value, net.weight(96, inputs, 1, 1, fan=inputs)))
        inputs = 96
    net.output(net.op("GlobalAveragePool", net.op("Conv", value, net.weight(5, 96, 1, 1, fan=96))))
    return graphprune.load(net.model())


def clock(cost: Cost, still: float = 2e-5, pace: Callable[[], float] = lambda: 1.0) -> Any:
    """A measurement: ``cost`` for each convolution and ``still`` for the pool, all of it ``pace`` times as slow."""

    def measure(models: Sequence[tuple[Any, Any]], *, threads: int, rounds: int) -> list[Timing]:
        slow = pace()
        return [_timed(model, cost, still, slow) for model, _ in models]

    return measure


def _timed(model: Any, cost: Cost, still: float, slow: float) -> Timing:
    found = {}
    weights = {tensor.name: tensor.dims for tensor in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        if node.op_type == "Conv":
            outputs, inputs = weights[node.input[1]][:2]
            shapes = (1, inputs, SIDE, SIDE), (1, outputs, SIDE, SIDE)
            found[node.name] = Kernel("Conv", shapes, slow * cost(inputs, outputs))
    found["pool"] = Kernel("GlobalAveragePool", ((1, 5, SIDE, SIDE), (1, 5, 1, 1)), slow * still)
    return Timing(slow * (OVERHEAD + 1.1 * sum(kernel.seconds for kernel in found.values()) / slow), found)


def measured(cost: Cost = plain, runs: int = 24, **how: Any) -> Profile:
    """The profile of the network on such a clock."""
    return take_profile(network(), runs=runs, measure=clock(cost, **how))


def truth(cost: Cost, sizes: Mapping[Dim, int], still: float = 2e-5) -> float:
    """What the clock says of the network at ``sizes``."""
    loaded = network()
    chosen = {dim: np.arange(size) for dim, size in sizes.items()}
    cut = loaded.format.apply(loaded.model, loaded.analysis, chosen)
    return _timed(cut, cost, still, 1.0).whole


def at(*sizes: int) -> dict[Dim, int]:
    """Sizes of the network's Dims, in order."""
    return {atom.dim: size for atom, size in zip(network().analysis.prunable, sizes, strict=True)}


@pytest.mark.parametrize("cost", [plain, blocks])
@pytest.mark.parametrize("sizes", [(96, 96, 96, 40), (88, 24, 56, 72), (16, 16, 16, 16), (8, 96, 8, 96)])
def test_between_what_was_measured(cost: Cost, sizes: tuple[int, ...]) -> None:
    found = LatencyModel(network().analysis, measured(cost))(at(*sizes))
    assert found == pytest.approx(truth(cost, at(*sizes)), rel=0.02)


def test_multiples_are_learnt() -> None:
    latency = LatencyModel(network().analysis, measured(blocks))
    for sizes in ((33, 47, 65, 79), (1, 95, 18, 50)):
        assert latency(at(*sizes)) == pytest.approx(truth(blocks, at(*sizes)), rel=0.005)


def test_a_slower_way_is_learnt() -> None:
    latency = LatencyModel(network().analysis, measured(fussy, runs=48))
    assert latency(at(37, 37, 37, 37)) > 1.5 * latency(at(40, 40, 40, 40))
    assert latency(at(37, 37, 37, 37)) == pytest.approx(truth(fussy, at(37, 37, 37, 37)), rel=0.05)


@pytest.mark.parametrize("sizes", [(40, 40, 40, 37), (37, 40, 40, 40), (40, 37, 40, 40)])
def test_which_size_leads_another_way_is_learnt(sizes: tuple[int, ...]) -> None:
    latency = LatencyModel(network().analysis, measured(picky, runs=48))
    assert latency(at(*sizes)) == pytest.approx(truth(picky, at(*sizes)), rel=0.05)


def test_kernels_that_are_not_always_there_are_learnt() -> None:
    """Layouts change before a convolution of whole blocks, and only there; they take as long as there are channels."""

    def timed(model: Any) -> Timing:
        whole, found = _timed(model, plain, 2e-5, 1.0)
        for name, conv in list(found.items()):
            inputs = conv.shapes[0][1]
            if conv.op == "Conv" and inputs % 16 == 0:
                shape = (1, inputs, SIDE, SIDE)
                found[f"reorder before {name}"] = Kernel("ReorderInput", (shape, shape), 1e-6 * inputs)
                whole += 1e-6 * inputs
        return Timing(whole, found)

    def measure(models: Sequence[tuple[Any, Any]], *, threads: int, rounds: int) -> list[Timing]:
        return [timed(model) for model, _ in models]

    loaded = network()
    latency = LatencyModel(loaded.analysis, take_profile(loaded, runs=48, measure=measure))
    for sizes in ((48, 48, 48, 48), (16, 80, 32, 64), (40, 40, 40, 40)):
        chosen = {dim: np.arange(size) for dim, size in at(*sizes).items()}
        expected = timed(loaded.format.apply(loaded.model, loaded.analysis, chosen)).whole
        assert latency(at(*sizes)) == pytest.approx(expected, rel=0.03)


def test_dense_is_what_was_measured() -> None:
    made = measured(blocks)
    latency = LatencyModel(network().analysis, made)
    assert latency({}) == made.dense.whole == latency(at(96, 96, 96, 96))


def test_what_no_cut_touches_keeps_its_time() -> None:
    little, much = (LatencyModel(network().analysis, measured(still=still)) for still in (1e-5, 1e-3))
    for sizes in (at(96, 96, 96, 96), at(8, 8, 8, 8)):
        assert much(sizes) - little(sizes) == pytest.approx(1.1 * (1e-3 - 1e-5), rel=0.01)


def test_a_machine_that_slows_down_changes_nothing() -> None:
    paces = iter(np.tile([1.0, 2.0, 1.3, 0.7], 20))
    slowed = measured(pace=lambda: float(next(paces)))
    for run, same in zip(slowed.runs, measured().runs, strict=True):
        assert run.timing.whole == pytest.approx(same.timing.whole, rel=1e-2)
        for name, kernel in run.timing.kernels.items():
            assert kernel.seconds == pytest.approx(same.timing.kernels[name].seconds, rel=1e-2)


def test_runs_predict_one_another() -> None:
    assert max(map(abs, held_out(network().analysis, measured()))) < 0.02
    nonsense = iter(np.random.default_rng(0).uniform(1, 9, 1000))
    wild = measured(lambda inputs, outputs: 1e-4 * float(next(nonsense)))
    assert max(map(abs, held_out(network().analysis, wild))) > 0.05


def test_kernels_that_merge_and_part_are_counted() -> None:
    """A runtime may run some of the cut model otherwise: no second of it is lost."""
    made = measured(runs=1)
    *_, before, last = made.dense.kernels
    strange = Kernel("Reorder", ((1, 2),), 7e-6)
    cut = {name: kernel for name, kernel in made.dense.kernels.items() if name not in (before, last)}
    cut |= {"new": strange, last: made.dense.kernels[last], "later": strange}

    def measure(models: Sequence[Any], *, threads: int, rounds: int) -> list[Timing]:
        return [made.dense, Timing(made.dense.whole, cut)][: len(models)]

    (run,) = take_profile(network(), runs=1, measure=measure).runs
    assert {name: kernel.seconds for name, kernel in run.timing.kernels.items()} == pytest.approx(
        {before: 0.0, last: made.dense.kernels[last].seconds + 1.4e-5}
    )


def test_a_profile_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    take_profile(network(), runs=3, measure=clock(plain), keep=lambda made: _keep(path, made))
    calls: list[int] = []

    def measure(models: Sequence[Any], *, threads: int, rounds: int) -> list[Timing]:
        calls.append(len(models))
        return list(clock(plain)(models, threads=threads, rounds=rounds))

    again = take_profile(network(), runs=5, known=Profile.load(path), measure=measure)
    assert calls == [2, 2]
    assert again == measured(runs=5)


def _keep(path: Path, made: Profile) -> None:
    path.write_text(made.to_json())


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    made = measured(runs=2)
    (tmp_path / "cost.json").write_text(made.to_json())
    assert Profile.load(tmp_path / "cost.json") == made


def test_sizes_are_those_of_plans() -> None:
    atoms = network().analysis.prunable
    for number in range(8):
        sizes = drawn(atoms, number)
        assert sizes == drawn(atoms, number) != drawn(atoms, number + 1)
        assert all(1 <= sizes[atom.name] <= atom.size for atom in atoms)
        assert number % 4 == 3 or all(size % 8 == 0 for size in sizes.values())
    assert any(size % 4 for size in drawn(atoms, 3).values())


@pytest.mark.parametrize(
    ("name", "value"),
    [("processor", "an abacus"), ("runtime", "torch"), ("version of the runtime", "0.1"), ("number of threads", 7)],
)
def test_measurements_of_two_machines_do_not_mix(name: str, value: object) -> None:
    made = measured(runs=1)
    other = replace(made, setting={**made.setting, name: value})
    with pytest.raises(UsageError, match=f"of another {name}: {value}, and this is .*\n.*make them"):
        take_profile(network(), runs=2, known=other, measure=clock(plain))
    assert LatencyModel(network().analysis, other)({}) == made.dense.whole  # but of use elsewhere


def test_measurements_of_another_model_are_refused() -> None:
    with pytest.raises(UsageError, match=f"of another {STRUCTURE}"):
        LatencyModel(network(3).analysis, measured(runs=1))


def test_a_profile_without_runs_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no run of a cut model\n.*graphprune profile"):
        LatencyModel(network().analysis, replace(measured(runs=1), runs=[]))


def test_a_cut_that_nobody_measured_is_refused() -> None:
    made = measured(runs=8)
    dim = network().analysis.prunable[0].dim
    name = network().analysis.prunable[0].name
    runs = [Run({n: s for n, s in run.sizes.items() if n != name}, run.timing) for run in made.runs]
    latency = LatencyModel(network().analysis, replace(made, runs=runs))
    assert latency({dim: 96}) == made.dense.whole
    with pytest.raises(UsageError, match=r"the Dim '.*' is cut, and no measured run cut it\n.*--allow"):
        latency({dim: 95})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nonsense", '{"graphprune_profile": 1}', '{"graphprune_profile": 1, "runs": 3}']
)
def test_what_is_no_profile_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(ReadError, match=r"holds no measurements of graphprune profile\n.*graphprune profile MODEL"):
        Profile.load(tmp_path / "cost.json")


def test_other_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text('{"graphprune_profile": 99}')
    with pytest.raises(ReadError, match="of another version"):
        Profile.load(tmp_path / "cost.json")
    with pytest.raises(ReadError, match=r"cannot read .*: No such file"):
        Profile.load(tmp_path / "none.json")


def _calls(layers: int) -> int:
    """Functions of graphprune called on the way from measurements to a prediction."""
    loaded, count = network(layers), 0
    made = take_profile(loaded, runs=8, measure=clock(plain))

    def see(frame: Any, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and "graphprune" in frame.f_code.co_filename

    sys.setprofile(see)
    try:
        LatencyModel(analyse(loaded.model.graph), made)
    finally:
        sys.setprofile(None)
    return count


def test_learning_grows_with_the_model_and_no_faster() -> None:
    few, more, most = (_calls(layers) for layers in (10, 20, 40))
    assert most - more < 2.2 * (more - few)


def _event(name: str, at: int, spent: int, op: str = "", **args: Any) -> dict[str, Any]:
    return {"name": name, "ts": at, "dur": spent, "args": {"op_name": op, **args}}


def test_kernels_are_told_apart_in_a_log() -> None:
    """Blocked kernels are called by their nodes, layout changes by what follows, bodies by themselves."""
    net = Net()
    conv = net.op("Conv", net.input(1, 4, 4, 4), net.weight(4, 4, 1, 1), name="conv")
    relu = net.op("Relu", conv, name="relu")
    net.output(net.op("Flatten", relu))
    graph = graphprune.load(net.model()).analysis.graph
    log, shape = [], [{"float": [1, 4]}]
    for run, spent in enumerate((100, 10, 12)):  # the first finds cold caches
        start = 1000 * run
        log += [
            _event("model_run", start, 900),
            _event("ReorderInput_kernel_time", start + 1, 3, "ReorderInput"),
            _event(
                f"{relu}_nchwc_kernel_time", start + 5, spent, "Conv", input_type_shape=shape, output_type_shape=shape
            ),
            _event("loop_kernel_time", start + 200, 100, "Loop"),
            _event("inside_kernel_time", start + 210, 20, "Add"),
            _event("inside_kernel_time", start + 240, 30, "Add"),
        ]
    found = kernels(log, graph)
    times = {name: round(kernel.seconds * 1e6) for name, kernel in found.items()}
    assert times == {"ReorderInput before conv": 3, "conv": 10, "loop": 50, "inside": 20, "inside#2": 30}
    assert [*times][:2] == ["ReorderInput before conv", "conv"]
    assert found["conv"][:2] == ("Conv", ((1, 4), (1, 4)))


def test_the_runtime_is_watched() -> None:
    loaded = graphprune.load(digits.PATH)
    feeds = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))[0][1]
    (timing,) = loaded.format.timings([(loaded.model, feeds)], rounds=2)
    assert timing.whole > 0
    names = {name.rpartition(" before ")[2] for name in timing.kernels}
    assert names <= {node.name for node in loaded.analysis.graph.nodes}
    convolutions = [name for name, kernel in timing.kernels.items() if kernel.op.endswith("Conv")]
    assert len(convolutions) == sum(node.op == "conv" for node in loaded.analysis.graph.nodes)


@pytest.mark.filterwarnings("ignore")  # tracing
def test_torch_is_watched() -> None:
    torch = pytest.importorskip("torch")
    layers = torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    loaded = graphprune.load(torch.nn.Sequential(*layers), example_inputs=(torch.randn(2, 8),))
    made = take_profile(loaded, runs=4, seconds=0.01)
    assert {kernel.op for kernel in made.dense.kernels.values()} == {"aten.linear.default", "aten.relu.default"}
    assert all(len(run.timing.kernels) == 3 for run in made.runs)
    assert LatencyModel(loaded.analysis, made)({}) == made.dense.whole


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    assert "2 runs cut" in command("profile", digits.PATH, "-o", path, "--runs", 2).done().out
    assert "3 runs cut" in command("profile", digits.PATH, "-o", path, "--runs", 3).done().out
    assert len(json.loads(path.read_text())["runs"]) == 3
    command("profile", digits.PATH, "-o", path, "--threads", 2).refused(
        2, "another number of threads: 1, and this is 2"
    )
    command("profile", digits.PATH, "-o", path, "--sizes", "batch").refused(2, "--sizes batch is no name and size")
    command("profile", digits.PATH, "-o", path, "--sizes", "width=3").refused(
        2, "no axis of an input is called 'width'"
    )
    command("profile", digits.PATH, "-o", digits.PATH).refused(2, "is the input itself")


def test_sizes_of_inputs_can_be_chosen() -> None:
    loaded = at_sizes(graphprune.load(digits.PATH), {"batch": 5})
    (_, feeds), *_ = format_.trials(loaded.model, format_.run(loaded.model))
    assert [value.shape[0] for value in feeds.values()] == [5]


def test_a_model_that_stays_whole_is_not_measured() -> None:
    net = Net()
    net.output(net.op("Relu", net.input(1, 4)))
    with pytest.raises(UsageError, match="no Dim of the model may be cut"):
        take_profile(graphprune.load(net.model()))


# Budgets of it.


def tiles(inputs: int, outputs: int) -> float:
    """A kernel that computes 16 inputs and 16 outputs at once."""
    return plain(up(inputs, 16), up(outputs, 16))


def losses(loaded: Loaded, seed: int = 0) -> dict[Dim, Any]:
    """What positions are a loss of, at random."""
    random = np.random.default_rng(seed)
    return {atom.dim: random.exponential(size=atom.size) for atom in loaded.analysis.prunable}


def cut(made: Profile, **request: Any) -> dict[Dim, int]:
    """How many positions of each Dim of the network stay by a request, those that lose least."""
    loaded, scores = network(), losses(network())
    latency = LatencyModel(loaded.analysis, made)
    how: dict[str, Any] = {"latency": latency, "tried": lambda kept: _lost(counts(kept), scores)}
    plan = loaded.plan(Request(**{"tries": 8, **request}), "obs", scores=scores, **how)
    sizes = {atom.dim: atom.size for atom in loaded.analysis.prunable} | counts(plan.chosen(loaded.analysis))
    assert plan.predicted == (made.dense.whole, latency(sizes))
    return sizes


def _lost(sizes: Mapping[Dim, int], scores: Mapping[Dim, Any]) -> float:
    return sum(float(np.sort(scores[dim])[: dim.extent - size].sum()) for dim, size in sizes.items())


@pytest.mark.parametrize("cost", [plain, tiles, fussy])
@pytest.mark.parametrize("allocator", sorted(ALLOCATORS))
def test_a_latency_is_met(allocator: str, cost: Cost) -> None:
    made = measured(cost)
    dense = made.dense.whole
    for limit, share in ((0.7, 0.7), ("40%", 0.4), (f"{dense * 6e5}us", 0.6), (f"{dense * 800}ms", 0.8)):
        sizes = cut(made, latency=limit, allocator=allocator, multiple=1)
        assert 0.6 * share * dense < truth(cost, sizes) < 1.02 * share * dense


@pytest.mark.parametrize("allocator", sorted(ALLOCATORS))
@pytest.mark.parametrize(("cost", "step"), [(tiles, 16), (fussy, 4)])
def test_sizes_are_those_that_a_kernel_likes(cost: Cost, step: int, allocator: str) -> None:
    made = measured(cost, runs=48)
    sizes = cut(made, latency=0.6, allocator=allocator, multiple=1)
    assert all(size % step == 0 for size in sizes.values())
    assert any(size % step for size in cut(made, macs=0.6, allocator=allocator, multiple=1).values())


def bound_by_memory() -> Profile:
    """The network with a kernel behind its second convolution that takes most of the time, and no arithmetic."""

    def measure(models: Sequence[tuple[Any, Any]], *, threads: int, rounds: int) -> list[Timing]:
        found = clock(plain)(models, threads=threads, rounds=rounds)
        for timing in found:
            shape = [*timing.kernels.values()][1].shapes[1]
            timing.kernels["wait"] = Kernel("Softmax", (shape, shape), 1e-6 * shape[1])
        return [timing._replace(whole=timing.whole + timing.kernels["wait"].seconds) for timing in found]

    return take_profile(network(), measure=measure)


@pytest.mark.parametrize("allocator", ["global", "guarded", "knapsack", "dynamic"])
def test_what_takes_the_time_is_cut(allocator: str) -> None:
    made, scores = bound_by_memory(), losses(network())
    latency, slow = LatencyModel(network().analysis, made), network().analysis.prunable[1].dim
    aware = cut(made, latency=0.6, allocator=allocator, multiple=1)
    assert aware[slow] == min(aware.values())
    plans = (cut(made, macs=share / 50, allocator=allocator, multiple=1) for share in range(49, 1, -1))
    by_macs = next(sizes for sizes in plans if latency(sizes) <= 0.6 * made.dense.whole)
    assert aware[slow] < by_macs[slow]
    assert _lost(aware, scores) < 0.7 * _lost(by_macs, scores)


def test_time_is_shared_out_by_an_allocator_that_sees_its_steps() -> None:
    by = {name: cut(measured(tiles), latency=0.6, allocator=name) for name in ("dynamic", "global", None)}
    assert by[None] == by["dynamic"] != by["global"]
    scores = losses(network())
    assert _lost(by["dynamic"], scores) < _lost(by["global"], scores)


def test_other_limits_hold_beside_it() -> None:
    made, macs = measured(tiles), CostModel(network().analysis).macs
    for time, share in ((0.8, 0.3), (0.5, 0.9)):
        sizes = cut(made, latency=time, macs=share, multiple=1)
        assert truth(tiles, sizes) < 1.02 * time * made.dense.whole
        assert macs(sizes) <= share * macs({})


def test_edges_of_steps() -> None:
    """Where more costs no more, more is all that is offered; a Dim that frees nothing stays whole."""
    smooth, stepped, slower, flat = (Dim(12) for _ in range(4))
    offers = {dim: np.arange(1, 13) for dim in (smooth, stepped, slower, flat)}

    def cost(sizes: Mapping[Dim, int]) -> float:
        of = {dim: sizes.get(dim, 12) for dim in offers}
        return of[smooth] + up(of[stepped], 4) + of[slower] * (2 if of[slower] % 3 else 1)

    found = {dim: own.tolist() for dim, own in edges(offers, cost).items()}
    assert found == {smooth: [*range(1, 13)], stepped: [4, 8, 12], slower: [1, 3, 6, 9, 12], flat: [12]}


@pytest.mark.parametrize("words", ["5", 5, "5M", "5 apples", "ms", "half"])
def test_a_time_has_a_unit(words: Any) -> None:
    with pytest.raises(UsageError, match=r"is no share and no time\n.*5ms or 800us"):
        Request(latency=words)


def test_a_time_is_no_count() -> None:
    assert Request(latency="5ms").targets == {"latency": 5e6} == Request(latency="0.005 s").targets
    assert Request(latency="20µs").targets == {"latency": 2e4} == Request(latency="20us").targets
    with pytest.raises(UsageError, match="'5ms' is no number"):
        Request(macs="5ms")


def test_a_latency_that_cannot_be() -> None:
    made = measured(tiles)
    least = truth(tiles, at(16, 16, 16, 16))
    words = rf"latency cannot be brought to 1.0% \(.* of {made.dense.whole * 1e3:.4g} ms\): the least reachable is "
    with pytest.raises(BudgetError, match=words) as refused:
        cut(made, latency=0.01, multiple=1)
    told = float(refused.value.what.split("the least reachable is ")[1].split("(")[1].split(" ms")[0])
    assert told == pytest.approx(least * 1e3, rel=0.01)
    with pytest.raises(UsageError, match="give keep, or one or several of params, macs, bytes, activations, latency"):
        Request(keep=0.5, latency=0.5)


def test_a_latency_needs_measurements() -> None:
    words = r"no measurements that say .*\n.*graphprune profile MODEL -o cost.json, and give --profile"
    with pytest.raises(UsageError, match=words):
        network().plan(Request(latency=0.5))
    for options in ({"latency": 0.5}, {"metric": lambda model: 1.0, "shrink": "latency"}):
        with pytest.raises(UsageError, match=words):
            graphprune.prune(digits.PATH, score="what is looked up later", **options)
    with pytest.raises(UsageError, match=f"of another {STRUCTURE}"):
        graphprune.prune(digits.PATH, latency=0.5, profile=measured(runs=1), calib="what is read later")


@cache
def of_digits() -> Profile:
    """The digits network on a clock of tiles."""
    return take_profile(graphprune.load(digits.PATH), runs=12, measure=clock(tiles, still=1e-6))


def test_the_smallest_latency_that_holds() -> None:
    how: dict[str, Any] = {"verify": "none", "multiple": 1, "profile": of_digits(), "shrink": "latency"}

    def weights(model: Any) -> float:
        return float(sum(np.prod(tensor.dims) for tensor in model.graph.initializer))

    result = graphprune.prune(digits.PATH, metric=weights, drop=0.3, **how)
    dense, small = result.report.predicted
    assert small < 0.9 * dense
    assert result.curve is not None
    seconds = [point.latency or 0.0 for point in result.curve.sorted()]
    assert seconds[0] == dense == of_digits().dense.whole
    assert seconds == sorted(seconds, reverse=True)
    assert small == min(point.latency or 0.0 for point in result.curve.points if point.held)
    first = next(csv.DictReader(io.StringIO(result.curve.to_csv())))
    assert first["latency"] == str(dense)
    capped = graphprune.prune(digits.PATH, metric=weights, drop=0.9, latency=f"{dense * 6e5}us", **how)
    assert capped.report.predicted[1] <= 0.6 * dense


def test_the_command_line_takes_a_latency(tmp_path: Path) -> None:
    names = "cost.json", "other.json", "torch.json", "plan.json", "o.onnx"
    cost, other, elsewhere, plan, out = (tmp_path / name for name in names)
    _keep(cost, of_digits())
    _keep(other, measured(runs=1))
    _keep(elsewhere, replace(of_digits(), setting={**of_digits().setting, RUNTIME: "torch"}))
    wanted = digits.PATH, "--latency", 0.7, "--profile", cost
    report = command("prune", *wanted, "-o", out, "--json").done().json
    dense, small = predicted = report["predicted"]
    assert dense == of_digits().dense.whole
    assert small <= 0.7 * dense
    assert any("predicted by measurements (processor: " in note for note in report["notes"])
    command("plan", *wanted, "-o", plan).done()
    assert json.loads(plan.read_text())["predicted"] == predicted
    assert command("apply", digits.PATH, plan, "-o", out, "--json").done().json["predicted"] == predicted
    assert "latency, predicted" in command("prune", digits.PATH, "--keep", 0.5, "--profile", cost, "-o", out).done().out

    prune = "prune", digits.PATH, "-o", tmp_path / "none.onnx"
    command(*prune, "--latency", 0.7).refused(2, "no measurements", "graphprune profile MODEL -o cost.json")
    command(*prune, "--latency", "1us", "--profile", cost).refused(4, "latency cannot be brought to", "ms of")
    command(*prune, "--latency", 7, "--profile", cost).refused(2, "'7' is no share and no time")
    command(*prune, "--latency", 0.7, "--profile", other).refused(2, f"of another {STRUCTURE}")
    command(*prune, "--latency", 0.7, "--profile", elsewhere).refused(2, "another runtime: torch, and this is ONNX Ru")
    command(*prune, "--latency", 0.7, "--profile", plan).refused(3, "holds no measurements")
    command(*prune, "--latency", 0.7, "--profile", tmp_path / "no.json").refused(3, "cannot read")
    command(*prune, "--latency", 0.7, "--keep", 0.5, "--profile", cost).refused(2, "give keep, or one or several of")
    command("prune", *wanted, "-o", cost).refused(2, "is the input itself, or a file that this run reads")
    for change, words in ((lambda name: f"no-{name}", "does not have"), (lambda name: None, "no measured run cut it")):
        _keep(other, _with_first(of_digits(), change))
        command(*prune, "--latency", 0.7, "--profile", other).refused(2, words)
    assert not (tmp_path / "none.onnx").exists()


def _with_first(made: Profile, change: Callable[[str], str | None]) -> Profile:
    """``made`` with the first Dim of each run under another name, or without."""
    first = next(iter(made.runs[0].sizes))
    named = [{change(n) if n == first else n: s for n, s in run.sizes.items()} for run in made.runs]
    sizes = [{name: size for name, size in own.items() if name is not None} for own in named]
    return replace(made, runs=[run._replace(sizes=own) for run, own in zip(made.runs, sizes, strict=True)])
