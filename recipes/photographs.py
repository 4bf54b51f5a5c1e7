"""Patches of 31 photographs, the data of the recipes shufflenet and permuted_images."""

from pathlib import Path

import numpy as np
from PIL import Image

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

unpack_deb = find_function("fetch.py:unpack_deb", RecipeError, Path(__file__).parent)


_PHOTOS = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
_WIDE, _SIDE = 960, 32  # pixels of a photograph, and of a patch
_STRIP, _GAP = 48, 8  # height of the strips of a photograph, and what lies between training and test patches
_TRAIN, _TEST = 1200, 200  # patches of a photograph


def prepare(folder: Path) -> dict[str, Path]:
    """Patches of photographs in the layout of CIFAR-10's binary version, for all recipes that take them.

    The label is the photograph; every fourth strip of each is held out.
    """
    folder = folder.with_name("photographs")
    place = folder / "patches"
    if not (place / "test_batch.bin").is_file():
        files = sorted(file for package in _PHOTOS for file in _photographs(unpack_deb(package, folder)))
        random = np.random.default_rng(0)
        train, test = [], []
        for label, file in enumerate(files):
            image = Image.open(file).convert("RGB")
            pixels = np.asarray(image.resize((_WIDE, round(image.height * _WIDE / image.width))))
            train += _patches(pixels, (0, 3 * _STRIP - _GAP), _TRAIN, label, random)
            test += _patches(pixels, (3 * _STRIP, 4 * _STRIP - _GAP), _TEST, label, random)
        place.mkdir(parents=True, exist_ok=True)
        names = "\n".join(file.stem for file in files) + "\n"
        (place / "batches.meta.txt").write_text(names, encoding="utf-8")
        order = random.permutation(len(train))
        for number, part in enumerate(np.array_split(order, 5), 1):
            np.stack([train[i] for i in part]).tofile(place / f"data_batch_{number}.bin")
        np.stack(test).tofile(place / "test_batch.part")
        (place / "test_batch.part").replace(place / "test_batch.bin")
    return {"patches": place}


def _photographs(package: Path) -> list[Path]:
    """Photographs of a package, each once."""
    found = [
        file for file in package.rglob("*.jpg") if not file.is_symlink() and "abstract" not in file.parts
    ]
    return [file for file in found if file.name != "GreenTraditional.jpg"]


def _patches(
    pixels: np.ndarray, strip: tuple[int, int], count: int, label: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Patches within these rows of every four strips, as rows of CIFAR's binary version: a label, and the
    three planes of an image."""
    found = []
    for _ in range(count):
        y = 4 * _STRIP * random.integers(len(pixels) // (4 * _STRIP)) + random.integers(
            strip[0], strip[1] - _SIDE + 1
        )
        x = random.integers(_WIDE - _SIDE + 1)
        patch = pixels[y : y + _SIDE, x : x + _SIDE].transpose(2, 0, 1)
        found.append(np.concatenate([np.array([label], np.uint8), patch.reshape(-1)]))
    return found
