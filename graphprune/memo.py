"""Numbers that took long to find, by question; with a file, what a killed run had found is found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from graphprune.errors import UsageError

_HEAD = "graphprune found"


class Memo:
    """Answers by question. Each is written to the end of ``path`` as it is found; ``about`` says what they hang on."""

    def __init__(self, path: Path | None = None, about: str = "") -> None:
        self.path = path
        self.known: dict[str, float] = {}
        if path is None:
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        if not lines:
            path.write_text(json.dumps([_HEAD, about]) + "\n", encoding="utf-8")
            return
        if _HEAD not in lines[0]:
            raise UsageError(f"{path} holds something else than what a run has found", hint="choose another --state")
        if json.loads(lines[0]) != [_HEAD, about]:
            raise UsageError(
                f"what is in {path} was found for another model, other data or another request",
                hint="ask for the same to go on, or choose another --state to begin anew",
            )
        for line in lines[1:]:
            with suppress(ValueError):  # the run was killed while it wrote
                question, answer = json.loads(line)
                self.known[question] = answer

    def __call__(self, question: str, find: Callable[[], float]) -> float:
        """The answer, found now if it is not known."""
        if question not in self.known:
            self.known[question] = find()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{json.dumps([question, self.known[question]])}\n")
        return self.known[question]
