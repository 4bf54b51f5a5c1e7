"""Transforms of images of which only the texture is left: each channel of zero mean and unit spread."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

_TINY = 1e-3


def _normalised(image: Any) -> Tensor:
    pixels: Tensor = image.as_subclass(Tensor)
    pixels = pixels - pixels.mean((1, 2), keepdim=True)
    return pixels / pixels.std((1, 2), keepdim=True).clamp_min(_TINY)


_plain = [v2.ToDtype(torch.float32, scale=True), v2.Lambda(_normalised)]
train = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), *_plain])
test = v2.Compose([v2.ToImage(), *_plain])
