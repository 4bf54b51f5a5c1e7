"""Images of every mode become RGB of 8 bits."""

import numpy as np
import pytest
from PIL import Image

from ksurgeon.calibrate import pictures
from ksurgeon.calibrate.pictures import as_rgb, open_picture

RAMP = np.linspace(0, 1, 4096).reshape(64, 64)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", (RAMP * 65535).astype(np.uint16)),
        ("a.tiff", (RAMP * 65535).astype(np.uint16)),
        ("a.pgm", (RAMP * 65535).astype(np.uint16)),
        ("big.tiff", (RAMP * 65535).astype(">u2")),
        ("a.tif", RAMP.astype(np.float32)),
        ("a.bmp", (RAMP * 255).astype(np.uint8)),
    ],
)
def test_grey_is_scaled(name, values, tmp_path):
    Image.fromarray(values).save(tmp_path / name)
    found = np.asarray(open_picture(tmp_path / name))
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(float) - RAMP[..., None] * 255).max() <= 1 and len(np.unique(found)) == 256


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.float32) * 255, "from 0 to 255; expected 0 to 1"),
        (RAMP.astype(np.float32) - 0.5, "expected 0 to 1"),
        (np.full((4, 4), np.nan, np.float32), "expected 0 to 1"),
        ((RAMP * 2**30).astype(np.int32), "save it with 8 or 16 bits"),
    ],
)
def test_values_without_a_fixed_range_are_refused(values, expected):
    with pytest.raises(ValueError, match=expected):
        as_rgb(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_what_pil_makes_of_them(mode):
    red = Image.new("RGB", (4, 4), (250, 10, 10)).convert("RGBA")
    between = {"La": "LA", "RGBa": "RGBA", "PA": "P", "LA": "LA", "RGBA": "RGBA"}.get(mode, "RGB")
    found = as_rgb(red.convert(between).convert(mode))
    assert found.mode == "RGB"
    grey = mode in ("1", "L", "LA", "La")
    first, second, _ = (int(value) for value in np.asarray(found)[0, 0])
    assert (first == second) if grey else (first > 240 and second < 20)


def test_photographs_are_turned_upright(tmp_path):
    wide = Image.new("RGB", (8, 4), "red")
    wide.getexif()[0x0112] = 6  # taken with the camera on its side
    wide.save(tmp_path / "a.jpg", exif=wide.getexif())
    assert open_picture(tmp_path / "a.jpg").size == (4, 8)


@pytest.mark.parametrize("mode", ["1", "L", "F"])
def test_an_image_of_too_many_pixels_is_not_decoded(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MOST", 63)
    Image.new(mode, (8, 8)).save(tmp_path / "x.tif")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="8 × 8 pixels; images of up to 63 are read"):
        pictures.open_picture(tmp_path / "x.tif")
