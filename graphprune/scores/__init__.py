"""Scores: how much each position of a Dim matters. Registered by name; command line and docs read the registry."""

from __future__ import annotations

from graphprune.scores.registry import SCORES, Across, Score, Scores, Task, score_atoms

from graphprune.scores import activation, gradient, obs, weight  # noqa: F401  isort: skip

__all__ = ["SCORES", "Across", "Score", "Scores", "Task", "score_atoms"]
