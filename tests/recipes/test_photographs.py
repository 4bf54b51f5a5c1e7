"""Patches of photographs as data."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ksurgeon.calibrate.arrays import open_arrays
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.rules.load import data_folder


def test_patches_of_training_and_test_are_of_different_strips(tmp_path, monkeypatch):
    """Photographs whose every fourth strip is brighter: every test patch is of it, and no training patch."""
    prepare = find_function("photographs.py:prepare", RecipeError, data_folder("recipes"))
    photographs = tmp_path / "package"
    photographs.mkdir()
    for number in range(3):
        pixels = np.full((400, 960, 3), 50 + number, np.uint8)
        pixels[np.arange(400) // 48 % 4 == 3] += 100
        Image.fromarray(pixels).save(photographs / f"{number}.jpg", quality=100, subsampling=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    packages = iter([photographs, empty, empty])
    monkeypatch.setattr(sys.modules[prepare.__module__], "unpack_deb", lambda *_: next(packages))
    place = Path(prepare(tmp_path / "cache")["patches"])
    for split, number, shade in (("train", 3600, 50), ("test", 600, 150)):
        source = open_arrays(place, split)
        assert source is not None and len(source) == number
        for index in range(0, number, number // 40):
            example = source.read(index)
            assert np.asarray(example.value).mean() == pytest.approx(shade + example.label, abs=1)
