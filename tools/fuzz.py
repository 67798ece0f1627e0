"""Spoilt files through all of graphprune: each ends in a result that is right, or in a clear error.

    python -m tools.fuzz                       20,000 cases, or what is left of them
    python -m tools.fuzz --replay 123          one of them again, with all that it says
    python -m tools.fuzz --table               what came of those so far, in Markdown

A case is a real file and up to three mutations (tools/mutate.py), drawn from the seed and the number of the case. It
does what users do: load, list the Dims, plan to keep half, cut with all proofs, write the file and its report. It has a
process of its own, forked from one that has everything imported, with limits of memory and time, and a folder of its
own. Where a result comes out the file is run from disk, beside the result in memory, and the proofs are made once
more, on other inputs and with other permutations.

It is a finding if something else than a GraphpruneError is raised, the process ends by a signal, does not end, or runs
out of memory, a file appears or changes where none should, a library or a process is started, a file outside the
model's folder is read, or the result is wrong. A finding is kept: the spoilt file, and the fewest mutations that do.
Where ONNX Runtime or the onnx package are what crashes, it counts apart.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import graphprune
from graphprune.errors import GraphpruneError
from graphprune.explain import network, to_dot
from graphprune.formats import onnx as format_
from graphprune.verify import Proof
from tests.cases import CASES
from tools.mutate import BYTES, MUTATIONS, outside, spoil_bytes

PROVED, WHOLE, REFUSED, RUNTIME, BUG = "proved", "nothing to cut", "clear error", "crash in a library", "BUG"
Work = Callable[[Path, Path], tuple[str, str]]
"""What is done with the file at a path and a folder for outputs: the outcome, and words."""
OUTCOMES = (PROVED, WHOLE, REFUSED, RUNTIME, BUG)
ZOO = (
    "albert/fused bert/dynamo-20/qoperator bert/legacy-13/dynamic-int8 convnext/dynamo-20/qoperator "
    "electra/fused fused/llama-cache gpt2/dynamo-20/int4 gpt2/dynamo-20/int4-qdq gpt2/fused llama/dynamo-20/int4 "
    "mamba/legacy-14 mobilenet_v2/dynamo-20/qoperator poolformer/legacy-13 qwen2_moe/legacy-13 real/digits "
    "real/silero_vad resnet/dynamo-20-float16 resnet/dynamo-20/qdq resnet/legacy-19-dynamic vit/dynamo-20/qdq-channel"
).split()
"""Files of models/zoo.py, of less than a megabyte but for one."""
SECRET = b"nobody outside may read this" * 100
SECONDS, MEMORY, DISK = 15, 2 << 30, 1 << 28
"""What a case may take: seconds, bytes more than the process began with, bytes of a file."""
SEEDS = (9, 10, 11, 12, 13)
"""Of the second proof."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_DENIED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
_LIBRARY = re.compile(r"site-packages/(onnxruntime|onnx)/")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Seed:
    """A file to be spoilt, and the files beside it."""

    name: str
    data: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What was done to which file, and what came of it; ``words`` are of the error, ``where`` the last frame of it."""

    number: int
    seed: str
    mutations: tuple[str, ...]
    done: tuple[str, ...] = ()
    outcome: str = ""
    words: str = ""
    where: str = ""
    peak: int = 0

    @property
    def kind(self) -> str:
        """What tells one finding from another: where it is, and its words without numbers."""
        return f"{self.where}: {_NUMBER.sub('0', self.words)[:80]}"


# Files.


def table_seeds() -> Iterator[Seed]:
    """The rules table: a small model for each op and way to use it; and files with functions and data beside them."""
    for case in CASES:
        yield Seed(f"case/{case}", case.model().SerializeToString())
    yield from structures()


def structures() -> Iterator[Seed]:
    """What the table has not: local functions, and weights in a file of their own."""
    from models import digits
    from tests.test_structure import calling

    yield Seed("functions", calling().SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        proto = onnx.load(digits.PATH)
        onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=256)
        yield Seed("external", path.read_bytes(), {"model.data": (Path(folder) / "model.data").read_bytes()})


def zoo_seeds() -> Iterator[Seed]:
    """Real files; they are made in a process of their own, as that needs torch."""
    from tools.child import run

    paths = run([sys.executable, "-m", "tools.fuzz", "--paths"])
    if paths.error:
        raise SystemExit(f"the files of the zoo could not be made: {paths.error}")
    for name, path in json.loads(paths.text.splitlines()[-1]).items():
        yield Seed(name, Path(path).read_bytes())


# A case.


def draw(number: int, seed: int, groups: Sequence[Sequence[Seed]]) -> tuple[Seed, tuple[str, ...]]:
    """The file and the mutations of case ``number``: one, two or three of structure or bytes."""
    dice = Random(f"{seed}/{number}")
    chosen = dice.choice(dice.choice(groups))
    ways = [*MUTATIONS, *(f"bytes {way}" for way in BYTES)]
    return chosen, tuple(dice.choice(ways) for _ in range(dice.choice((1, 1, 1, 2, 3))))


def spoil(chosen: Seed, mutations: Sequence[str], dice: str, other: bytes) -> tuple[bytes, list[str]]:
    """The bytes of the spoilt file, and what was done to it; ``dice`` seeds each mutation by its place."""
    proto, done = onnx.load_model_from_string(chosen.data), list[str]()
    for at, name in enumerate(mutations):
        if name in MUTATIONS:
            with suppress(DecodeError):  # deeper than protobuf goes
                done.append(MUTATIONS[name](proto, Random(f"{dice}/{at}/{name}")))
    data = proto.SerializeToString()
    for at, name in enumerate(mutations):
        if name not in MUTATIONS and name:
            data = spoil_bytes(data, name.removeprefix("bytes "), Random(f"{dice}/{at}/{name}"), other)
            done.append(name)
    return data, done


def use(path: Path, out: Path) -> tuple[str, str]:
    """What users do with the file at ``path``: the outcome, and its words. Raises what they would see raised."""
    loaded = graphprune.load(path)
    for dim in loaded.dims()[:3]:
        loaded.explain(dim["name"])
    made = network(loaded.analysis)
    ElementTree.fromstring("\n".join(nx.generate_graphml(made)))
    to_dot(made)
    plan = graphprune.Plan.from_json(loaded.plan(graphprune.Request(keep=0.5)).to_json())
    result = loaded.apply(plan, timing=False)
    for suffix in (".json", ".html", ".md", ".txt"):
        text = result.report.render(suffix)
        if suffix == ".html" and "<script" in text:
            return BUG, "a name from the file is a script in the report"
    result.save(out / "small.onnx")
    if not result.report.verified:
        return BUG, "there is a result, and it was not proved"
    if not plan.cuts:
        return WHOLE, ""
    wrong = unlike(loaded, result, out / "small.onnx")
    return (BUG, wrong) if wrong else (PROVED, "")


def unlike(loaded: graphprune.Loaded, result: graphprune.Result, path: Path) -> str:
    """What is wrong with the file at ``path`` after all: "" if it does what the result does, and proofs hold on others.

    The file is run as anybody would; the proofs are made anew, with other permutations, on other inputs. What is wrong
    fails for most of them: spoilt weights may overflow on some inputs, or make much of rounding.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    proof = Proof(loaded.format, loaded.model, loaded.analysis, seed=SEEDS[0])
    chosen = result.plan.chosen(loaded.analysis)
    runner = format_.run(result.pruned)
    for _, inputs in proof.trials:
        feeds = proof.analysis.fit(inputs, chosen)
        outputs = dict(zip(runner.names, session.run(runner.names, feeds), strict=True))
        for name, value in runner(feeds).items():
            if name in outputs and not np.array_equal(value, outputs[name], equal_nan=value.dtype.kind == "f"):
                return f"output {name!r} of the file is not that of the result"
    failed: list[str] = []
    for seed in SEEDS:
        proof = Proof(loaded.format, loaded.model, loaded.analysis, seed=seed)
        checks = proof.permutation(), proof.zero_equals_cut(chosen)
        failed += [str(check) for check in checks if not check.passed and np.isfinite(check.error or 0.0)][:1]
        if not failed:
            break
    return f"on other inputs: {failed[0]}" if 2 * len(failed) > len(SEEDS) else ""


