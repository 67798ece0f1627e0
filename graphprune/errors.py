"""Every error graphprune raises on purpose: what, where, why, what to do now.

One base class, so that a caller catches one thing; each kind carries the exit code of the command line.
"""

from __future__ import annotations


class GraphpruneError(Exception):
    """Base of all errors. ``what`` happened, ``hint`` says what to do now.

    >>> print(GraphpruneError("the file is empty", hint="export the model again"))
    the file is empty
    What to do: export the model again
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\nWhat to do: {self.hint}" if self.hint else self.what


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def printable(text: str) -> str:
    """``text`` with control characters spelled out: a name in a file may hold what a terminal would obey.

    >>> print(printable("weight \x1b[2J"))
    weight \\x1b[2J
    """
    return text.translate(_CONTROL)


class UsageError(GraphpruneError):
    """The request itself makes no sense: an unknown score, a ratio outside (0, 1], a pattern that matches nothing."""

    exit_code = 2


class ReadError(GraphpruneError):
    """The input could not be read as a model: missing, truncated, not a model, unsafe, invalid."""

    exit_code = 3


class BudgetError(GraphpruneError):
    """The budget cannot be met; the message says what the least reachable is."""

    exit_code = 4


class PlanError(GraphpruneError):
    """The plan does not fit the model it is applied to."""

    exit_code = 5


class VerifyError(GraphpruneError):
    """The pruned model is not the surgery that was asked for; nothing is written."""

    exit_code = 6


class WriteError(GraphpruneError):
    """The output could not be written; whatever was there before is untouched."""

    exit_code = 7
