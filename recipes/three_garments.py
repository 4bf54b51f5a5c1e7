"""Images of three garments each, 220 classes, made of Fashion-MNIST."""

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

from ksurgeon.calibrate.arrays import open_arrays
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

unpack_deb = find_function("fetch.py:unpack_deb", RecipeError, Path(__file__).parent)

_SIDE, _KINDS, _SHOWN = 28, 10, 3
_SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}  # the files of each, and images in them


def prepare(folder: Path) -> dict[str, Path]:
    """Images of three garments at half size in three of four places, in IDX files.

    The label tells which kinds they are of, whatever their places: 220 classes. Garments of test images are
    those of Fashion-MNIST's test images.
    """
    package = unpack_deb("dataset-fashion-mnist", folder.with_name("fashion-mnist"))
    garments = package / "usr" / "share" / "datasets" / "fashion-mnist"
    place = folder.with_name("three-garments")
    place.mkdir(parents=True, exist_ok=True)
    combinations = list(combinations_with_replacement(range(_KINDS), _SHOWN))
    for seed, (split, (name, count)) in enumerate(_SPLITS.items()):
        if (place / f"{name}-labels-idx1-ubyte").is_file():
            continue
        small, kinds = _halved(garments, split)
        of_kind = [np.flatnonzero(kinds == kind) for kind in range(_KINDS)]
        random = np.random.default_rng(seed)
        labels = random.integers(len(combinations), size=count)
        images = np.zeros((count, 4, _SIDE // 2, _SIDE // 2), np.uint8)
        for image, label in zip(images, labels, strict=True):
            shown = [random.choice(of_kind[kind]) for kind in combinations[label]]
            image[random.permutation(4)[:_SHOWN]] = small[shown]
        grid = images.reshape(count, 2, 2, _SIDE // 2, _SIDE // 2).transpose(0, 1, 3, 2, 4)
        _write(place / f"{name}-images-idx3-ubyte", grid.reshape(count, _SIDE, _SIDE))
        _write(place / f"{name}-labels-idx1-ubyte", labels.astype(np.uint8))
    return {"images": place}


def _halved(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images at half their size, each pixel the mean of four, and their labels."""
    source = open_arrays(folder, split)
    assert source is not None, folder
    examples = [source.read(i) for i in range(len(source))]
    pixels = np.stack([np.asarray(example.value.convert("L")) for example in examples])
    half = pixels.reshape(-1, _SIDE // 2, 2, _SIDE // 2, 2).mean((2, 4))
    return half.round().astype(np.uint8), np.array([example.label for example in examples])


def _write(file: Path, numbers: np.ndarray) -> None:
    part = file.with_name(f"{file.name}.part")
    header = bytes([0, 0, 8, numbers.ndim]) + np.array(numbers.shape, ">u4").tobytes()
    part.write_bytes(header + numbers.tobytes())
    part.replace(file)