# A process for each case.


class Arena:
    """The folder in which cases run, one after the other: in/ and out/ and tmp/ of a case, and what lies outside it."""

    def __init__(self, root: Path, seconds: int) -> None:
        self.root, self.seconds = root, seconds
        self.case = root / "case"
        (root / "secret.bin").write_bytes(SECRET)

    def clear(self, beside: Mapping[str, bytes]) -> None:
        """New folders, and the files beside the model; links lead out of its folder, and to themselves."""
        shutil.rmtree(self.case, ignore_errors=True)
        for name in ("in", "out", "tmp"):
            (self.case / name).mkdir(parents=True)
        for name, data in beside.items():
            (self.case / "in" / name).write_bytes(data)
        (self.case / "secret.bin").write_bytes(SECRET)
        (self.case / "in" / "link").symlink_to(self.root / "secret.bin")
        (self.case / "in" / "linked").symlink_to(self.root)
        (self.case / "in" / "loop").symlink_to("loop")

    def strange(self, beside: Mapping[str, bytes]) -> str:
        """A file that is where none should be, or was changed; "" where all is well."""
        inside = {"in/model.onnx", "in/link", "in/linked", "in/loop", "secret.bin", *(f"in/{name}" for name in beside)}
        inside |= {"out/small.onnx", "out/small.onnx.data", "made.json", "trace"}
        found = {str(path.relative_to(self.case)) for path in self.case.rglob("*") if not path.is_dir()}
        known = {self.case / "secret.bin": SECRET, self.root / "secret.bin": SECRET}
        known |= {self.case / "in" / name: data for name, data in beside.items()}
        spoilt = [path.name for path, data in known.items() if path.read_bytes() != data]
        others = {path.name for path in self.root.iterdir()} - {"case", "secret.bin"}
        return ", ".join(sorted(found - inside) + spoilt + sorted(others))

    def run(self, case: Case, chosen: Seed, dice: str, other: bytes, work: Work) -> Case:
        """``case`` with its outcome, in a child of this process."""
        self.clear(chosen.beside)
        child = os.fork()
        if not child:
            with (self.case / "trace").open("w") as trace:
                _limit(trace, self.seconds)
                _child(self.case, trace, case, chosen, dice, other, work)
        _, status, usage = os.wait4(child, 0)
        made, seen = self.case / "made.json", (self.case / "trace").read_text(errors="replace")
        record: dict[str, Any] = json.loads(made.read_text()) if made.exists() else {}
        ended = replace(case, peak=usage.ru_maxrss >> 10, **record)
        if not ended.outcome:
            ended = replace(ended, **_crash(os.waitstatus_to_exitcode(status), seen))
        if strange := self.strange(chosen.beside):
            ended = replace(ended, outcome=BUG, words=f"files where none should be: {strange}"[:200])
        return ended


