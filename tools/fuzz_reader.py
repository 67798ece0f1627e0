"""Any bytes into the reader and the analysis, guided by coverage: nothing but a GraphpruneError may come out.

    pip install atheris                         a tool of its own: wheels for Linux, no dependency of this package
    python -m tools.fuzz_reader -max_total_time=600

Options are those of libFuzzer. It starts from the rules table, grows a corpus of what reached new lines of graphprune,
and stops at the first finding, whose file it writes. Half of the mutations are those of libFuzzer, on bytes; the others
those of tools/mutate.py, on structure. No model is run: what onnx does not infer stays unknown.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random
from unittest import mock

import atheris
import onnx
from google.protobuf.message import DecodeError

with atheris.instrument_imports(include=["graphprune"]):
    from graphprune.analysis import analyse
    from graphprune.errors import GraphpruneError
    from graphprune.formats import onnx as format_
    from graphprune.formats.onnx import view


from models.packages import cache
from tests.cases import CASES
from tools.mutate import MUTATIONS

LONGEST = 1 << 14
"""Bytes of a file."""


def target(data: bytes) -> None:
    """Read and analyse a file that holds ``data``."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file, mock.patch.object(view, "probe", return_value={}):
        file.write(data)
        file.flush()
        with suppress(GraphpruneError):
            str(analyse(format_.read(file.name).graph))


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """Another file: bytes changed, or its structure."""
    dice = Random(seed)
    if dice.random() < 0.5:
        try:
            proto = onnx.load_model_from_string(bytes(data))
            MUTATIONS[dice.choice(list(MUTATIONS))](proto, dice)
            made = bytes(proto.SerializeToString())
        except (DecodeError, IndexError, ValueError):
            made = b""
        if 0 < len(made) <= longest:
            return made
    return bytes(atheris.Mutate(data, longest))


def main() -> None:
    """Start libFuzzer on a corpus in the cache."""
    corpus = cache() / "fuzz" / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(CASES):
        path = corpus / f"case-{number}.onnx"
        data = case.model().SerializeToString()
        if len(data) <= LONGEST and not path.exists():
            path.write_bytes(data)
    found = f"-artifact_prefix={Path(corpus).parent}/"
    options = [f"-max_len={LONGEST}", "-timeout=30", "-rss_limit_mb=4096", "-len_control=0", found]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], target, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
