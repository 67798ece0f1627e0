"""Speech against noise, and how well a voice activity detector tells them apart.

Read speech comes with pocketsphinx (Debian pocketsphinx-testdata, BSD): five sentences of an audiobook to calibrate on,
and eight recordings of other people to score. Noise is made here: white, pink, brown, and a hum of many tones.
"""

import wave
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.packages import make, unpack_debian
from models.run import session

Sound = npt.NDArray[np.float32]
Feeds = dict[str, npt.NDArray[np.float32]]

VERSION = 1  # of the cached file: raise it when it changes
RATE, STEP, BEFORE = 16_000, 512, 64  # samples: a second, a frame, and what a frame sees of the one before it
_PACKAGE = (
    "pocketsphinx-testdata",
    "0.8+5prealpha+1-15",
    "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
)
_HEARD = 0.1  # of a recording's loudest frame: below are pauses, which count neither way
_RATIO = 2.5  # loudness of the noise under the speech that is scored, next to that of the speech


def calibration(n: int, seed: int) -> list[Feeds]:
    """`n` recordings as inputs: sentences of the audiobook with noise under them, and noise alone, by `seed`."""
    rng = np.random.default_rng(seed)
    spoken = [sound for name, sound in recordings().items() if name.startswith("librivox")]
    made = []
    for at in range(n):
        sound = spoken[rng.integers(len(spoken))]
        under = noise(len(sound), rng, at)
        made.append(feeds(under if at % 3 == 2 else _mixed(sound, under, float(rng.uniform(0.05, 1)))))
    return made


def detection(model: str | Path | bytes, seed: int = 0) -> float:
    """The area under the ROC curve: frames of speech in noise, 2.5 times as loud, against noise alone; .5 is chance."""
    from scipy.stats import rankdata

    rng = np.random.default_rng(seed)
    loaded = session(model)
    scores: dict[bool, list[Sound]] = {True: [], False: []}
    held = {name: sound for name, sound in recordings().items() if not name.startswith("librivox")}
    for at, sound in enumerate(held.values()):
        under = noise(len(sound), rng, at)
        for speech in (True, False):
            given = feeds(_mixed(sound, under, _RATIO) if speech else under)
            scores[speech].append(loaded.run(["speech_probs"], given)[0].ravel()[_heard(sound)])
    positive, negative = (np.concatenate(scores[speech]) for speech in (True, False))
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return float((ranks / len(positive) - (len(positive) + 1) / 2) / len(negative))


def feeds(sound: Sound) -> Feeds:
    """A recording as the inputs of Silero VAD: frames with what came before them, and a state of zeros."""
    frames = len(sound) // STEP
    padded = np.concatenate([np.zeros(BEFORE, np.float32), sound])
    rows = np.stack([padded[at * STEP : at * STEP + BEFORE + STEP] for at in range(frames)])
    state = np.zeros((1, 1, 128), np.float32)
    return {"input": rows, "h": state, "c": state}


def noise(length: int, rng: np.random.Generator, kind: int) -> Sound:
    """Noise of one of four kinds, of deviation 0.05."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    hertz = np.maximum(np.fft.rfftfreq(length, 1 / RATE), 20)
    if kind % 4 == 3:
        spectrum *= 1 / hertz + (np.isin(np.round(hertz), 50 * np.arange(1, 20)))
    else:
        spectrum /= hertz ** (kind % 4 / 2)
    made = np.fft.irfft(spectrum, length)
    return np.asarray(0.05 * made / made.std(), np.float32)


def _mixed(sound: Sound, under: Sound, ratio: float) -> Sound:
    """Speech as loud as noise is, with ``ratio`` of the noise under it."""
    loud = np.repeat(_heard(sound), STEP)
    return np.asarray(sound * (0.05 / sound[: len(loud)][loud].std()) + ratio * under, np.float32)


def _heard(sound: Sound) -> npt.NDArray[np.bool_]:
    """For each frame whether it is no pause."""
    energy = sound[: len(sound) // STEP * STEP].reshape(-1, STEP).std(1)
    return np.asarray(energy > _HEARD * energy.max())


@cache
def recordings() -> dict[str, Sound]:
    """All recordings by name, -1 to 1, 16,000 samples a second."""
    with np.load(make(f"speech-{VERSION}.npz", _build)) as held:
        return {name: held[name].astype(np.float32) / 32768 for name in held.files}


def _build(path: Path) -> None:
    data = unpack_debian(*_PACKAGE, path.parent) / "usr" / "share" / "pocketsphinx" / "test" / "data"
    found = {}
    for file in sorted((*data.glob("*/*.wav"), *data.glob("*.raw"))):
        name = "-".join(file.relative_to(data).with_suffix("").parts)
        if file.suffix == ".wav":
            with wave.open(str(file)) as opened:
                found[name] = np.frombuffer(opened.readframes(opened.getnframes()), "<i2")
        else:
            found[name] = np.frombuffer(file.read_bytes(), "<i2")
    np.savez_compressed(path, **found)  # type: ignore[arg-type]
