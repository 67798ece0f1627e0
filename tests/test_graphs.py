"""Random graphs, cut at random: the proofs hold on all of them, and fail when a rule is broken on purpose.

GRAPHPRUNE_EXAMPLES sets how many graphs are made (a few hundred where it is not set).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from graphprune.rules import RULES, Op, Rule
from tests.graphs import STEPS, Sample, samples
from tests.prove import Subject
from tests.test_rule_twins import concat, split, transpose

EXAMPLES = int(os.environ.get("GRAPHPRUNE_EXAMPLES", "300"))
PRUNABLE = 0.8
SEARCH = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def prove(sample: Sample, seed: int, few: bool) -> Subject:
    """All three checks for one cut at random."""
    subject = Subject(sample.proto, seed)
    failures = subject.failures(subject.cut(few))
    assert failures == [], (sample.steps, failures)
    return subject


def test_random_graphs() -> None:
    seen: Counter[str] = Counter()

    @SEARCH
    @given(samples(), st.integers(0, 2**16), st.booleans())
    def holds(sample: Sample, seed: int, few: bool) -> None:
        subject = prove(sample, seed, few)
        seen["graphs"] += 1
        seen["prunable"] += bool(subject.analysis.prunable)
        seen["exact"] += bool(subject.format.maskable(subject.analysis))
        seen["dims"] += len(subject.analysis.prunable)
        seen.update(set(sample.steps))

    holds()
    print(seen["graphs"], "graphs,", seen["dims"], "dims")  # noqa: T201
    assert seen["prunable"] >= PRUNABLE * seen["graphs"], seen
    assert seen["exact"] >= PRUNABLE * seen["graphs"], seen
    missing = {f"{flavour} {step.__name__}" for flavour, steps in STEPS.items() for step in steps} - set(seen)
    assert not missing, f"no graph took the steps {missing}"
