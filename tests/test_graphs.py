"""Random graphs, cut at random: the proofs hold on all of them, and fail when a rule is broken on purpose.

GRAPHPRUNE_EXAMPLES sets how many graphs are made; where it is not set, they are a few hundred and always the same.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphprune.rules import RULES, Op, Rule
from tests.graphs import STEPS, Sample, samples
from tests.prove import Subject
from tests.wrong_rules import concat, gather, slice_, softmax, split, transpose

EXAMPLES = int(os.environ.get("GRAPHPRUNE_EXAMPLES", "300"))
WITHIN = 1000
"""How many graphs it may take to find out that a rule is wrong."""
PRUNABLE, PROVING = 0.8, 0.95
SEARCH = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="GRAPHPRUNE_EXAMPLES" not in os.environ,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
SEEDS = st.integers(0, 2**16)


def varies(subject: Subject) -> bool:
    """Whether an output moves at all: a graph that subtracts a value from itself proves nothing."""
    outputs = [value for outputs in subject.proof.dense for value in outputs.values()]
    return any(np.ptp(value) > 1e-6 * np.abs(value).max(initial=0) for value in outputs)


def test_random_graphs() -> None:
    """All three checks for one cut at random, of all graphs."""
    seen: Counter[str] = Counter()

    @SEARCH
    @given(samples(), SEEDS, st.booleans())
    def holds(sample: Sample, seed: int, few: bool) -> None:
        subject = Subject(sample.proto, seed)
        seen["graphs"] += 1
        if varies(subject):
            failures = subject.failures(subject.cut(few))
            assert failures == [], (sample.steps, failures)
            seen["proven"] += 1
        seen["prunable"] += bool(subject.analysis.prunable)
        seen["exact"] += bool(subject.format.maskable(subject.analysis))
        seen["dims"] += len(subject.analysis.prunable)
        seen.update(set(sample.steps))

    holds()
    print({name: seen[name] for name in ("graphs", "proven", "prunable", "exact", "dims")})  # noqa: T201
    assert seen["proven"] >= PROVING * seen["graphs"], seen
    assert seen["prunable"] >= PRUNABLE * seen["graphs"], seen
    assert seen["exact"] >= PRUNABLE * seen["graphs"], seen
    missing = {f"{flavour} {step.__name__}" for flavour, steps in STEPS.items() for step in steps} - set(seen)
    assert not missing, f"no graph took the steps {missing}"


@pytest.mark.parametrize("wrong", [concat, split, transpose, softmax, gather, slice_], ids=lambda wrong: wrong.__name__)
def test_a_broken_rule_is_found(wrong: Callable[[Op], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same search, with one rule wrong, meets a graph that fails before long."""
    name = wrong.__name__.rstrip("_")
    monkeypatch.setitem(RULES, name, Rule(name, "wrong on purpose", wrong))

    @settings(SEARCH, max_examples=WITHIN, phases=[Phase.generate])
    @given(samples(), SEEDS, st.booleans())
    def holds(sample: Sample, seed: int, few: bool) -> None:
        subject = Subject(sample.proto, seed)
        assert not varies(subject) or subject.failures(subject.cut(few)) == []

    with pytest.raises(AssertionError):
        holds()
