"""Where the time goes in ONNX Runtime: its profiler's kernels, under the names of the nodes that they stand for."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime

from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.runtime import run
from graphprune.graph import Array, Graph
from graphprune.latency import MEASURED, WARM, Kernel, Shapes, Timing, in_a_row, low

Feeds = Mapping[str, Array]
_BLOCKED = "_nchwc"
"""What the runtime appends to a value to name the kernel that makes it in blocks of channels."""
_KERNEL = "_kernel_time"


def version() -> str:
    """What runs models, with its version."""
    return f"ONNX Runtime {onnxruntime.__version__}"


def timings(models: Sequence[tuple[OnnxModel, Feeds]], *, threads: int = 1, rounds: int = 10) -> list[Timing]:
    """What each model takes on its inputs, measured by turns so that noise hits all alike."""
    with TemporaryDirectory() as folder:
        plain = [run(model, threads=threads) for model, _ in models]
        watched = [run(model, threads=threads, profile=f"{folder}/{i}") for i, (model, _) in enumerate(models)]
        spent: list[list[float]] = [[] for _ in models]
        for _ in range(rounds):
            for i, (_, feeds) in enumerate(models):
                spent[i] += in_a_row(partial(plain[i], feeds), threads)
                for _ in range(WARM + MEASURED):
                    watched[i](feeds)
        logs = [json.loads(Path(runner.session.end_profiling()).read_text(encoding="utf-8")) for runner in watched]
    graph = models[0][0].graph  # a cut keeps the names of nodes
    return [Timing(low(times), kernels(log, graph)) for times, log in zip(spent, logs, strict=True)]


def kernels(log: list[dict[str, Any]], graph: Graph) -> dict[str, Kernel]:
    """The kernels of a profile by name, in order; those that change layouts are called by the one that they precede."""
    starts = [event["ts"] for event in log if event["name"] == "model_run"]
    events = sorted((e for e in log if e["name"].endswith(_KERNEL)), key=lambda e: (e["ts"], -e["dur"]))
    found: dict[str, tuple[Kernel, list[float]]] = {}
    own = _own(events)
    for number, name, i in _named(events, starts, graph):
        if number % (WARM + MEASURED) >= WARM:
            args = events[i]["args"]
            found.setdefault(name, (Kernel(args["op_name"], _shapes(args), 0.0), []))[1].append(own[i])
    return {name: kernel._replace(seconds=low(times)) for name, (kernel, times) in found.items()}


def _named(events: Sequence[Mapping[str, Any]], starts: list[int], graph: Graph) -> Iterator[tuple[int, str, int]]:
    """Number of the run, name and place of each kernel; one that runs several times is told apart by a number."""
    seen: dict[tuple[int, str], int] = {}
    waiting: list[int] = []
    for i, event in enumerate(events):
        if event["args"]["op_name"].startswith("Reorder"):
            waiting.append(i)
            continue
        number = bisect_right(starts, event["ts"]) - 1
        name = _node(event["name"].removesuffix(_KERNEL), event["args"]["op_name"], graph)
        again = seen[number, name] = seen.get((number, name), 0) + 1
        name = name if again == 1 else f"{name}#{again}"
        yield from ((number, f"{events[j]['args']['op_name']} before {name}", j) for j in waiting)
        waiting.clear()
        yield number, name, i


def _own(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of each event without those of the events inside it: bodies run inside their node."""
    own = [event["dur"] * 1e-6 for event in events]
    open_: list[int] = []
    for i, event in enumerate(events):
        while open_ and events[open_[-1]]["ts"] + events[open_[-1]]["dur"] < event["ts"] + event["dur"]:
            open_.pop()
        if open_ and events[open_[-1]]["args"]["op_name"] in ("If", "Loop", "Scan"):
            own[open_[-1]] = max(0.0, own[open_[-1]] - own[i])
        open_.append(i)
    return own


def _node(name: str, op: str, graph: Graph) -> str:
    """The node that a kernel is called after: for blocked ones, which are called after a value, the one behind it."""
    node = graph.producers.get(name.removesuffix(_BLOCKED)) if name.endswith(_BLOCKED) else None
    while node is not None and node.kind != op:
        node = graph.producers.get(node.inputs[0]) if node.inputs else None
    return name.removesuffix(_BLOCKED) if node is None else node.name or node.label


def _shapes(args: Mapping[str, Any]) -> Shapes:
    return tuple(_tensors(args.get("input_type_shape", ()))) + tuple(_tensors(args.get("output_type_shape", ())))


def _tensors(described: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, ...]]:
    for one in described:
        for shape in one.values():
            yield tuple(shape) if isinstance(shape, list) else ()
