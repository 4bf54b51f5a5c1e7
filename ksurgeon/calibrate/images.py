"""A folder of images as batches, prepared as the model's library says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import InputError

__all__ = ["image_batches"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


def image_batches(folder: Path, model: nn.Module, batch_size: int, examples: int) -> Iterator[Tensor]:
    """Batches ``(n, 3, height, width)`` of the images below a folder, evenly spread over their names.

    Raises:
        InputError: no image there, or one that cannot be read.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))})")
    count = min(examples, len(files))
    files = [files[number * len(files) // count] for number in range(count)]
    prepare = _transform(model)
    for at in range(0, len(files), batch_size):
        yield torch.stack([_open(file, prepare) for file in files[at : at + batch_size]])


def _open(file: Path, prepare: Callable[[Any], Tensor]) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return prepare(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file} cannot be read as an image: {error}") from error


def _transform(model: nn.Module) -> Callable[[Any], Tensor]:
    """What timm or the folder of a model of transformers says, else ImageNet's preparation."""
    folder = getattr(getattr(model, "config", None), "_name_or_path", None)
    if folder and (Path(folder) / "preprocessor_config.json").is_file():
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]
    if hasattr(model, "pretrained_cfg"):
        from timm.data import create_transform, resolve_model_data_config

        prepare: Callable[[Any], Tensor] = create_transform(**resolve_model_data_config(model))
        return prepare
    from torchvision import transforms

    config = getattr(model, "config", None)
    size = getattr(config, "image_size", 224)
    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
