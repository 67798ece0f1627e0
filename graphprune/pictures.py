"""Pictures and pages that need nothing else: SVG and HTML as text, without a script or a file beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Any, NamedTuple

COLOURS = ("#17682f", "#1f5fa8", "#b5651d", "#7a3a9a", "#b00020", "#5f6b00", "#00797a", "#555555")
_WIDTH = 640
_EDGE = 60
_LINE = 22
_LETTERS = 32
"""Of a name that are shown."""
_LEFT, _LONG = 260, 260
"""Where names end and bars or cells begin, and how long a bar of all is."""
_DEEP = (176, 0, 32)
_FAINTEST = 1e-4
"""The share of the largest number that has no colour in a heat map."""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ddd }}
td {{ font-variant-numeric: tabular-nums; overflow-wrap: anywhere }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
svg {{ max-width: 100%; height: auto }} summary {{ cursor: pointer; padding: .2rem 0 }}
.passed {{ color: #17682f }} .failed {{ color: #b00020; font-weight: bold }}
</style></head><body>{body}</body></html>
"""


class Dot(NamedTuple):
    """A point of a `scatter`: where it is, the number of its series, whether it is filled, and what it says."""

    x: float
    y: float
    series: int
    filled: bool
    words: str


def page(title: str, *parts: str) -> str:
    """An HTML page of ``parts``, one after the other."""
    return _PAGE.format(title=escape(title), body="".join(parts))


def section(title: str, *parts: str) -> str:
    """A heading, and what stands under it."""
    return f"<h2>{escape(title)}</h2>{''.join(parts)}"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of text."""
    cells = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>"


def items(lines: Iterable[str], styles: Iterable[str] = ()) -> str:
    """A list of text, each line in its style of the page."""
    both = zip_longest(lines, styles, fillvalue="")
    made = "".join(f'<li class="{style}">{escape(line)}</li>' for line, style in both)
    return f"<ul>{made}</ul>"


def fold(title: str, *parts: str) -> str:
    """What shows when its title is clicked at."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A bar a row, as long as its share of 1, with its name before and words behind it."""
    shapes, height = [], 0
    for name, share, words in rows:
        y = height + 16
        shapes.append(_label(name, y))
        shapes.append(f'<rect x="{_LEFT}" y="{height + 3}" width="{_LONG}" height="16" fill="#eee"/>')
        long = f"{_LONG * share:.1f}"
        shapes.append(f'<rect x="{_LEFT}" y="{height + 3}" width="{long}" height="16" fill="{COLOURS[0]}"/>')
        shapes.append(_text(_LEFT + _LONG + 8, y, words))
        height += _LINE
    return _svg(_WIDTH, height, shapes)


def heat_map(rows: Mapping[str, Sequence[float | None]], columns: Sequence[str]) -> str:
    """A cell a number, the deeper the larger by its logarithm; ``rows`` and ``columns`` are named."""
    every = [value for row in rows.values() for value in row if value is not None and value > 0]
    high = max(every, default=1.0)
    low = max(min(every, default=1.0), high * _FAINTEST)
    wide = max(64, min(110, 360 // max(1, len(columns))))
    shapes = [_text(_LEFT + wide * (i + 0.5), 16, name, "middle") for i, name in enumerate(columns)]
    for number, (name, row) in enumerate(rows.items(), 1):
        y = number * _LINE
        shapes.append(_label(name, y + 16))
        for i, value in enumerate(row):
            depth = 0.0 if value is None or value <= low else math.log(value / low) / math.log(high / low)
            at = _LEFT + wide * i
            shapes.append(f'<rect x="{at}" y="{y}" width="{wide - 2}" height="{_LINE - 2}" fill="{_shade(depth)}"/>')
            said = "" if value is None else f"{value:.2g}"
            shapes.append(_text(at + wide / 2, y + 15, said, "middle", "#fff" if depth > 0.55 else "#222"))
    return _svg(_LEFT + wide * len(columns), _LINE * (len(rows) + 1), shapes)


def scatter(dots: Sequence[Dot], line: Sequence[Dot], across: str, up: str = "", series: Sequence[str] = ()) -> str:
    """``dots`` over shares of ``across``, those of ``line`` joined; ``series`` are named where there are several."""
    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    right, bottom = _WIDTH - _EDGE, 320

    def at(dot: Dot) -> tuple[float, float]:
        share = (dot.y - low) / ((high - low) or 1.0)
        return _EDGE + (right - _EDGE) * dot.x, bottom - (bottom - _EDGE) * share

    shapes = [f'<path fill="none" stroke="#999" d="M{_EDGE} {_EDGE}V{bottom}H{right}"/>']
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, line))
    shapes.append(f'<polyline fill="none" stroke="#999" points="{joined}"/>')
    for dot in dots:
        (x, y), colour = at(dot), COLOURS[dot.series % len(COLOURS)]
        fill, said = colour if dot.filled else "#fff", f"<title>{escape(dot.words)}</title>"
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="{colour}" fill="{fill}">{said}</circle>')
    shapes += [_text(_EDGE - 6, bottom + 4, f"{low:.4g}", "end"), _text(_EDGE - 6, _EDGE + 4, f"{high:.4g}", "end")]
    shapes += [_text(_EDGE + (right - _EDGE) * share, bottom + 20, f"{share:.0%}", "middle") for share in (0, 0.5, 1)]
    shapes += [_text(_EDGE, _EDGE - 14, up), _text(right + 18, bottom + 36, across, "end")]
    for number, name in enumerate(series):
        x, y = _EDGE + 140 * (number % 4), bottom + 48 + 18 * (number // 4)
        shapes.append(f'<rect x="{x}" y="{y - 9}" width="9" height="9" fill="{COLOURS[number % len(COLOURS)]}"/>')
        shapes.append(_text(x + 14, y, name))
    return _svg(_WIDTH, bottom + 36 + 18 * math.ceil(len(series) / 4), shapes)


def _svg(width: float, height: float, shapes: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(shapes)}</svg>\n"
    )


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _label(name: str, y: float) -> str:
    """Both ends of a long name, before what it is the name of; all of it under the pointer."""
    half = _LETTERS // 2
    short = name if len(name) <= _LETTERS else f"{name[:half]}…{name[-half:]}"
    return f"<g>{_text(_LEFT - 10, y, short, 'end')}<title>{escape(name)}</title></g>"


def _shade(depth: float) -> str:
    """From white to the deepest."""
    return "#" + "".join(f"{round(255 + (end - 255) * depth):02x}" for end in _DEEP)
