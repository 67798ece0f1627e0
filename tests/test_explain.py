"""Why: chains of nodes as text, what a position is worth, and the graph of Dims and weights."""

from __future__ import annotations

import re
from functools import cache

import networkx as nx
import numpy as np
import pytest

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.cost import CostModel
from graphprune.errors import UsageError
from graphprune.explain import describe, explain, find, network, to_dot
from graphprune.formats import onnx as format_
from models import digits, real
from tests.build import Net


@cache
def analysis(name: str = "digits") -> Analysis:
    """A model that is asked about several times."""
    return graphprune.load(digits.PATH if name == "digits" else getattr(real, name)()).analysis


def built(net: Net) -> Analysis:
    return analyse(format_.read(net.model()).graph)


def dims(found: Analysis, size: int) -> list[str]:
    """The names of the Dims of this size."""
    return [atom.name for atom in found.atoms if atom.size == size]


def test_chains_of_a_dim() -> None:
    text = explain(analysis(), "block1.conv1").replace("BatchNormalization", "Norm")
    assert (
        text
        == """\
block1.conv1: channel, 32 positions, in 6 weights
prunable, exact: removing a position equals zeroing it
from 'block1.conv1.weight' axis 0
  to 'block1.bn1.weight' axis 0 through Conv /block1/conv1/Conv > Norm /block1/bn1/Norm
  to 'block1.bn1.bias' axis 0 through Conv /block1/conv1/Conv > Norm /block1/bn1/Norm
  to 'block1.bn1.running_mean' axis 0 through Conv /block1/conv1/Conv > Norm /block1/bn1/Norm
  to 'block1.bn1.running_var' axis 0 through Conv /block1/conv1/Conv > Norm /block1/bn1/Norm
  to 'block1.conv2.weight' axis 1 through Conv /block1/conv1/Conv > Norm /block1/bn1/Norm > Relu /block1/relu/Relu\
 > Conv /block1/conv2/Conv"""
    )


def test_a_residual_couples_what_an_add_joins() -> None:
    lines = explain(analysis(), "conv").splitlines()
    (chain,) = [line for line in lines if "'block1.conv2.weight'" in line]
    assert "> Add /block1/Add >" in chain
    assert chain.endswith("Conv /block1/conv2/Conv")


def test_what_froze_a_dim() -> None:
    assert (
        explain(analysis(), "fc")
        == """\
fc: mlp, 10 positions, in 2 weights
frozen: it is the shape of an output of the model, 'logits'
  reached from 'fc.weight' through Gemm /fc/Gemm
from 'fc.weight' axis 0
  to 'fc.bias' axis 0 through Gemm /fc/Gemm"""
    )


def test_a_dim_frozen_further_on() -> None:
    """The chain goes from the weight to the node that froze it."""
    net = Net()
    hidden = net.op("Relu", net.op("MatMul", net.input(1, 4), net.weight(4, 16), name="up"), name="act")
    net.output(net.op("MatMul", net.op("CumSum", hidden, net.const(1), name="run"), net.weight(16, 3), name="down"))
    found = built(net)
    (name,) = dims(found, 16)
    text = explain(found, name).splitlines()
    assert text[1].startswith("frozen: ")
    assert "(node run)" in text[1]
    assert text[2] == "  reached from 'constant_2' through MatMul up > Relu act"


def test_what_is_not_exact() -> None:
    (atom,) = [atom for atom in analysis("llama_tiny").prunable if atom.kind == "hidden"]
    assert atom.inexact
    assert f"prunable, not exact: {atom.inexact}" in explain(analysis("llama_tiny"), atom.name)


def test_dims_are_found_by_name_or_weight() -> None:
    assert find(analysis(), "block1.conv1").name == "block1.conv1"
    assert find(analysis(), "block1.bn1.weight").name == "block1.conv1"
    assert find(analysis(), "block1.bn1").name == "block1.conv1"
    assert find(analysis(), "fc.bias").name == "fc"
    with pytest.raises(UsageError, match=r"no dim or weight 'CONV2'\nWhat to do: did you mean block2\.conv2\?"):
        find(analysis(), "CONV2")
    with pytest.raises(UsageError, match="graphprune inspect lists all names"):
        find(analysis(), "frob")


def test_long_explanations_are_cut_short() -> None:
    whole = explain(analysis(), "conv", limit=100).splitlines()
    text = explain(analysis(), "conv", limit=3).splitlines()
    assert text[:6] == whole[:6]
    assert text[6:] == ["  ... and 9 more"]
    assert len(whole) == 3 + 12


def test_a_weight_in_two_axes_of_which_a_dim_lives() -> None:
    net = Net()
    hidden = net.op("MatMul", net.input(1, 4), net.weight(4, 16), name="up")
    hidden = net.op("Add", hidden, net.op("MatMul", net.op("Tanh", hidden), net.weight(16, 16), name="mix"))
    net.output(net.op("MatMul", hidden, net.weight(16, 3), name="down"))
    found = built(net)
    (record,) = [record for record in describe(found) if record["prunable"]]
    (mix,) = [node.inputs[1] for node in found.graph.nodes if node.name == "mix"]
    assert [use["axis"] for use in record["weights"] if use["weight"] == mix] == [0, 1]
    assert network(found).edges[f"dim {record['name']}", mix] == {"axes": "0, 1"}
    assert f"'{mix}' axis 1 through" in explain(found, record["name"])


