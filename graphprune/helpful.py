"""What of a compensation helps: the cut model's outputs on some of the data, with it and without it.

Least squares and biases make a mean error small. Where what goes is large on few inputs and next to nothing on all
others (the massive activations of transformers, Sun et al., arXiv 2402.17762), they spread it over all inputs, and one
bias may undo a model whose layers each lose less than before. Outputs tell: consumers are tried together, and where
that is worse than nothing in halves, until those that do harm are found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphprune.compensate import Changed, together

LOOKED_AT = 8
"""Batches that outputs are looked at on, at most."""
HELD = 1 << 27
"""Bytes of outputs after which no further batch is looked at."""
SLACK = 1.25
"""By how much what was fitted in order, on all batches, may leave outputs further off on those few."""


def helpful(parts: Sequence[Changed], lost: Callable[[Changed], float]) -> tuple[Changed, int]:
    """Those of ``parts``, changes of a consumer each, that leave outputs no further off; and how many were left out.

    ``lost`` says how far outputs move when what a plan cuts goes, and weights change so.

    >>> parts = [Changed({name: None}, {}) for name in "abcd"]
    >>> found, left_out = helpful(parts, lambda changed: 5 - len(changed.values) + 9 * ("c" in changed.values))
    >>> sorted(found.values), left_out
    (['a', 'b', 'd'], 1)
    """
    bare = lost(together(()))

    def fine(some: Sequence[Changed]) -> bool:
        return not some or lost(together(some)) <= bare

    def halved(some: Sequence[Changed]) -> list[Changed]:
        halves = (some[: len(some) // 2], some[len(some) // 2 :]) if len(some) > 1 else ()
        return [part for half in halves for part in (half if fine(half) else halved(half))]

    if fine(parts):
        return together(parts), 0
    kept = halved(parts)
    kept = kept if fine(kept) else []  # each may do well alone, and harm beside others
    return together(kept), len(parts) - len(kept)
