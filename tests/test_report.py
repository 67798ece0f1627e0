"""Reports: stable text, JSON that is JSON, and names that no markup can break."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.cost import Cost
from graphprune.errors import UsageError
from graphprune.formats import onnx as format_
from graphprune.report import Report, check_suffix
from graphprune.verify import Check
from models import digits

REPORT = Report(
    dense=Cost(1_000, 20_000, 4_000, 800),
    pruned=Cost(250, 5_000, 1_000, 600),
    dims=[
        {"name": "conv1", "kind": "channel", "before": 16, "after": 8, "exact": True},
        {"name": "norm", "kind": "hidden", "before": 64, "after": 32, "exact": False},
    ],
    frozen=[
        {"name": "head", "kind": "mlp", "size": 10, "reason": "it is the shape of an output of the model, 'logits'"},
        {"name": "tail", "kind": "mlp", "size": 5, "reason": "it is the shape of an output of the model, 'logits'"},
        {"name": "odd", "kind": "other", "size": 3, "reason": "there is no rule for Frob (node f)"},
    ],
    score="l2",
    request={"keep": 0.5, "multiple": 8},
    checks=[
        Check("permutation", True, "2 dims permuted", 1.5e-7, 1e-4),
        Check("loads and runs", False, "output 'y' is (1, 2), was (1, 3)"),
    ],
    latency=[0.004, 0.001],
    drift=0.123,
    file_bytes=(5_000, 2_000),
    sizes={"batch": 1, "(1|2)": 7},
    notes=["a note"],
    kept=[{"name": "q:head-size", "kind": "head-size", "size": 64}],
)

TEXT = """\
                   graphprune report
┏━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━┓
┃                      ┃  before ┃   after ┃  left ┃
┡━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━┩
│ parameters           │   1,000 │     250 │ 25.0% │
│ MACs                 │  20,000 │   5,000 │ 25.0% │
│ bytes of weights     │   4,000 │   1,000 │ 25.0% │
│ bytes of activations │     800 │     600 │ 75.0% │
│ file size            │   5,000 │   2,000 │ 40.0% │
│ latency              │ 4.00 ms │ 1.00 ms │ 25.0% │
│ output drift         │         │   12.3% │       │
└──────────────────────┴─────────┴─────────┴───────┘
        2 dims cut (score l2)
┏━━━━━━━┳━━━━━━━━━┳━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━┓
┃ dim   ┃ kind    ┃ before ┃ after ┃ exact      ┃
┡━━━━━━━╇━━━━━━━━━╇━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━┩
│ conv1 │ channel │     16 │     8 │ yes        │
│ norm  │ hidden  │     64 │    32 │ normalised │
└───────┴─────────┴────────┴───────┴────────────┘
             prunable, but not cut
┏━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━━┓
┃ kind      ┃ dims ┃ which       ┃
┡━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━━┩
│ head-size │    1 │ q:head-size │
└───────────┴──────┴─────────────┘
                               left whole
┏━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ dims ┃ positions ┃ why                                                 ┃
┡━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│    2 │        15 │ it is the shape of an output of the model, 'logits' │
│    1 │         3 │ there is no rule for Frob (node f)                  │
└──────┴───────────┴─────────────────────────────────────────────────────┘
passed permutation: 2 dims permuted (error 1.5e-07, limit 1.0e-04)
FAILED loads and runs: output 'y' is (1, 2), was (1, 3)
asked: keep=0.5, multiple=8
MACs and activations at batch=1
a note
"""

MARKDOWN = """\
# graphprune report

|  | before | after | left |
| --- | --- | --- | --- |
| parameters | 1,000 | 250 | 25.0% |
| MACs | 20,000 | 5,000 | 25.0% |
| bytes of weights | 4,000 | 1,000 | 25.0% |
| bytes of activations | 800 | 600 | 75.0% |
| file size | 5,000 | 2,000 | 40.0% |
| latency | 4.00 ms | 1.00 ms | 25.0% |
| output drift |  | 12.3% |  |

## 2 dims cut (score l2)

| dim | kind | before | after | exact |
| --- | --- | --- | --- | --- |
| conv1 | channel | 16 | 8 | yes |
| norm | hidden | 64 | 32 | normalised |

## prunable, but not cut

| kind | dims | which |
| --- | --- | --- |
| head-size | 1 | q:head-size |

## left whole

| dims | positions | why |
| --- | --- | --- |
| 2 | 15 | it is the shape of an output of the model, 'logits' |
| 1 | 3 | there is no rule for Frob (node f) |

## Checks

