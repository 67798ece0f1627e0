"""How long it takes to find the Dims of a model that has been read, and how that grows with depth.

    python -m tools.bench_analysis --runs 15

SmolLM2 (30 layers, some 2,000 nodes), then the same graph with 30 and with 120 layers: four times the nodes should
take four times as long. Everything runs on one thread, so the processor time is what a quiet machine would show; on a
busy one the clock shows more.
"""

import argparse
import cProfile
import pstats
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from graphprune.analysis import analyse
from graphprune.formats import onnx as onnx_format
from graphprune.graph import Graph
from models import real

SHALLOW, DEEP = 30, 120


def measure(graph: Graph, runs: int) -> tuple[float, float]:
    """Median milliseconds of `runs` analyses, each of a Graph with nothing cached: of processor, and by the clock."""
    times = []
    for _ in range(runs + 1):
        fresh = replace(graph)
        processor, clock = time.process_time(), time.perf_counter()
        analyse(fresh)
        times.append((time.process_time() - processor, time.perf_counter() - clock))
    processor, clock = (1000 * np.median(times[1:], axis=0)).tolist()
    return processor, clock


def profile(graph: Graph, lines: int) -> None:
    """Print the functions that take the most time of their own."""
    profiler = cProfile.Profile()
    profiler.runcall(analyse, replace(graph))
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(lines)


def _read(path: Path) -> Graph:
    graph: Graph = onnx_format.read(path).graph
    return graph


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the analysis.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--model", type=Path, help="measure this ONNX file instead")
    parser.add_argument("--profile", type=int, metavar="LINES", help="profile SmolLM2, or the file, instead")
    options = parser.parse_args()
    if options.profile:
        profile(_read(options.model or real.smollm2()), options.profile)
        return
    files = [("SmolLM2", real.smollm2()), *((f"{n} layers", real.smollm2_repeated(n)) for n in (SHALLOW, DEEP))]
    if options.model:
        files = [(options.model.name, options.model)]
    taken = {}
    print("| model | nodes | ms of processor | the same per 1,000 nodes | ms by clock |\n|---|---|---|---|---|")
    for name, path in files:
        graph = _read(path)
        taken[name], clock = measure(graph, options.runs)
        count = len(graph.nodes)
        each = 1000 * taken[name] / count
        print(f"| {name} | {count:,} | {taken[name]:.1f} | {each:.1f} | {clock:.1f} |", flush=True)
    if not options.model:
        ratio = taken[f"{DEEP} layers"] / taken[f"{SHALLOW} layers"]
        times = DEEP // SHALLOW
        print(f"\n{times} times the layers take {ratio:.2f} times as long: {ratio / times:.2f} of linear")


if __name__ == "__main__":
    main()
