"""How long it takes to find the Dims of a model that has been read, and how that grows with depth.

    python -m tools.bench_analysis --runs 15

SmolLM2 (30 layers, some 2,000 nodes), then the same graph with 30 and with 120 layers: four times the nodes should
take four times as long. Everything runs on one thread.
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


def measure(graph: Graph, runs: int) -> float:
    """The median milliseconds of `runs` analyses, each of a Graph that has nothing cached."""
    times = []
    for _ in range(runs + 1):
        fresh = replace(graph)
        start = time.perf_counter()
        analyse(fresh)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[1:]))


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
    print("| model | nodes | ms | ms per 1,000 nodes |\n|---|---|---|---|")
    for name, path in files:
        graph = _read(path)
        taken[name] = measure(graph, options.runs)
        count = len(graph.nodes)
        print(f"| {name} | {count:,} | {taken[name]:.1f} | {1000 * taken[name] / count:.1f} |", flush=True)
    if not options.model:
        ratio = taken[f"{DEEP} layers"] / taken[f"{SHALLOW} layers"]
        times = DEEP // SHALLOW
        print(f"\n{times} times the layers take {ratio:.2f} times as long: {ratio / times:.2f} of linear")


if __name__ == "__main__":
    main()