def _crash(code: int, trace: str) -> dict[str, Any]:
    """What ended a process that did not say so itself, and whose code it was in."""
    frame = next((line.strip() for line in trace.splitlines() if line.strip().startswith("File")), "")
    library = _LIBRARY.search(frame)
    words = "does not end" if "Timeout" in trace or -code in (signal.SIGXCPU, signal.SIGKILL) else f"ended with {code}"
    where = library.group(1) if library else frame[-100:]
    return {"outcome": RUNTIME if library else BUG, "words": words, "where": where}


def _child(folder: Path, trace: Any, case: Case, chosen: Seed, dice: str, other: bytes, work: Work) -> None:
    """Runs one case, writes what came of it to made.json, and ends this process."""
    try:
        data, done = spoil(chosen, case.mutations, dice, other)
        path = folder / "in" / "model.onnx"
        path.write_bytes(data)
        _write(folder, {"done": done})
        escapes = _outside(data)
        denied = _watch(folder)
        _write(folder, {"done": done, **_outcome(path, folder / "out", work, escapes, denied, trace)})
    except BaseException as error:
        traceback.print_exception(error, file=trace)
        trace.flush()
        _write(folder, {"outcome": BUG, "words": f"the fuzzer itself: {error!r}"[:300], "where": _frame(error)})
    finally:
        os._exit(0)


