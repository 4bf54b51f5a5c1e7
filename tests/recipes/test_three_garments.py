"""The data of the recipe shufflenet_classes."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

from ksurgeon.calibrate.arrays import open_arrays
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.schema import load_recipe
from tests.recipes.patches import write_fashion_mnist

RECIPE = load_recipe("shufflenet_classes")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_fashion_mnist(tmp_path, classes=10, count=50)
    prepare = find_function(RECIPE.prepare, RecipeError, RECIPE.folder)
    module = prepare.__globals__
    monkeypatch.setitem(module, "_SPLITS", {"train": ("train", 300), "test": ("t10k", 60)})
    folder = tmp_path / "ksurgeon" / "recipes" / "shufflenet_classes"
    return prepare(folder)["images"]


def test_an_image_shows_what_its_label_tells(images):
    """Three of four quarters are garments at half size, of the kinds whose combination has that number."""
    combinations = list(combinations_with_replacement(range(10), 3))
    assert len(combinations) == 220
    garments = images.parent / "fashion-mnist" / "dataset-fashion-mnist" / "usr/share/datasets/fashion-mnist"
    for split, count in (("train", 300), ("test", 60)):
        source, own = open_arrays(images, split), open_arrays(garments, split)
        assert len(source) == count
        small = {}
        for i in range(len(own)):
            garment = own.read(i)
            pixels = np.asarray(garment.value)[..., 0].astype(float).reshape(14, 2, 14, 2).mean((1, 3))
            small[pixels.round().astype(np.uint8).tobytes()] = garment.label
        for example in map(source.read, range(count)):
            pixels = np.asarray(example.value)[..., 0]
            quarters = [pixels[y : y + 14, x : x + 14] for y in (0, 14) for x in (0, 14)]
            kinds = sorted(small[quarter.tobytes()] for quarter in quarters if quarter.any())
            assert tuple(kinds) == combinations[example.label]
