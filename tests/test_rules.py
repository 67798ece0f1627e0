"""The rules table test: every rule passes the same property on models in which Dims that may be cut go through its op.

For each entry of tests/cases: the rule leaves free what the entry says, no more and no less; the permutation proof,
zero equals cut and a run hold for random cuts and for the smallest; and the outputs do tell a wrong order of the
positions before the op, so that a rule that ties the wrong axes could not pass.
"""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from graphprune.analysis import analyse
from graphprune.dims import atoms, is_frozen
from graphprune.formats import onnx as format_
from graphprune.formats.onnx.names import rule_name
from graphprune.rules import FROZEN, RULES
from tests.build import Net
from tests.cases import CASES, Case
from tests.cases.table import STANDARD
from tests.prove import Subject

SEEN = 1e-3
"""Ten times the tolerance of the proof: what a wrong order must move the outputs by."""
RULED = 120


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    subject = Subject(case.model())
    node = subject.node("tested")
    assert node.op == case.op
    assert subject.freedom(node) == case.free
    for chosen in (subject.cut(), subject.cut(few=True)):
        assert subject.failures(chosen) == []
    assert subject.analysis.prunable, "nothing in this model can be cut: it proves nothing"


@pytest.mark.parametrize("case", [case for case in CASES if set("+~") & set(case.free)], ids=str)
def test_outputs_tell_the_order(case: Case) -> None:
    """What stands before the op is permuted and what stands behind it is not: the outputs must change."""
    subject = Subject(case.model())
    touched = subject.touching(subject.node("tested"))
    moved = {atom.name: subject.scrambled(atom, SEEN) for atom in touched}
    assert moved
    assert min(moved.values()) > SEEN, moved
    exact = subject.format.maskable(subject.analysis) & {atom.dim for atom in touched}
    assert bool(exact) == ("+" in case.free), "zero equals cut looked at no Dim of this op"


def test_every_rule_is_exercised() -> None:
    """Each rule for an op of ONNX has an entry through which a Dim that may be cut really passes."""
    exercised = {case.op for case in CASES if set("+~") & set(case.free)}
    assert {op for op in RULES if op in STANDARD or op.startswith("com.microsoft.")} == exercised
    assert len({str(case) for case in CASES}) == len(CASES)


def test_every_op_of_the_standard_is_ruled_or_frozen() -> None:
    ops = set(STANDARD)
    assert ops <= set(RULES) | set(FROZEN)
    assert not set(RULES) & set(FROZEN)
    assert all(reason.strip() for reason in FROZEN.values())
    assert len(ops & set(RULES)) >= RULED


def test_rules_have_a_line_of_text() -> None:
    """What ``graphprune ops`` prints."""
    assert not [op for op, rule in RULES.items() if not rule.text or "\n" in rule.text]


@pytest.mark.parametrize("case", {case.op: case for case in CASES}.values(), ids=str)
def test_nothing_is_free_where_an_op_has_no_rule(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence freezes: without its rule, every axis an op touches stays whole, and says why."""
    monkeypatch.delitem(RULES, case.op)
    analysis = analyse(format_.read(case.model()).graph)
    node = [node for node in analysis.graph.nodes if node.name == "tested"][-1]
    for name in (*node.inputs, *node.outputs):
        for dim in analysis.facts.layouts.get(name, ()):
            assert is_frozen(dim)
            assert all(atom.reason for atom in atoms(dim) if atom.size)


def test_an_unknown_op_freezes_with_a_reason() -> None:
    net = Net()
    net.domains.append("my.ops")
    x = net.free(3, 4)
    net.nodes.append(helper.make_node("Mystery", [x], ["y"], name="/layer3/Mystery", domain="my.ops"))
    net.infos.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (3, 4)))
    net.output(net.op("MatMul", "y", net.weight(4, 5, fan=4)))
    net.sink(net.free(7))
    analysis = analyse(format_.read(net.model()).graph)
    why = {str(atom.reason) for atom in analysis.frozen}
    assert "there is no rule for Mystery (node /layer3/Mystery)" in why
    assert [atom.size for atom in analysis.prunable] == [7]


@pytest.mark.parametrize("kind", ["Det", "EyeLike", "NonZero", "RandomNormalLike", "Size"])
def test_an_op_frozen_on_purpose_freezes_what_it_touches(kind: str) -> None:
    net = Net(opset=21)
    x = net.free(4, 4)
    net.output(net.op(kind, x, name="tested"))
    net.sink(net.op("Tanh", x))
    net.sink(net.free(7))
    analysis = analyse(format_.read(net.model()).graph)
    assert [atom.size for atom in analysis.prunable] == [7]
    assert any(FROZEN[rule_name(kind)] in str(atom.reason) for atom in analysis.frozen)
