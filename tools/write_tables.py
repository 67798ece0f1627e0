"""Write the tables of the documentation from the code: ops, scores, allocators, error messages.

    python -m tools.write_tables

Each page in docs/ keeps its own words; a table stands between two comments, `<!-- table NAME -->` and `<!-- end -->`,
and is replaced. tests/test_docs.py fails where a page and the code differ.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from graphprune import catalogue, errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kinds() -> list[type[errors.GraphpruneError]]:
    """Every error class, by exit code."""
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return sorted((kind for kind in found if issubclass(kind, errors.GraphpruneError)), key=lambda kind: kind.exit_code)


def messages() -> dict[str, list[tuple[str, str]]]:
    """For each error class the messages in the code, with what to do; "…" stands for what is filled in."""
    found: dict[str, set[tuple[str, str]]] = {kind.__name__: set() for kind in kinds()}
    for path in sorted((ROOT / "graphprune").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in found and call.args:
                hint = next((word.value for word in call.keywords if word.arg == "hint"), None)
                found[call.func.id].add((_template(call.args[0]), _template(hint) if hint else ""))
    return {name: sorted(rows) for name, rows in found.items()}


def _template(node: ast.expr) -> str:
    """The text of a string expression, with "…" for whatever is not constant."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    return "…"


def ops() -> str:
    """How many ops have a rule, then one table of these, one of the frozen ones, and one of ONNX Runtime's own."""
    rows = [row for row in catalogue.ops() if row["domain"] == "ai.onnx"]
    count = Counter(row["status"] for row in rows)
    other = sorted({row["domain"] for row in catalogue.ops()} - {"ai.onnx", catalogue.RUNTIME})
    lines = [f"Of the {len(rows)} ops of `ai.onnx` at opset {opset()}, {count['rule']} have a rule and"]
    lines += [f"{count['frozen']} are frozen on purpose. Frozen as a whole: {', '.join(f'`{d}`' for d in other)}.", ""]
    ruled = [(f"`{row['op']}`", _code(row["text"])) for row in rows if row["status"] == "rule"]
    frozen = [(f"`{row['op']}`", row["text"]) for row in rows if row["status"] == "frozen"]
    lines += ["## Ops with a rule", "", *_table(("op", "axes"), ruled), ""]
    fused = [(f"`{row['op']}`", _code(row["text"])) for row in catalogue.ops() if row["domain"] == catalogue.RUNTIME]
    lines += ["## Ops frozen on purpose", "", *_table(("op", "because"), frozen), ""]
    lines += [f"## Ops of `{catalogue.RUNTIME}`", "", *_table(("op", "axes, or why it is frozen"), fused)]
    return "\n".join(lines)


def opset() -> int:
    """The newest opset of the installed onnx, which decides what the table of ops lists."""
    import onnx

    return int(onnx.defs.onnx_opset_version())


def _code(text: str) -> str:
    """An axis text as code; in a sentence, what stands in quotes."""
    return re.sub(r'"([^"]+)"', lambda found: f"`{found[1].strip()}`", text) if '"' in text else _plain(text)


def _plain(text: str) -> str:
    return f"`{text}`" if "->" in text else text


def scores() -> str:
    """One row a score."""
    rows = [(f"`{row['name']}`", row["needs"], row["paper"]) for row in catalogue.scores()]
    return "\n".join(_table(("score", "needs beside the model", "what it is"), rows))


def allocators() -> str:
    """One row an allocator."""
    rows = [(f"`{row['name']}`", row["needs"], row["paper"]) for row in catalogue.allocators()]
    return "\n".join(_table(("allocator", "needs", "what it is"), rows))


def codes() -> str:
    """One row an error class: its exit code and what it stands for."""
    rows = [(str(kind.exit_code), f"`{kind.__name__}`", (kind.__doc__ or "").splitlines()[0]) for kind in kinds()]
    return "\n".join(_table(("exit code", "class", "meaning"), rows))


def texts() -> str:
    """The messages, a table a class."""
    lines: list[str] = []
    for name, rows in messages().items():
        if rows:
            lines += [f"### {name}", "", *_table(("message", "what to do"), rows), ""]
    return "\n".join(lines).rstrip()


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


TABLES: dict[str, Callable[[], str]] = {
    "ops": ops,
    "scores": scores,
    "allocators": allocators,
    "codes": codes,
    "texts": texts,
}


def updated(page: str) -> str:
    """The text of a page with its tables written anew."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def main() -> None:
    """Rewrite the pages that changed, and name them."""
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text()
        after = updated(before)
        if after != before:
            path.write_text(after)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
