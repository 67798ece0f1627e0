"""The documentation is held to the code: what it shows runs, what it lists is complete, where it points exists.

In README.md and docs/ every ```python block and every line of a ```sh block runs, page by page, from top to bottom, in
a folder that holds models/digits.onnx. A ```text block after one of them is what it prints; "..." stands for anything.
A comment before a block says what is special about it:

    <!-- exit 3 -->                 the command ends with this exit code
    <!-- not run: REASON -->        nobody runs it here
    <!-- on request: REASON -->     runs with GRAPHPRUNE_DOCS=all in the environment
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graphprune import cli
from graphprune.allocate import ALLOCATORS
from graphprune.rules import FROZEN, RULES
from graphprune.scores import SCORES
from models import digits
from tools import write_tables

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- (exit|not run:|on request:) *(.*?) -->\n$")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text and line, the mark before it, and what it is said to print."""

    language: str
    text: str
    line: int
    mark: str
    about: str
    printed: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(text: str) -> Iterator[Block]:
    """What runs on a page, in its order."""
    found = list(_BLOCK.finditer(text))
    for number, match in enumerate(found):
        if match[1] not in ("python", "sh"):
            continue
        mark = _MARK.search(text[: match.start()])
        after = found[number + 1] if number + 1 < len(found) else None
        follows = after and after[1] == "text" and not text[match.end() : after.start()].strip()
        printed = after[2] if after and follows else None
        line = text[: match.start()].count("\n") + 1
        yield Block(match[1], match[2], line, mark[1] if mark else "", mark[2] if mark else "", printed)


def _aside(block: Block) -> bool:
    return block.mark in ("not run:", "on request:")


ASIDE = [(page, block) for page in PAGES for block in blocks(page.read_text()) if _aside(block)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a model at hand; rules and scores that a page adds are forgotten after it."""
    (tmp_path / "models").mkdir()
    shutil.copy(digits.PATH, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    tables: list[dict[str, Any]] = [RULES, FROZEN, SCORES, ALLOCATORS]
    before = [dict(table) for table in tables]
    yield tmp_path
    for table, saved in zip(tables, before, strict=True):
        table.clear()
        table.update(saved)


# What runs.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page.read_text()):
        if _aside(block):
            continue
        where = f"{page.name}:{block.line}"
        printed = _python(block, names, where) if block.language == "python" else _shell(block, where)
        if block.printed is not None:
            assert _alike(block.printed, printed), f"{where} prints\n{printed}\nand not\n{block.printed}"


def _python(block: Block, names: dict[str, Any], where: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile("\n" * block.line + block.text, where, "exec"), names)
    return out.getvalue()


def _shell(block: Block, where: str) -> str:
    expected = int(block.about) if block.mark == "exit" else 0
    printed = ""
    for line in block.commands:
        code, text = _command(shlex.split(line, comments=True))
        assert code == expected, f"{where}: {line!r} ended with exit code {code}\n{text}"
        printed += text
    return printed


def _command(words: list[str]) -> tuple[int, str]:
    """A command of ours, in this process: its exit code and all that it prints."""
    assert words[0] == "graphprune", f"{words} is not ours to run: mark the block"
    code: Any = 0
    before, sys.argv = sys.argv, words
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.argv = before
    return int(code), out.getvalue()


def _alike(want: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(want, got, _FLAGS)


@pytest.mark.parametrize(("page", "block"), ASIDE, ids=lambda item: getattr(item, "name", getattr(item, "line", "")))
def test_what_a_page_sets_aside(page: Path, block: Block, desk: Path) -> None:
    assert block.about, f"{page.name}:{block.line} is set aside without a reason"
    if block.mark == "not run:" or os.environ.get("GRAPHPRUNE_DOCS") != "all":
        pytest.skip(block.about)
    command = [sys.executable, "-c", block.text]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=where, cwd=desk, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert block.printed is None or _alike(block.printed, done.stdout), done.stdout


def test_a_page_that_is_wrong_is_caught(desk: Path) -> None:
    wrong = "```sh\ngraphprune inspect models/digits.onnx --explain fc\n```\n\n```text\nfc: mlp, 11 positions...\n```\n"
    (block,) = blocks(wrong)
    assert block.printed is not None
    assert not _alike(block.printed, _shell(block, "here"))
    assert _alike(block.printed.replace("11", "10"), _shell(block, "here"))
    (failing,) = blocks("```sh\ngraphprune inspect nothing.onnx\n```\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        _shell(failing, "here")


# What is listed.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_current(page: Path) -> None:
    text = page.read_text()
    if "<!-- table ops" in text and f"opset {write_tables.opset()}," not in text:
        pytest.skip(f"the page is about another opset than the installed onnx ({write_tables.opset()})")
    assert write_tables.updated(text) == text, "write it again: python -m tools.write_tables"


def test_every_error_and_exit_code_is_explained() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    for kind in write_tables.kinds():
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in text
    for rows in write_tables.messages().values():
        for message, hint in rows:
            assert message in text
            assert hint in text


# Where it points.


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    heads = re.findall(r"^#+ +(.*)$", _BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} points to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} points to {link}"


# The order of files.


def listed() -> list[str]:
    """The files that docs/how-it-works.md names in its table, from the top."""
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    return re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE)


def test_the_files_are_listed_in_the_order_that_data_flows() -> None:
    order = listed()
    written = {str(path.relative_to(ROOT / "graphprune")) for path in (ROOT / "graphprune").rglob("*.py")}
    assert len(order) == len(set(order))
    assert set(order) == written, "a line for each file, in docs/how-it-works.md"
    assert backwards(order, late=False) == []


def test_imports_that_wait_go_against_the_order_where_the_page_says_so() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    for name, needs in backwards(listed(), late=True):
        assert f"(`{Path(name).name}`) asks `{Path(needs).name}`" in text


def test_an_import_against_the_order_is_seen() -> None:
    order = listed()
    assert backwards(order[::-1], late=False)
    assert ("formats/onnx/model.py", "formats/onnx/view.py") in backwards(order, late=True)


def backwards(order: list[str], late: bool) -> list[tuple[str, str]]:
    """Imports of a file further down; ``late``: also those inside functions."""
    rank = {name: number for number, name in enumerate(order)}
    return [(name, needs) for name in order for needs in sorted(imports(name, late)) if rank.get(needs, 0) > rank[name]]


def imports(name: str, late: bool) -> set[str]:
    """The files of the package that a file imports: at its top, or anywhere."""
    tree = ast.parse((ROOT / "graphprune" / name).read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graphprune"):
            found |= {_file(f"{node.module}.{alias.name}") or _file(str(node.module)) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {_file(alias.name) for alias in node.names if alias.name.startswith("graphprune.")}
    return found - {"", name}


def _file(module: str) -> str:
    path = "/".join(module.split(".")[1:])
    for candidate in (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py"):
        if (ROOT / "graphprune" / candidate).is_file():
            return candidate
    return ""
