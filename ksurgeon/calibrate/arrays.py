"""Image data sets in files of plain numbers: IDX (MNIST, Fashion-MNIST), and CIFAR's binary version."""

import gzip
import zlib
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ksurgeon.calibrate.examples import Example, Source
from ksurgeon.calibrate.pictures import as_rgb
from ksurgeon.errors import DataError

__all__ = ["SPLITS", "open_arrays"]

SPLITS = ("train", "test")
_IDX = {"train": "train", "test": "t10k"}  # what the files of a split begin with
_BYTES, _LARGEST = 8, 2**32
_CIFAR_10 = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR_100 = {"train": ["train.bin"], "test": ["test.bin"]}
_SIDE = 32
_NAMES = ("batches.meta.txt", "fine_label_names.txt")


def open_arrays(folder: Path, split: str = "train") -> Source | None:
    """The data set in a folder; None if its files are of neither kind.

    Raises:
        DataError: files that are damaged or lacking, or CIFAR's version for Python, which is a pickle.
    """
    if any(_idx_file(folder, name, "images-idx3") for name in _IDX.values()):
        images, labels = (
            _read_idx(folder, f"{_IDX[split]}-{part}") for part in ("images-idx3", "labels-idx1")
        )
    elif (cifar := _cifar(folder)) is not None:
        files, width = cifar
        rows = np.concatenate([_read_rows(folder / name, width) for name in files[split]])
        labels, pixels = rows[:, width - 3 * _SIDE**2 - 1], rows[:, -3 * _SIDE**2 :]
        images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    else:
        return None
    if len(images) != len(labels):
        raise DataError(f"{folder} holds {len(images)} images and {len(labels)} labels; download it again")

    def read(i: int) -> Example:
        from PIL import Image

        return Example(as_rgb(Image.fromarray(images[i])), int(labels[i]))

    name = str(folder) if split == "train" else f"{folder}@{split}"
    return Source(name, "image", len(images), read, lambda i: f"{name}, image {i}", _classes(folder))


def _idx_file(folder: Path, split: str, part: str) -> Path | None:
    files = (folder / f"{split}-{part}-ubyte{suffix}" for suffix in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _read_idx(folder: Path, what: str) -> Any:
    file = _idx_file(folder, *what.split("-", 1))
    if file is None:
        raise DataError(f"{folder} lacks {what}-ubyte or {what}-ubyte.gz; download it again")
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            zeros, kind, dims = stream.read(2), *stream.read(2)
            shape = np.frombuffer(stream.read(4 * dims), ">u4").tolist()
            size = prod(shape)
            if zeros != b"\0\0" or kind != _BYTES or dims != int(what[-1]) or size > _LARGEST:
                raise ValueError(f"its header is not that of bytes in {what[-1]} dimensions")
            content = stream.read(size + 1)
        if len(content) != size:
            raise ValueError(f"{size} bytes should follow the header")
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged: {error}; download it again") from error


def _cifar(folder: Path) -> tuple[dict[str, list[str]], int] | None:
    """The files of both splits, and the bytes of an image with its labels."""
    for files, width in ((_CIFAR_10, 1 + 3 * _SIDE**2), (_CIFAR_100, 2 + 3 * _SIDE**2)):
        if any((folder / name).is_file() for names in files.values() for name in names):
            return files, width
    if (folder / "data_batch_1").is_file() or ((folder / "train").is_file() and (folder / "meta").is_file()):
        raise DataError(
            f"{folder} holds CIFAR's version for Python, a pickle, which could run code; download the binary "
            "version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz) and name the folder in it"
        )
    return None


def _read_rows(file: Path, width: int) -> Any:
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; download it again") from error
    if not content.size or content.size % width:
        raise DataError(f"{file} is damaged: {content.size} bytes, no multiple of {width}; download it again")
    return content.reshape(-1, width)


def _classes(folder: Path) -> list[str] | None:
    for name in _NAMES:
        with suppress(OSError, UnicodeDecodeError):
            return (folder / name).read_text(encoding="utf-8").split()
    return None