def test_worth_of_a_position() -> None:
    """Parameters and MACs that go with one position: counted in the model with one position less."""
    loaded = graphprune.load(digits.PATH)
    dense = CostModel(loaded.analysis)({})
    for atom, record in zip(loaded.analysis.atoms, loaded.dims(), strict=True):
        if atom.reason:
            assert (record["params_per_position"], record["macs_per_position"]) == (0, 0)
            continue
        one_less = format_.apply(loaded.model, loaded.analysis, {atom.dim: np.arange(1, atom.size)})
        after = CostModel(analyse(one_less.graph))({})
        assert record["params_per_position"] == dense.params - after.params > 0
        assert record["macs_per_position"] == dense.macs - after.macs > 0


def test_records() -> None:
    records = describe(analysis())
    assert [record["name"] for record in records] == ["conv", "block1.conv1", "block2.conv1", "block2.conv2", "fc"]
    assert records[1] == {
        "name": "block1.conv1",
        "kind": "channel",
        "size": 32,
        "prunable": True,
        "exact": True,
        "reason": "",
        "params_per_position": 24 * 9 + 4 + 24 * 9,
        "macs_per_position": 64 * (24 * 9 + 24 * 9),
        "weights": [
            {"weight": f"block1.{name}", "axis": axis, "layout": "32"}
            for name, axis in (
                ("conv1.weight", 0), ("bn1.weight", 0), ("bn1.bias", 0), ("bn1.running_mean", 0),
                ("bn1.running_var", 0), ("conv2.weight", 1),
            )
        ],
    }  # fmt: skip
    assert records[4]["reason"] == "it is the shape of an output of the model, 'logits'"


def test_network() -> None:
    """Dims and weights, an edge for each weight that a Dim lives in."""
    graph = network(analysis())
    dims = {name: data for name, data in graph.nodes(data=True) if data["type"] == "dim"}
    assert list(dims) == [f"dim {record['name']}" for record in describe(analysis())]
    assert dims["dim fc"]["state"] == "frozen"
    assert graph.nodes["conv.weight"] == {"type": "weight", "shape": "[24, 1, 3, 3]"}
    for atom in analysis().atoms:
        assert set(graph[f"dim {atom.name}"]) == set(atom.weights)
    assert nx.is_bipartite(graph)


def read_dot(text: str) -> nx.Graph:
    """A graph in the part of the DOT language that is written here: every name and value quoted."""
    quoted = r'"((?:[^"\\]|\\.)*)"'
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ("graph {", "}")
    graph = nx.Graph()
    for line in lines[1:-1]:
        found = re.fullmatch(rf"  {quoted}(?: -- {quoted})?(?: \[(.*)\])?;", line)
        assert found, line
        a, b, attributes = found.groups()
        data = {key: plain(value) for key, value in re.findall(rf"(\w+)={quoted}", attributes or "")}
        graph.add_node(plain(a), **data) if b is None else graph.add_edge(plain(a), plain(b), **data)
    return graph


def plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


ODD = ['say "hi"', "back\\slash", "onnx::Conv_12", "a -- b", "[x];{y}", "ünï", "a\\", ""]


def test_dot_holds_any_name() -> None:
    graph = nx.Graph()
    for name in ODD:
        graph.add_edge(f"dim {name}", name, axes="0, 1")
        graph.add_node(name, reason=name)
    read = read_dot(to_dot(graph))
    assert dict(read.nodes(data=True)) == dict(graph.nodes(data=True))
    assert {frozenset(edge): data for *edge, data in read.edges(data=True)} == {
        frozenset(edge): data for *edge, data in graph.edges(data=True)
    }


def test_dot_of_a_model() -> None:
    graph = network(analysis("llama_tiny"))
    read = read_dot(to_dot(graph))
    assert nx.utils.graphs_equal(read, nx.relabel_nodes(read, {}))
    assert set(read.nodes) == set(graph.nodes)
    assert {frozenset(edge) for edge in read.edges} == {frozenset(edge) for edge in graph.edges}
    assert all(read.nodes[name]["type"] == graph.nodes[name]["type"] for name in graph.nodes)


def test_shared_vectors_are_explained_by_reader() -> None:
    """A bias that an exporter merged lives in several Dims; each is explained by the node that reads it."""
    net = Net()
    x, bias = net.input(1, 4), net.weight(16)
    parts = []
    for name in ("left", "right"):
        hidden = net.op("Relu", net.op("Gemm", x, net.weight(4, 16), bias, name=name))
        parts.append(net.op("MatMul", hidden, net.weight(16, 3), name=f"{name} down"))
    net.output(net.op("Add", *parts))
    found = built(net)
    for dim, name, other in zip(dims(found, 16), ("left", "right"), ("right", "left"), strict=True):
        text = explain(found, dim)
        assert f"to '{bias}' axis 0 through Gemm {name}" in text
        assert f"Gemm {other}" not in text
