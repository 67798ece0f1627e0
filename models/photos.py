"""Photographs for ImageNet models: twenty of ImageNet, and animals, fruit and things that were cut out and shot alone.

The twenty come with foolbox (MIT), which tests attacks on them; the others are stamps of the drawing program Tux Paint
(Debian tuxpaint-stamps-default, each stamp with a licence of its own, all free). What a stamp shows is read off its
file name, and only names that are those of ImageNet classes count: `LABELS`. They stand on a plain background, unlike
what the models were trained on: accuracy says something next to that of the dense model only.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.packages import make, unpack, unpack_debian

Pixels = npt.NDArray[np.uint8]
Images = npt.NDArray[np.float32]

VERSION = 1  # of the cached file: raise it when it changes
SIZE = 224
_FOOLBOX = ("foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb")
_STAMPS = (
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
_FOLDERS = ("animals", "food", "hobbies", "household", "plants", "vehicles")
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # of ImageNet
_STD = np.array((0.229, 0.224, 0.225), np.float32)
_PAPER, _MARGIN = 235, 12  # grey of the background, and pixels around a stamp

LABELS: dict[str, tuple[int, ...]] = {
    "animals/birds/chicken_profile": (7, 8),
    "animals/birds/hen": (8,),
    "animals/birds/rooster": (7,),
    "animals/birds/ostrich": (9,),
    "animals/birds/magpie": (18,),
    "animals/birds/vulture": (23,),
    "animals/birds/owl": (24,),
    "animals/birds/peacock": (84,),
    "animals/birds/rainbow-lorikeet": (90,),
    "animals/birds/tucan": (96,),
    "animals/birds/drake": (97,),
    "animals/birds/gander": (99,),
    "animals/birds/pink_flamingo": (130,),
    "animals/birds/heron_greatblue": (131,),
    "animals/birds/crowned_crane": (134,),
    "animals/birds/pelican": (144,),
    "animals/birds/magellanic_penguin": (145,),
    "animals/birds/penguin": (145,),
    "animals/amphibians/frog": (30, 31, 32),
    "animals/amphibians/frog-1": (30, 31, 32),
    "animals/lizards/iguana": (39,),
    "animals/mammals/echidna": (102,),
    "animals/marsupials/koala": (105,),
    "animals/marsupials/wombat": (106,),
    "animals/insects/Brown_slug": (114,),
    "animals/fish/lobster": (122, 123),
    "animals/mammals/aquatic/orca": (148,),
    "animals/mammals/aquatic/sea_lion": (150,),
    "animals/mammals/aquatic/otter": (360,),
    "animals/mammals/dogs/dingo": (273,),
    "animals/mammals/dogs/fox": (277, 278),
    "animals/mammals/cats/lion": (291,),
    "animals/mammals/cats/lion-2": (291,),
    "animals/mammals/cats/tiger": (292,),
    "animals/mammals/cats/tiger_sumatran": (292,),
    "animals/mammals/bears/bear": (294, 295),
    "animals/mammals/bears/european-bear": (294,),
    "animals/mammals/bears/toys/edward_bear": (850,),
    "animals/insects/fly": (308,),
    "animals/insects/bee": (309,),
    "animals/insects/grasshopper": (311,),
    "animals/insects/mantis": (315,),
    "animals/mammals/rodents/rabbit": (330, 331, 332),
    "animals/mammals/rodents/rabbit-2": (330, 331, 332),
    "animals/mammals/rabbit_little": (330, 331, 332),
    "animals/mammals/rodents/squirrel": (335,),
    "animals/mammals/rodents/marmot": (336,),
    "animals/mammals/rodents/beaver": (337,),
    "animals/mammals/equines/zebra": (340,),
    "animals/mammals/pig": (341,),
    "animals/mammals/pig_golden": (341,),
    "animals/mammals/pig_golden2": (341,),
    "animals/mammals/wildboar": (342,),
    "animals/mammals/hippopotamus": (344,),
    "animals/mammals/bovines/bull": (345,),
    "animals/mammals/bovines/bison": (347,),
    "animals/mammals/bovines/ram": (348,),
    "animals/mammals/camel/camel": (354,),
    "animals/mammals/camel/dromedary": (354,),
    "animals/mammals/ferret": (358, 359),
    "animals/mammals/badger": (362,),
    "animals/mammals/apes/gorilla": (366,),
    "animals/mammals/apes/chimp": (367,),
    "animals/mammals/elephant": (385, 386),
    "animals/fish/clownfish": (393,),
    "animals/fish/lionfish": (396,),
    "hobbies/binoculars": (447,),
    "hobbies/camera_35mm": (759,),
    "hobbies/music/percussion/drumkit": (541,),
    "hobbies/music/string/cello": (486,),
    "hobbies/music/string/guitar_classical": (402,),
    "hobbies/music/string/guitar_electric": (546,),
    "hobbies/music/string/violin": (889,),
    "hobbies/music/wind/bassoon": (432,),
    "household/dishes/mug": (504,),
    "household/dishes/teapot": (849,),
    "household/garbagecan": (412,),
    "household/toilet": (861,),
    "household/tools/hammer": (587,),
    "vehicles/auto/sportscar2": (817,),
    "vehicles/cycle/pink_tricycle": (870,),
    "vehicles/emergency/firetruck": (555,),
    "vehicles/flight/balloon360": (417,),
    "vehicles/flight/planes/747": (404,),
    "vehicles/garbagetruck": (569,),
    "vehicles/race/indycar": (751,),
    "vehicles/wheel_tractor": (866,),
    "food/fruit/Strawberry2": (949,),
    "food/fruit/strawberry": (949,),
    "food/fruit/apple_granny_smith": (948,),
    "food/fruit/apple_green": (948,),
    "food/fruit/orange": (950,),
    "food/fruit/lemon": (951,),
    "food/fruit/pineapple": (953,),
    "food/fruit/banana": (954,),
    "food/fruit/cherimoya": (956,),
    "food/fruit/pomegranate": (957,),
    "food/pizza": (963,),
    "food/vegetables/broccoli": (937,),
    "food/vegetables/pepper": (945,),
    "food/vegetables/yellowpepper": (945,),
    "food/vegetables/mushroom": (947,),
    "food/vegetables/corn": (987, 998),
    "plants/mushrooms/cep": (997,),
    "plants/mushrooms/cep-1": (997,),
    "plants/mushrooms/cep-2": (997,),
}
"""The ImageNet classes that a stamp may be named as."""


def labelled() -> tuple[Images, list[tuple[int, ...]]]:
    """Images [n, 3, 224, 224] as ImageNet models take them, and the classes that are right for each."""
    pixels, names = _load()
    found = [(at, _classes(name)) for at, name in enumerate(names) if _classes(name)]
    return scaled(pixels[[at for at, _ in found]]), [classes for _, classes in found]


def others(n: int, seed: int = 0) -> Images:
    """`n` different stamps that show something else, some of them mirrored and each a little shifted, by `seed`."""
    pixels, names = _load()
    rng = np.random.default_rng(seed)
    free = [at for at, name in enumerate(names) if not _classes(name)]
    chosen = pixels[rng.permutation(free)[:n]]
    turned = [image[:, ::-1] if rng.random() < 0.5 else image for image in chosen]
    return scaled(np.stack([np.roll(image, rng.integers(-16, 17, 2), (0, 1)) for image in turned]))


def scaled(pixels: Pixels) -> Images:
    """[n, 224, 224, 3] as bytes -> [n, 3, 224, 224] of mean 0 and deviation 1 over ImageNet."""
    images = (pixels.astype(np.float32) / 255 - _MEAN) / _STD
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def _classes(name: str) -> tuple[int, ...]:
    return (int(name.rpartition("_")[2]),) if name.startswith("imagenet_") else LABELS.get(name, ())


def _load() -> tuple[Pixels, list[str]]:
    with np.load(make(f"photos-{VERSION}.npz", _build)) as held:
        return held["pixels"], held["names"].tolist()


def _build(path: Path) -> None:
    data = unpack(*_FOOLBOX, path.parent) / "foolbox" / "data"
    stamps = unpack_debian(*_STAMPS, path.parent) / "usr" / "share" / "tuxpaint" / "stamps"
    files = {file.stem: file for file in sorted(data.glob("imagenet_*.jpg"))}
    for folder in _FOLDERS:
        found = sorted((stamps / folder).rglob("*.png"))
        whole = [file for file in found if "cartoon" not in file.parts and not file.stem.endswith("_mirror")]
        files |= {str(file.relative_to(stamps).with_suffix("")): file for file in whole}
    missing = set(LABELS) - set(files)
    if missing:
        raise RuntimeError(f"no stamps {', '.join(sorted(missing))} in {_STAMPS[0]}")
    np.savez_compressed(path, pixels=np.stack([_read(file) for file in files.values()]), names=np.array(list(files)))


def _read(file: Path) -> Pixels:
    """A photograph, its middle in a square; a stamp as large as fits, on grey."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if opened.mode == "RGB":
            return np.asarray(ImageOps.fit(opened, (SIZE, SIZE), Image.Resampling.BICUBIC), np.uint8)
        stamp = ImageOps.contain(opened.convert("RGBA"), (SIZE - 2 * _MARGIN,) * 2, Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (SIZE, SIZE), (_PAPER, _PAPER, _PAPER, 255))
    canvas.alpha_composite(stamp, ((SIZE - stamp.width) // 2, (SIZE - stamp.height) // 2))
    return np.asarray(canvas.convert("RGB"), np.uint8)