def _limit(trace: Any, seconds: int) -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGXCPU, trace, chain=True)
    faulthandler.dump_traceback_later(20 * seconds, exit=True, file=trace)
    warnings.simplefilter("ignore")


def _watch(folder: Path) -> list[str]:
    """What this process does from now on that it should not: files written elsewhere, libraries, processes."""
    denied: list[str] = []
    tempfile.tempdir = str(folder / "tmp")
    home = str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _DENIED and args[0] is not None:
            denied.append(f"{event} {args[0]!r}")
        written = event == "open" and isinstance(args[0], str | bytes) and args[2] & _WRITES
        if written and not os.path.realpath(os.fsdecode(args[0])).startswith(home):
            denied.append(f"wrote {args[0]!r}")

    sys.addaudithook(hook)
    return denied


def _outside(data: bytes) -> bool:
    try:
        return outside(onnx.load_model_from_string(data))
    except Exception:
        return False


def _outcome(path: Path, out: Path, work: Work, escapes: bool, denied: list[str], trace: Any) -> dict[str, str]:
    where = ""
    try:
        outcome, words = work(path, out)
        if escapes:
            outcome, words = BUG, "data outside the folder of the model were not refused"
    except GraphpruneError as error:
        outcome, words = REFUSED, error.what
        if any(out.iterdir()) or not str(error).strip() or "Traceback" in str(error):
            outcome, words = BUG, f"an error that leaves files or says nothing: {error}"
    except BaseException as error:
        outcome, words, where = BUG, f"{type(error).__name__}: {error}", _frame(error)
        traceback.print_exception(error, file=trace)
        trace.flush()
    if denied:
        outcome, words = BUG, f"it did what it should not: {', '.join(denied)}"
    return {"outcome": outcome, "words": words[:300], "where": where}


def _frame(error: BaseException) -> str:
    """The last place inside graphprune that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/graphprune/" in frame.filename] or frames
    return f"{'/'.join(Path(ours[-1].filename).parts[-3:])}:{ours[-1].lineno} {ours[-1].name}" if ours else ""


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / "made.json").write_text(json.dumps(record))


# Many cases.


class Fuzzer:
    """All cases of one seed over the same files; ``work`` is what is done with each."""

    def __init__(
        self,
        seed: int,
        groups: Sequence[Sequence[Seed]],
        root: Path,
        work: Work = use,
        seconds: int = SECONDS,
    ) -> None:
        self.seed, self.groups, self.work = seed, groups, work
        self.arena = Arena(root, seconds)

    def case(self, number: int, mutations: Sequence[str] = ()) -> Case:
        """Case ``number``, or what comes of some of its ``mutations`` alone ("" in the place of the others)."""
        chosen, drawn = draw(number, self.seed, self.groups)
        other = Random(f"{self.seed}/{number}/other").choice(self.groups[0]).data
        case = Case(number, chosen.name, tuple(mutations or drawn))
        return self.arena.run(case, chosen, f"{self.seed}/{number}", other, self.work)

    def smallest(self, found: Case) -> Case:
        """The same finding with as few mutations as will do."""
        for count in range(1, len(found.mutations)):
            for kept in combinations(range(len(found.mutations)), count):
                fewer = self.case(found.number, [name if i in kept else "" for i, name in enumerate(found.mutations)])
                if (fewer.outcome, fewer.kind) == (found.outcome, found.kind):
                    return fewer
        return self.case(found.number)


def keep(fuzzer: Fuzzer, found: Case, folder: Path) -> Case:
    """Write down a finding: the record, the spoilt file, the trace; with as few mutations as will do, if it is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    small = fuzzer.smallest(found) if found.outcome == BUG and len(found.mutations) > 1 else found
    (folder / f"{found.number}.json").write_text(json.dumps(asdict(small), indent=1) + "\n")
    for source, suffix in (("in/model.onnx", "onnx"), ("trace", "txt")):
        if (made := fuzzer.arena.case / source).exists():
            shutil.copyfile(made, folder / f"{found.number}.{suffix}")
    return small


