"""A score for text recognisers: draw lines of text, read them, count the wrong characters.

The lines are drawn with Pillow and the font that comes inside it, so the score needs no data set. A recogniser has to
carry its alphabet in its own metadata ("character", one a line), and a file that lost it cannot be scored. The lines
are noisy print in one font: enough to show damage to a model, not to compare good recognisers.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.run import session

Image = npt.NDArray[np.uint8]  # [height, width, 3]

HEIGHT = 48  # of what the recogniser sees
WIDTH = 320  # the least width: shorter lines are padded on the right

WORDS = (
    "about account after again amount animal answer arrive autumn bakery basket before better bridge bright bring "
    "butter button candle carbon castle center change church circle clear clock cloud coffee common corner cotton "
    "cover dance danger decide degree dinner doctor double dream early eight engine enough evening famous father "
    "feather figure finger flower follow forest friend garden gentle glass ground guitar hammer happy harbor "
    "heavy hidden house hundred island jacket journey jungle kettle kitchen ladder language leather letter "
    "library little machine market measure message middle minute mirror mother mountain museum music narrow "
    "number object ocean orange other packet paper people pepper picture planet pocket quality quick quiet rabbit "
    "reason record river rocket sample school season second shadow silver simple sister spring square station "
    "stream street summer table thing three ticket tomorrow travel under useful valley village visit voice water "
    "weather window winter wonder yellow young zebra"
).split()


def text_lines(n: int, seed: int = 0) -> list[tuple[Image, str]]:
    """`n` drawn lines of two or three words or numbers, dark on light or light on dark, small or large, with noise.

    >>> [text for _, text in text_lines(2, seed=0)]
    ['object enough 17.0', '5041 7297 (little)']
    """
    rng = np.random.default_rng(seed)
    texts = [_text(rng) for _ in range(n)]
    return [(_draw(text, rng), text) for text in texts]


def batch(images: Sequence[Image]) -> npt.NDArray[np.float32]:
    """All images as one input of the recogniser, [n, 3, 48, the widest], the shorter ones padded.

    >>> batch([image for image, _ in text_lines(3)]).shape
    (3, 3, 48, 338)
    """
    lines = [_prepare(image)[0] for image in images]
    result = np.zeros((len(lines), 3, HEIGHT, max(line.shape[2] for line in lines)), dtype=np.float32)
    for padded, line in zip(result, lines, strict=True):
        padded[:, :, : line.shape[2]] = line
    return result


def recognise(model: str | Path | bytes, images: Sequence[Image]) -> list[str]:
    """What an ONNX text recogniser (a path or the bytes of a file) reads in each image, without spaces at the ends."""
    loaded = session(model)
    metadata = loaded.get_modelmeta().custom_metadata_map
    if "character" not in metadata:
        raise ValueError("the model has no 'character' metadata: what its classes stand for is unknown")
    alphabet = ["", *metadata["character"].splitlines(), " "]  # class 0 is the blank of CTC, the last one the space
    name = loaded.get_inputs()[0].name
    return [_decode(loaded.run(None, {name: _prepare(image)})[0][0], alphabet) for image in images]


def character_error(model: str | Path | bytes, n: int = 200) -> float:
    """Wrong characters (edit distance) as a share of all characters, over `n` drawn lines; the same lines each time."""
    lines = text_lines(n)
    read = recognise(model, [image for image, _ in lines])
    wrong = sum(edit_distance(text, guess) for (_, text), guess in zip(lines, read, strict=True))
    return wrong / sum(len(text) for _, text in lines)


def edit_distance(a: str, b: str) -> int:
    """The least number of characters to insert, delete or replace to turn `a` into `b`.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _text(rng: np.random.Generator) -> str:
    parts = []
    for _ in range(rng.integers(2, 4)):
        word = str(rng.choice(WORDS))
        number = str(rng.integers(10, 10000))
        styles = (word, word, word.capitalize(), word.upper(), number, f"{number[:2]}.{number[-1]}", f"({word})")
        parts.append(styles[rng.integers(len(styles))])
    return " ".join(parts)


def _draw(text: str, rng: np.random.Generator) -> Image:
    from PIL import Image as Canvas
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(float(rng.integers(12, 36)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(2, 10))
    light, dark = rng.integers(150, 256, 3), rng.integers(0, 110, 3)
    paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
    canvas = Canvas.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), tuple(paper.tolist()))
    ImageDraw.Draw(canvas).text((margin - left, margin - top), text, fill=tuple(ink.tolist()), font=font)
    noise = rng.normal(0, rng.uniform(0, 25), (canvas.height, canvas.width, 3))
    return np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8)


def _prepare(image: Image) -> npt.NDArray[np.float32]:
    """[1, 3, 48, at least 320] between -1 and 1; the padding is 0."""
    from PIL import Image as Canvas

    height, width, _ = image.shape
    wanted = max(1, round(width * HEIGHT / height))
    scaled = Canvas.fromarray(image).resize((wanted, HEIGHT), Canvas.Resampling.BILINEAR)
    pixels = np.asarray(scaled, dtype=np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1  # blue first
    padded = np.zeros((1, 3, HEIGHT, max(WIDTH, wanted)), dtype=np.float32)
    padded[0, :, :, :wanted] = pixels
    return padded


def _decode(scores: npt.NDArray[np.float32], alphabet: list[str]) -> str:
    """The best class at each step, runs taken as one, blanks dropped. `scores` is [steps, classes]."""
    return "".join(alphabet[index] for index, _ in groupby(scores.argmax(axis=1).tolist())).strip()
