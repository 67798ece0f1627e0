"""What graphprune knows, as tables: the ops of the ONNX standard and of ONNX Runtime, scores, allocators."""

from __future__ import annotations

from graphprune import formats
from graphprune.allocate import ALLOCATORS
from graphprune.rules import FROZEN, RULES
from graphprune.scores import SCORES

RUNTIME = "com.microsoft"


def ops() -> list[dict[str, str]]:
    """One row an op of every domain that onnx defines: domain, op, status (rule, frozen), axis text or reason.

    Of ONNX Runtime's own domain those that are ruled or frozen on purpose.
    """
    known = sorted(name for name in {**RULES, **FROZEN} if name.startswith(f"{RUNTIME}."))
    split = ((name.rpartition("."), name) for name in known)
    fused = [(domain, "".join(map(str.capitalize, op.split("_"))), name) for (domain, _, op), name in split]
    return [_row(*entry) for entry in (*formats.of("any.onnx").vocabulary(), *fused)]


def _row(domain: str, op: str, name: str) -> dict[str, str]:
    if name in RULES:
        status, text = "rule", RULES[name].text
    else:
        other = "no rule yet" if domain == "ai.onnx" else f"no rule: {domain} is not about tensors of a neural network"
        status, text = "frozen", FROZEN.get(name, other)
    return {"domain": domain, "op": op, "status": status, "text": text}


def scores() -> list[dict[str, str]]:
    """One row a score: name, what it needs beside the model, and its first line (with the paper)."""
    return [
        {"name": score.name, "needs": score.needs, "paper": score.doc.splitlines()[0]}
        for _, score in sorted(SCORES.items())
    ]


def allocators() -> list[dict[str, str]]:
    """One row an allocator: name, what it needs beside scores and costs, and its first line (with the paper)."""
    return [
        {"name": one.name, "needs": one.needs, "paper": one.doc.splitlines()[0]}
        for _, one in sorted(ALLOCATORS.items())
    ]
