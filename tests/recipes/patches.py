"""Smooth random images where recipes look for their data."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def write_patches(cache: Path, classes: int = 3, count: int = 96) -> None:
    """In the layout of CIFAR-10's binary version, ``count`` in every file."""
    place = cache / "ksurgeon" / "recipes" / "photographs" / "patches"
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        labels = torch.arange(count) % classes
        pixels = waves(labels, 32, generator).flatten(1)
        rows = torch.cat([labels[:, None].byte(), pixels, pixels, pixels], 1)
        rows.numpy().astype(np.uint8).tofile(place / name)


def write_fashion_mnist(cache: Path, classes: int = 3, count: int = 96) -> None:
    """In MNIST's layout, as Debian's package has it, ``count`` in every file."""
    package = cache / "ksurgeon" / "recipes" / "fashion-mnist" / "dataset-fashion-mnist"
    place = package / "usr" / "share" / "datasets" / "fashion-mnist"
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "t10k"):
        labels = torch.arange(count) % classes
        images = waves(labels, 28, generator)
        for part, values in (("images-idx3", images), ("labels-idx1", labels.byte())):
            header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
            with gzip.open(place / f"{split}-{part}-ubyte.gz", "wb") as stream:
                stream.write(header + values.numpy().tobytes())


def waves(labels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Waves of random direction, the class telling how long they are; bytes ``(count, side, side)``."""
    count = len(labels)
    y, x = torch.meshgrid(torch.arange(side) * 1.0, torch.arange(side) * 1.0, indexing="ij")
    angles, phases = 2 * torch.pi * torch.rand(2, count, 1, 1, generator=generator)
    found = ((angles.cos() * x + angles.sin() * y) / (4 + 2 * labels[:, None, None]) + phases).sin()
    noise = torch.randn(count, side, side, generator=generator)
    return (128 + 80 * found + 8 * noise).clamp(0, 255).byte()