def read(state: Path) -> list[Case]:
    """The cases that are done."""
    lines = state.read_text().splitlines() if state.exists() else []
    return [Case(**{**json.loads(line), "mutations": tuple(json.loads(line)["mutations"])}) for line in lines]


def search(fuzzer: Fuzzer, cases: int, state: Path, findings: Path) -> list[Case]:
    """All cases up to number ``cases``; those in ``state`` are not done again."""
    done = read(state)
    seen = {case.kind for case in done if case.outcome in (BUG, RUNTIME)}
    count = Counter(case.outcome for case in done)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, auto_refresh=False) as bars, state.open("a") as stream:  # no thread: it would not be forked
        task = bars.add_task("", total=cases, completed=len(done))
        for number in range(len(done), cases):
            case = fuzzer.case(number)
            done.append(case)
            count[case.outcome] += 1
            if case.outcome in (BUG, RUNTIME) and case.kind not in seen:
                seen.add(case.kind)
                keep(fuzzer, case, findings)
                bars.console.print(f"{number} {case.seed}: {case.outcome}: {case.kind}", markup=False, highlight=False)
            stream.write(json.dumps(asdict(case)) + "\n")
            stream.flush()
            bars.update(task, advance=1, description=", ".join(f"{count[o]:,} {o}" for o in OUTCOMES if count[o]))
            if number % 20 == 0:
                bars.refresh()
    return done


def table(done: Sequence[Case]) -> Iterator[str]:
    """Outcomes by mutation, in Markdown; a case with several mutations counts for each."""
    yield f"| mutation | cases | {' | '.join(OUTCOMES)} |"
    yield f"|---|---|{'---|' * len(OUTCOMES)}"
    for name in (*MUTATIONS, *(f"bytes {way}" for way in BYTES)):
        yield _line(name, [case for case in done if name in case.mutations])
    yield _line("**all**", done)


def _line(name: str, cases: Sequence[Case]) -> str:
    count = Counter(case.outcome for case in cases)
    return f"| {name} | {len(cases):,} | {' | '.join(f'{count[outcome]:,}' for outcome in OUTCOMES)} |"


def main() -> None:
    """Command line."""
    from models.packages import cache

    parser = argparse.ArgumentParser(description="Spoil files, and see what graphprune makes of them.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=cache() / "fuzz", help="where outcomes and findings are kept")
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="one case, and what it says")
    parser.add_argument("--table", action="store_true", help="print what came of all cases so far")
    parser.add_argument("--paths", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    state = options.folder / f"seed-{options.seed}.jsonl"
    if options.paths:
        from models import zoo

        print(json.dumps({name: str(zoo.graph(name)) for name in ZOO}))
        return
    if options.table:
        print("\n".join(table(read(state))))
        return
    groups = [list(zoo_seeds()), list(table_seeds()), list(structures())]
    groups = [groups[0], groups[0], groups[1], groups[1], groups[2]]
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(options.seed, groups, Path(folder).resolve())
        if options.replay is not None:
            print(json.dumps(asdict(fuzzer.case(options.replay)), indent=1))
            print((fuzzer.arena.case / "trace").read_text())
            shutil.copyfile(fuzzer.arena.case / "in" / "model.onnx", options.folder / f"{options.replay}.onnx")
            return
        done = search(fuzzer, options.cases, state, options.folder / f"findings-{options.seed}")
    count = Counter(case.outcome for case in done)
    print(", ".join(f"{count[outcome]:,} {outcome}" for outcome in OUTCOMES))
    raise SystemExit(1 if count[BUG] else 0)


if __name__ == "__main__":
    main()