- passed permutation: 2 dims permuted (error 1.5e-07, limit 1.0e-04)
- FAILED loads and runs: output 'y' is (1, 2), was (1, 3)
- asked: keep=0.5, multiple=8
- MACs and activations at batch=1
- a note
"""


def bare(text: str) -> list[str]:
    """Lines without the spaces around them, in which only the centring of titles shows."""
    return [line.strip() for line in text.strip().splitlines()]


def test_text() -> None:
    assert bare(str(REPORT)) == bare(TEXT)
    assert bare(REPORT.render(".txt")) == bare(TEXT)


def test_markdown() -> None:
    assert REPORT.render(".md") == MARKDOWN


def test_json() -> None:
    data = json.loads(REPORT.render(".json"))
    assert data["dense"] == {"params": 1_000, "macs": 20_000, "bytes": 4_000, "activations": 800}
    assert data["pruned"]["macs"] == 5_000
    assert data["verified"] is False
    assert data["checks"][0] == {
        "name": "permutation", "passed": True, "detail": "2 dims permuted", "error": 1.5e-7, "limit": 1e-4,
    }  # fmt: skip
    assert data["latency"] == [0.004, 0.001]
    assert data["file_bytes"] == [5_000, 2_000]
    assert data["dims"] == REPORT.dims
    assert data["frozen"] == REPORT.frozen
    assert data["request"] == {"keep": 0.5, "multiple": 8}


@pytest.mark.parametrize("suffix", [".txt", ".md", ".json", ".html"])
def test_a_latency_that_was_predicted_is_told_beside_the_measured(suffix: str) -> None:
    text = replace(REPORT, predicted=(0.004, 0.0012)).render(suffix)
    if suffix == ".json":
        assert json.loads(text)["predicted"] == [0.004, 0.0012]
    else:
        cells = "".join(" " if c in "│|" else c for c in re.sub("<[^>]+>", " ", text))
        assert "latency, predicted 4.00 ms 1.20 ms 30.0% " in " ".join(cells.split())
    assert "predicted" not in REPORT.render(suffix).replace('"predicted": []', "")


def reject(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def test_json_has_no_nan() -> None:
    """A check on outputs that overflow has an infinite error; JSON has no word for it."""
    odd = replace(REPORT, drift=float("nan"), checks=[Check("permutation", False, "", float("inf"), 1e-4)])
    data = json.loads(odd.to_json(), parse_constant=reject)
    assert data["drift"] is None
    assert data["checks"][0]["error"] is None
    assert data["checks"][0]["limit"] == 1e-4


class Page(HTMLParser):
    """The tags that fetch something, and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetches += [tag for name, _ in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_needs_nothing_else() -> None:
    page = Page()
    page.feed(REPORT.render(".html"))
    assert page.fetches == []
    for words in ("graphprune report", "1,000", "normalised", "Frob", "FAILED loads and runs", "a note"):
        assert words in page.text


@pytest.mark.parametrize("suffix", ["", ".pdf", ".JSON", "json"])
def test_formats_that_do_not_exist(suffix: str) -> None:
    with pytest.raises(UsageError, match=r"end the name in \.json, \.html, \.md, \.txt"):
        check_suffix(suffix)
    with pytest.raises(UsageError):
        REPORT.render(suffix)


@pytest.mark.parametrize("name", ["[/conv]", "[bold]x[/bold]", "[red", "a|b", "a\nb", "<b>&amp;", "ünï"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".html", ".json"])
def test_names_are_shown_as_they_are(name: str, suffix: str) -> None:
    """Exporters put brackets, bars and angles into names."""
    dims = [{**REPORT.dims[0], "name": name}]
    odd = replace(REPORT, dims=dims, frozen=[{**REPORT.frozen[0], "reason": f"why {name}"}], notes=[f"note {name}"])
    text = odd.render(suffix)
    if suffix == ".json":
        assert json.loads(text)["dims"][0]["name"] == name
    elif suffix == ".html":
        page = Page()
        page.feed(text)
        assert all(part in page.text for part in name.split("\n"))
        assert "<b>" not in text
    elif suffix == ".md":
        rows = [line for line in text.splitlines() if " channel " in line]
        assert rows == [f"| {name.replace('|', chr(92) + '|').replace(chr(10), ' ')} | channel | 16 | 8 | yes |"]
    else:
        assert all(part in text for part in name.split("\n"))


def test_verified_means_checked() -> None:
    assert not replace(REPORT, checks=[]).verified
    assert replace(REPORT, checks=REPORT.checks[:1]).verified
    assert not REPORT.verified


def test_a_report_without_measurements() -> None:
    plain = Report(Cost(0, 0, 0, 0), Cost(0, 0, 0, 0), [], [], "l2", {})
    assert [row[0] for row in plain.figures()] == ["parameters", "MACs", "bytes of weights", "bytes of activations"]
    assert all(row[3] == "" for row in plain.figures())
    assert "dims cut" not in str(plain)
    assert "left whole" not in str(plain)


def test_a_report_of_a_run() -> None:
    """Its figures are those of the files, and measured where it says so."""
    images = digits.split()[2][:32]
    result = graphprune.prune(digits.PATH, keep=0.5, inputs={"image": images})
    report = result.report
    assert report.verified
    assert [check.name for check in report.checks] == ["permutation", "zero equals cut", "loads and runs"]
    assert report.dense.params == 39_250
    assert report.dense.bytes == 4 * report.dense.params
    assert [(dim["before"], dim["after"]) for dim in report.dims] == [(24, 12), (32, 16), (40, 24), (40, 24)]
    assert [dim["name"] for dim in report.frozen] == ["fc"]
    assert report.latency is not None
    assert all(0 < seconds < 1 for seconds in report.latency)
    outputs = [
        format_.run(model)({"image": images})["logits"].astype(np.float64)
        for model in (graphprune.load(digits.PATH).model, result.pruned)
    ]
    drift = np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[0])
    assert report.drift == pytest.approx(drift, rel=1e-3)
    assert report.sizes == {"batch": 32}
