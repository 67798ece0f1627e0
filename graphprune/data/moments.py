"""Moments over batches of data: found on disk or added up, with somebody watching; remarks on what they can bear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from graphprune.consumers import Site
from graphprune.data import cache
from graphprune.graph import Array, Graph
from graphprune.stats import Batches, Gather, Moments, collect

_PARTS = [part.name for part in fields(Moments) if part.name != "half"]
FAR_OFF = (
    "no batch norm remembers what activations were: statistics without a forward pass are far off, and must not choose "
    "what goes (--score path goes by weights); --calib FILE, self or noise measures them"
)


class _Watched(Sequence[Any]):
    """A sequence that tells how far through it somebody is."""

    def __init__(self, items: Sequence[Any], progress: Callable[[float], None]) -> None:
        self.items, self.progress = items, progress

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: Any) -> Any:
        found = self.items[at]
        self.progress((at + 1) / len(self.items))
        return found


def measured(
    graph: Graph,
    sizes: Mapping[Site, int],
    batches: Batches,
    gather: Gather,
    progress: Callable[[float], None],
    cached: bool,
) -> dict[Site, Moments]:
    """Moments at the sites in ``sizes``; those of the same model, data and sites come from the cache, if it is used."""
    held = batches if isinstance(batches, Sequence) else list(batches)
    watched = _Watched(held, progress)
    if not cached or not held:
        return collect(sizes, sizes, watched, gather)
    code = cache.code_key(collect, gather)
    made_from = ("moments", code, cache.model_key(graph), cache.data_key(held), *sizes.items())
    return _read(sizes, cache.remembered(made_from, lambda: _arrays(collect(sizes, sizes, watched, gather))))


def _arrays(found: Mapping[Site, Moments]) -> dict[str, Any]:
    whole = {f"{i}.{name}": getattr(m, name) for i, m in enumerate(found.values()) for name in _PARTS}
    halves = ((f"{i}.half", m.half) for i, m in enumerate(found.values()) if m.half)
    return whole | {f"{i}.{name}": getattr(m, name) for i, m in halves for name in _PARTS}


def _read(sites: Iterable[Site], arrays: Mapping[str, Array]) -> dict[Site, Moments]:
    return {site: _one(str(i), arrays) for i, site in enumerate(sites)}


def _one(key: str, arrays: Mapping[str, Array]) -> Moments:
    parts: dict[str, Any] = {name: arrays[f"{key}.{name}"] for name in _PARTS}
    half = _one(f"{key}.half", arrays) if f"{key}.half.count" in arrays else None
    return Moments(**{**parts, "count": int(parts["count"]), "half": half})


def thin(moments: Mapping[Site, Moments]) -> tuple[str, ...]:
    """A remark where fewer vectors were seen than they have features."""
    few = [(site, m) for site, m in moments.items() if m.count < len(m.total)]
    if not few:
        return ()
    site, worst = min(few, key=lambda pair: pair[1].count / len(pair[1].total))
    words = (
        f"{len(few)} of {len(moments)} activations have fewer samples than channels ({site.value!r}: {worst.count} for "
        f"{len(worst.total)}), where damping decides: more calibration data would say more"
    )
    return (words,)


def guessed(graph: Graph) -> tuple[str, ...]:
    """A remark where there is little that moments without a forward pass could follow from."""
    return () if graph.remembers else (FAR_OFF,)
