"""Image files as models take them: RGB with 8 bits, upright."""

from typing import Any

import numpy as np

__all__ = ["as_rgb", "open_picture"]

_MOST = 2**26  # pixels of an image; networks take far fewer
_PREMULTIPLIED = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}  # what PIL converts to RGB from


def open_picture(file: Any) -> Any:
    """An image file as an image of PIL in RGB, turned as its EXIF data say.

    Raises:
        OSError, ValueError: it is damaged, no image, or one without a fixed range of values.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as picture:
        _require_few_pixels(picture)
        upright = ImageOps.exif_transpose(picture)
        upright.format = picture.format
        return as_rgb(upright)


def as_rgb(picture: Any) -> Any:
    """An image of PIL as one of 8 bits a channel in RGB; an alpha channel is dropped.

    16 bits are scaled from [0, 65535], floating-point values from [0, 1].

    Raises:
        ValueError: floating-point values outside of [0, 1], or integers of 32 bits, which have no range, or
            more than 67 million pixels.
    """
    from PIL import Image

    _require_few_pixels(picture)
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
    elif mode == "F":
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"floating-point values from {low:.3g} to {high:.3g}; expected 0 to 1")
        grey = np.rint(values * 255)
    elif mode == "I":
        raise ValueError("32-bit integers have no fixed range; save it with 8 or 16 bits")
    else:
        return picture.convert(_PREMULTIPLIED.get(mode, mode)).convert("RGB")
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _require_few_pixels(picture: Any) -> None:
    """Before it is decoded, which takes memory for all of them: a few bytes can stand for many."""
    width, height = picture.size
    if width * height > _MOST:
        raise ValueError(f"{width} × {height} pixels; images of up to {_MOST:,} are read: make it smaller")
