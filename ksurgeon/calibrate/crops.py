"""Crops of pictures: random ones to train on, and the middle to evaluate."""

from collections.abc import Callable
from typing import Any

import torch

from ksurgeon.calibrate.preprocess import IMAGE_MEAN, IMAGE_STD

__all__ = ["crops"]

_MIDDLE = 7 / 8  # of a resized picture's shorter side


def crops(
    size: int, padding: int = 0, flip: bool = True, scale: tuple[float, float] | None = None
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The transform of training pictures, and that of held-out ones.

    Args:
        size: of the crop's sides.
        padding: black pixels around a picture before it is cropped at random; not with ``scale``.
        flip: whether every second picture is mirrored.
        scale: shares of a picture's area that a random crop may have, which is then resized; held-out
            pictures are resized, too. Left out, nothing is resized, and a picture smaller than the crop
            raises ``ValueError``.
    """
    from torchvision.transforms import v2

    if scale is None:
        random: list[Any] = [v2.Lambda(lambda picture: _large_enough(picture, size))]
        middle = [*random, v2.CenterCrop(size)]
        random += [v2.RandomCrop(size, padding or None)]
    else:
        random = [v2.RandomResizedCrop(size, scale, antialias=True)]
        middle = [v2.Resize(round(size / _MIDDLE), antialias=True), v2.CenterCrop(size)]
    if flip:
        random.append(v2.RandomHorizontalFlip())
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGE_MEAN, IMAGE_STD)]
    return tuple(v2.Compose([v2.ToImage(), *steps, *last]) for steps in (random, middle))  # type: ignore[return-value]


def _large_enough(picture: Any, size: int) -> Any:
    height, width = picture.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f"an image of {height} × {width} is smaller than the crop of {size} × {size}; give a smaller "
            "crop, or a scale, with which images are resized"
        )
    return picture
