"""The command line: every command and option that is promised, and that it prints what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import graphprune
from graphprune.allocate import ALLOCATORS
from graphprune.formats import onnx as format_
from graphprune.scores import SCORES
from models import digits, real
from tests.command import Run, command, contents, process
from tests.test_explain import read_dot
from tests.test_plan import renamed

DIGITS = digits.PATH
HALF = ("--keep", "0.5")
COMMANDS = ("inspect", "sensitivity", "pareto", "plan", "apply", "prune", "verify", "ops", "scores", "allocators")


def sizes(path: Path) -> dict[str, tuple[int, ...]]:
    """Sizes of the weights in a file."""
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}


# Help.


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    text = command(option).done().out
    assert all(re.search(rf"^  {name} +\S", text, re.MULTILINE) for name in COMMANDS)
    assert "Shrink exported neural networks by structured pruning" in text


def test_version() -> None:
    assert command("--version").done().out == f"graphprune {graphprune.__version__}\n"


WHICH = "--include --exclude --allow"
TARGET = f"--keep --params --macs --bytes --latency --profile --allocator --sensitivity --tries --state {WHICH}"
TARGET += " --multiple --floor"
SOURCE = "--calib --tokenizer --samples --length --batch --mean --std --cache --no-cache"
REPAIR = "--compensate --damping"
JUDGING = "--metric --lower-is-better"
HOLDING = "--drop --shrink --curve"
OPTIONS = {
    "inspect": "--explain --json --graphml --dot",
    "sensitivity": f"--output -o {SOURCE} {JUDGING} {WHICH} --ratios --score --compensate --state --json --seed",
    "pareto": f"--output -o {TARGET} {SOURCE} {REPAIR} {JUDGING} --budgets --cost --score --json --seed",
    "plan": f"--output -o {TARGET} {SOURCE} --score --seed",
    "apply": f"--output -o {SOURCE} {REPAIR} --verify --report --json --seed --force",
    "prune": f"--output -o {TARGET} {JUDGING} {HOLDING} {SOURCE} {REPAIR} --score --plan-out --report --json --verify"
    " --seed --force",
    "verify": f"{SOURCE} {REPAIR} --plan --seed --json",
    "ops": "--json",
    "scores": "--json",
    "allocators": "--json",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str) -> None:
    """Every option, each with a word on what it does."""
    text = command(name, "--help").done().out
    listed = re.findall(r"^  +(-\S+?)(?:, (--\S+))?(?: .*)?$", text, re.MULTILINE)
    found = {option.rstrip(",") for pair in listed for option in pair if option} - {
        "-h",
        "--help",
        "--no-json",
        "--no-force",
    }
    assert set(OPTIONS[name].split()) - set(re.findall(r" / (--no-\S+)", text)) <= found
    usage = text.split("Options:")[0]
    assert f"graphprune {name}" in usage
    for option in OPTIONS[name].split():
        assert re.search(rf"{option}\b[^\n]*(\n +)?[^\n]*[A-Za-z]{{3}}", text), option


def test_without_a_command() -> None:
    """Help, and the exit code of wrong usage."""
    said = command()
    assert said.code == 2
    assert all(name in said.out + said.err for name in COMMANDS)


# inspect.

RECORD = {"name", "kind", "size", "prunable", "exact", "reason", "params_per_position", "macs_per_position", "weights"}


def test_inspect() -> None:
    text = command("inspect", DIGITS).done().out
    assert "4 prunable and 1 frozen dims" in text
    rows = [line for line in text.splitlines() if line.startswith("│ ")]
    assert len([row for row in rows if re.match(r"│ \S", row)]) == 5
    assert re.search(r"block1\.conv1 +│ channel +│ +32 │ +436 │ +27,648 │ block1\.conv1\.weight", text)
    assert "frozen: it is the shape of an output of" in text


def test_inspect_json() -> None:
    records = command("inspect", DIGITS, "--json").done().json
    assert records == graphprune.load(DIGITS).dims()
    assert all(set(record) == RECORD for record in records)
    assert all(set(use) == {"weight", "axis", "layout"} for record in records for use in record["weights"])
    assert all(record["reason"] for record in records if not record["prunable"])


def test_inspect_explain() -> None:
    text = command("inspect", DIGITS, "--explain", "block1.bn1.weight").done().out
    assert text.strip() == graphprune.load(DIGITS).explain("block1.conv1")
    assert max(map(len, text.splitlines())) > 150, "long lines stay whole, for grep"


def test_inspect_graphs(tmp_path: Path) -> None:
    """Both files hold the same graph, and networkx reads it back."""
    line = ("inspect", real.llama_tiny(), "--graphml", tmp_path / "dims.graphml", "--dot", tmp_path / "dims.dot")
    assert command(*line).done().out == ""
    graph = nx.read_graphml(tmp_path / "dims.graphml")
    other = read_dot((tmp_path / "dims.dot").read_text())
    records = graphprune.load(real.llama_tiny()).dims()
    assert {name for name, data in graph.nodes(data=True) if data["type"] == "dim"} == {
        f"dim {r['name']}" for r in records
    }
    assert set(other.nodes) == set(graph.nodes)
    assert {frozenset(edge) for edge in other.edges} == {frozenset(edge) for edge in graph.edges}
    assert graph.number_of_edges() == len({(r["name"], use["weight"]) for r in records for use in r["weights"]})
    sizes = nx.get_node_attributes(graph, "size")
    assert all(sizes[f"dim {record['name']}"] == record["size"] for record in records)


def test_inspect_graph_and_json(tmp_path: Path) -> None:
    assert command("inspect", DIGITS, "--dot", tmp_path / "dims.dot", "--json").done().json
    assert (tmp_path / "dims.dot").exists()


def test_names_with_brackets(tmp_path: Path) -> None:
    """Names are shown as they are, whatever the library that draws tables would make of brackets."""
    proto = onnx.load(DIGITS)
    for node in proto.graph.node:
        node.input[:] = [f"[/red]{name}" if name == "conv.weight" else name for name in node.input]
    proto.graph.initializer[0].name = "[/red]conv.weight"
    onnx.save(proto, tmp_path / "m.onnx")
    assert "[/red]conv" in command("inspect", tmp_path / "m.onnx").done().out
    assert "[/red]conv" in command("prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *HALF).done().out


# plan, apply, prune.


def test_plan_and_apply_is_prune(tmp_path: Path) -> None:
    options = ("--macs", "0.5", "--score", "l1", "--seed", "3")
    command("plan", DIGITS, "-o", tmp_path / "plan.json", *options).done()
    command("apply", DIGITS, tmp_path / "plan.json", "-o", tmp_path / "a.onnx", "--seed", "3").done()
    command("prune", DIGITS, "-o", tmp_path / "b.onnx", *options, "--plan-out", tmp_path / "other.json").done()
    made = contents(tmp_path)
    assert made["a.onnx"] == made["b.onnx"]
    assert made["plan.json"] == made["other.json"]
    assert command("plan", DIGITS, *options).done().out == made["plan.json"].decode()


def test_the_file_is_what_the_library_makes(tmp_path: Path) -> None:
    command("prune", DIGITS, "-o", tmp_path / "out.onnx", *HALF).done()
    result = graphprune.prune(DIGITS, keep=0.5)
    assert (tmp_path / "out.onnx").read_bytes() == result.model.SerializeToString()
    assert digits.accuracy(tmp_path / "out.onnx") < digits.accuracy(DIGITS)


@pytest.mark.parametrize("score", [name for name, score in SCORES.items() if score.needs == "nothing"])
def test_the_same_seed_gives_the_same_bytes(score: str, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        command(
            "prune", DIGITS, "-o", tmp_path / name, *HALF, "--score", score, "--seed", seed, "--verify", "none"
        ).done()
    made = contents(tmp_path)
    assert made["a"] == made["b"]
    assert (made["a"] == made["c"]) == (score != "random")


def test_exact_ratio(tmp_path: Path) -> None:
    command("prune", DIGITS, "-o", tmp_path / "o.onnx", "--keep", "0.3", "--multiple", "1", "--floor", "0").done()
    found = sizes(tmp_path / "o.onnx")
    assert found["conv.weight"] == (7, 1, 3, 3)  # 24 · 0.3 = 7.2
    assert found["block1.conv1.weight"] == (10, 7, 3, 3)  # 32 · 0.3 = 9.6
    assert found["block2.conv1.weight"] == (12, 7, 3, 3)  # 40 · 0.3 = 12
    assert found["fc.weight"] == (10, 12)


def test_multiple_and_floor(tmp_path: Path) -> None:
    command("prune", DIGITS, "-o", tmp_path / "o.onnx", "--keep", "0.1", "--multiple", "10", "--floor", "0.5").done()
    found = sizes(tmp_path / "o.onnx")
    assert found["block1.conv1.weight"][0] == 16  # too few for a multiple of 10: exactly the floor
    assert found["block2.conv1.weight"][0] == 20


@pytest.mark.parametrize("what", ["params", "macs"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_budgets(what: str, share: float, tmp_path: Path) -> None:
    report = (
        command("prune", DIGITS, "-o", tmp_path / "o.onnx", f"--{what}", share, "--json", "--verify", "none")
        .done()
        .json
    )
    assert 0.6 * share < report["pruned"][what] / report["dense"][what] <= share
    weights = sum(int(np.prod(size)) for size in sizes(tmp_path / "o.onnx").values())
    assert weights == report["pruned"]["params"]


def test_include_and_exclude(tmp_path: Path) -> None:
    before = sizes(DIGITS)
    line = ("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF, "--verify", "none")
    command(*line, "--include", "block1.bn1.*").done()
    found = sizes(tmp_path / "o.onnx")
    assert {name for name in found if found[name] != before[name]} == {
        "block1.conv1.weight", "block1.bn1.weight", "block1.bn1.bias", "block1.bn1.running_mean",
        "block1.bn1.running_var", "block1.conv2.weight",
    }  # fmt: skip
    command(*line, "--exclude", "block2*", "--exclude", "conv").done()
    assert sizes(tmp_path / "o.onnx") == found
    command(*line, "--include", "block1.conv1", "--include", "block2.conv1").done()
    more = sizes(tmp_path / "o.onnx")
    assert more["block1.conv1.weight"] == found["block1.conv1.weight"]
    assert more["block2.conv1.weight"] == (24, 24, 3, 3)


def test_allow(tmp_path: Path) -> None:
    """The residual stream and the head size are cut when asked for."""
    kinds = {}
    for allow in ((), ("hidden",), ("head-size",), ("hidden", "head-size"), ("all",)):
        options = [word for kind in allow for word in ("--allow", kind)]
        line = ("prune", real.llama_tiny(), "-o", tmp_path / "o.onnx", *HALF, "--json", "--verify", "none", *options)
        kinds[allow] = {dim["kind"] for dim in command(*line).done().json["dims"]}
    assert kinds["hidden",] - kinds[()] == {"hidden"}
    assert kinds["head-size",] - kinds[()] == {"head-size"}
    assert kinds["hidden", "head-size"] == kinds["all",] == kinds[()] | {"hidden", "head-size"}


# Reports.


@pytest.mark.parametrize(
    ("suffix", "start"), [(".json", "{"), (".html", "<!DOCTYPE html>"), (".md", "# "), (".txt", " ")]
)
def test_report_files(suffix: str, start: str, tmp_path: Path) -> None:
    report = tmp_path / f"report{suffix}"
    command("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF, "--report", report).done()
    text = report.read_text(encoding="utf-8")
    assert text.startswith(start)
    for words in ("39,250", "12,326", "permutation") if suffix != ".json" else ("39250", "12326", "permutation"):
        assert words in text


def test_report_on_standard_output(tmp_path: Path) -> None:
    text = command("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF).done().out
    assert f"{DIGITS.stat().st_size:,}" in text
    assert f"{(tmp_path / 'o.onnx').stat().st_size:,}" in text
    for words in ("parameters", "MACs", "file size", "latency", "output drift", "block1.conv1", "left whole"):
        assert words in text
    for check in ("permutation", "zero equals cut", "loads and runs"):
        assert f"passed {check}: " in text
    assert text.splitlines()[-1] == f"wrote {tmp_path / 'o.onnx'}"


def test_report_as_json(tmp_path: Path) -> None:
    line = ("-o", tmp_path / "o.onnx", "--json", "--report", tmp_path / "report.json")
    for report in (
        command("prune", DIGITS, *line, *HALF).done().json,
        json.loads((tmp_path / "report.json").read_text()),
    ):
        assert {"dense", "pruned", "dims", "frozen", "score", "request", "checks", "latency", "drift"} <= set(report)
        assert report["verified"] is True
        assert report["score"] == "l2"
        assert report["request"]["keep"] == 0.5
        assert report["file_bytes"] == [DIGITS.stat().st_size, (tmp_path / "o.onnx").stat().st_size]
        assert len(report["latency"]) == 2
        assert 0 < report["drift"] < 10


@pytest.mark.parametrize(
    ("mode", "checks"),
    [("full", ["permutation", "zero equals cut", "loads and runs"]), ("structure", ["structure"]), ("none", [])],
)
def test_ways_to_verify(mode: str, checks: list[str], tmp_path: Path) -> None:
    report = command("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF, "--verify", mode, "--json").done().json
    assert [check["name"] for check in report["checks"]] == checks
    assert report["verified"] is bool(checks)
    assert (report["latency"] is None) == (mode != "full")


def test_calibration_inputs(tmp_path: Path) -> None:
    """They set the sizes that MACs count at, and are what the proof runs on."""
    images = digits.split()[2][:16]
    np.savez(tmp_path / "inputs.npz", image=images)
    calib = ("--calib", tmp_path / "inputs.npz", "--batch", "16", "--json")
    line = ("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF, *calib)
    report = command(*line).done().json
    assert report["sizes"] == {"batch": 16}
    assert report["dense"]["macs"] == 16 * 1_282_960
    assert "run at batch=16" in report["checks"][0]["detail"]
    checks = command("verify", DIGITS, *calib).done().json
    assert "run at batch=16" in checks[0]["detail"]


# verify.


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[Path, Path]:
    """A pruned file and its plan."""
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    command("prune", DIGITS, "-o", out, *HALF, "--plan-out", plan, "--verify", "none").done()
    return out, plan


def test_verify_a_model() -> None:
    checks = command("verify", DIGITS, "--json").done().json
    assert [(check["name"], check["passed"]) for check in checks] == [("permutation", True), ("loads and runs", True)]
    assert all(check["error"] < check["limit"] for check in checks if check["error"] is not None)
    lines = command("verify", DIGITS).done().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["passed permutation", "passed loads and runs"]


def test_verify_a_pruned_model(pruned: tuple[Path, Path]) -> None:
    out, plan = pruned
    checks = command("verify", DIGITS, out, "--plan", plan, "--json").done().json
    assert [check["name"] for check in checks] == ["permutation", "zero equals cut", "loads and runs", "same file"]
    assert all(check["passed"] for check in checks)


SPOILT: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a weight": lambda m: m.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(m.graph.initializer[0]) * 1.001, m.graph.initializer[0].name)
    ),
    "metadata": lambda m: m.metadata_props.add(key="a", value="b"),
    "an attribute": lambda m: m.graph.node[1].attribute[0].__setattr__("f", 0.5),
}


@pytest.mark.parametrize("what", SPOILT)
def test_verify_a_file_that_is_not_what_the_plan_makes(what: str, pruned: tuple[Path, Path]) -> None:
    out, plan = pruned
    proto = onnx.load(out)
    SPOILT[what](proto)
    out.write_bytes(proto.SerializeToString())
    said = command("verify", DIGITS, out, "--plan", plan)
    assert said.code == 6
    assert said.out.splitlines()[-1] == f"FAILED same file: {out} is not what the plan makes of {DIGITS}"


def test_verify_with_the_plan_of_another_cut(pruned: tuple[Path, Path]) -> None:
    out, plan = pruned
    plan.write_text(command("plan", DIGITS, "--keep", "0.75").done().out)
    assert command("verify", DIGITS, out, "--plan", plan).code == 6


# Plans on a re-export.


def test_plan_of_one_export_on_another(tmp_path: Path) -> None:
    """All names are others: the same positions go, and the file computes what the cut original computes."""
    onnx.save(renamed(onnx.load(DIGITS)), tmp_path / "other.onnx")
    assert not set(sizes(tmp_path / "other.onnx")) & set(sizes(DIGITS))
    command("plan", DIGITS, *HALF, "-o", tmp_path / "plan.json").done()
    command("apply", tmp_path / "other.onnx", tmp_path / "plan.json", "-o", tmp_path / "b.onnx").done()
    command("apply", DIGITS, tmp_path / "plan.json", "-o", tmp_path / "a.onnx").done()
    first, second = (logits(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    np.testing.assert_array_equal(first, second)


def logits(path: Path) -> npt.NDArray[np.float32]:
    """What a digits model, whatever its names, says of the held-out images."""
    model = format_.read(path)
    (name,) = model.graph.inputs
    (found,) = format_.run(model)({name: digits.split()[2]}).values()
    return found


# ops and scores.


def test_ops() -> None:
    rows = command("ops", "--json").done().json
    assert all(set(row) == {"domain", "op", "status", "text"} for row in rows)
    assert {row["status"] for row in rows} == {"rule", "frozen"}
    assert all(row["text"] for row in rows)
    standard = {row["op"]: row for row in rows if row["domain"] == "ai.onnx"}
    assert set(standard) == {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert standard["Conv"] == {
        "domain": "ai.onnx", "op": "Conv", "status": "rule", "text": standard["Conv"]["text"],
    }  # fmt: skip
    assert "(g i)" in standard["Conv"]["text"]
    assert standard["NonZero"]["status"] == "frozen"
    assert sum(row["status"] == "rule" for row in standard.values()) >= 120
    assert len([row for row in rows if row["domain"] == "ai.onnx" and row["text"] == "no rule yet"]) == 0
    text = command("ops").done().out
    assert all(op in text for op in standard)


def test_scores() -> None:
    rows = command("scores", "--json").done().json
    assert [row["name"] for row in rows] == sorted(SCORES)
    assert all(set(row) == {"name", "needs", "paper"} and all(row.values()) for row in rows)
    text = command("scores").done().out
    assert all(name in text for name in SCORES)


def test_allocators() -> None:
    rows = command("allocators", "--json").done().json
    assert [row["name"] for row in rows] == sorted(ALLOCATORS)
    assert all(set(row) == {"name", "needs", "paper"} and all(row.values()) for row in rows)
    text = command("allocators").done().out
    assert all(name in text for name in ALLOCATORS)


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_plan_by_each_allocator(name: str, tmp_path: Path) -> None:
    """Three limits, in words; the plan says how it was made, and keeps to all."""
    limits = ("--macs", "60%", "--bytes", "0.1MB", "--activations", "13KiB", "--multiple", 1)
    options = ("--allocator", name, "--tries", 2, "--calib", "noise", "--no-cache")
    command("plan", DIGITS, "-o", tmp_path / "plan.json", *limits, *options).done()
    loaded, plan = graphprune.load(DIGITS), graphprune.Plan.load(tmp_path / "plan.json")
    report = loaded.apply(plan, verify="none", timing=False).report
    assert report.pruned.macs <= 0.6 * report.dense.macs
    assert report.pruned.bytes <= 1e5
    assert report.pruned.activations <= 13 * 1024
    assert plan.request["allocator"] == name
    assert (plan.request["macs"], plan.request["bytes"]) == ("60%", "0.1MB")


# What goes where.


def test_no_progress_bars_where_nobody_watches(tmp_path: Path) -> None:
    """Not on standard error, not in the output: no bars, no colours, no control characters."""
    ended = process("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF).done()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ended.out)
    assert "━━━" in ended.out, "the table is there"
    as_json = process("prune", DIGITS, "-o", tmp_path / "o.onnx", *HALF, "--json").done()
    assert json.loads(as_json.out)["verified"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_progress_bars_on_a_terminal(tmp_path: Path) -> None:
    """One a stage, on standard error; standard output stays clean."""
    ours, theirs = os.openpty()
    line = [sys.executable, "-m", "graphprune", "prune", str(DIGITS), "-o", str(tmp_path / "o.onnx"), *HALF]
    ended = subprocess.run(line, stdout=subprocess.PIPE, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # what Linux says at the end
        pass
    os.close(ours)
    for stage in (b"scoring by l2", b"verifying"):
        assert stage in shown
    assert b"wrote " in ended.stdout
    assert b"\x1b" not in ended.stdout


def test_standard_output_can_be_a_file(tmp_path: Path) -> None:
    """plan -o /dev/stdout, inspect --dot /dev/stdout: into a pipe, straight."""
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    ended: Run = process("plan", DIGITS, *HALF, "-o", tmp_path / "stdout").done()
    assert json.loads(ended.out)["cuts"]


def test_wide_tables_are_not_cut(tmp_path: Path) -> None:
    """Names longer than a column are folded, never left out."""
    text = command("inspect", real.ocr_cls()).done().out
    joined = "".join(re.sub(r"[│┃\s]", "", line) for line in text.splitlines())
    for record in graphprune.load(real.ocr_cls()).dims()[:5]:
        assert "…" not in text
        assert re.sub(r"\s", "", record["name"])[:20] in joined
