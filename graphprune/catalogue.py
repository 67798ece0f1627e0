"""What graphprune knows, as tables: the ops of the ONNX standard and the scores. The docs and the CLI print these."""

from __future__ import annotations

from graphprune.rules import FROZEN, RULES
from graphprune.scores import SCORES


def ops() -> list[dict[str, str]]:
    """One row an op of every domain that onnx defines: domain, op, status (rule, frozen), axis text or reason."""
    import onnx

    from graphprune.formats.onnx.names import rule_name

    newest: dict[tuple[str, str], onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key = schema.domain, schema.name
        if key not in newest or schema.since_version > newest[key].since_version:
            newest[key] = schema
    return [_row(domain, op, rule_name(op, domain)) for domain, op in sorted(newest)]


def _row(domain: str, op: str, name: str) -> dict[str, str]:
    if name in RULES:
        status, text = "rule", RULES[name].text
    else:
        other = f"no rule: {domain} models are not neural networks over tensors" if domain else "no rule yet"
        status, text = "frozen", FROZEN.get(name, other)
    return {"domain": domain or "ai.onnx", "op": op, "status": status, "text": text}


def scores() -> list[dict[str, str]]:
    """One row a score: name, what it needs beside the model, and its first line (with the paper)."""
    return [
        {"name": score.name, "needs": score.needs, "paper": score.doc.splitlines()[0]}
        for _, score in sorted(SCORES.items())
    ]
