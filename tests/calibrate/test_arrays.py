"""Image data sets in files of plain numbers, in tiny folders of the same layout, and crops of pictures."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ksurgeon.calibrate.crops import crops
from ksurgeon.calibrate.sources import open_source
from ksurgeon.errors import DataError

_NUMBERS = np.random.default_rng(0)


def _idx(folder, split="train", count=5, kind=8):
    images = _NUMBERS.integers(0, 256, (count, 28, 28), np.uint8)
    header = struct.pack(">BBBBIII", 0, 0, kind, 3, count, 28, 28)
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(header + images.tobytes())
    labels = bytes(range(count))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels)
    return images


def _cifar(folder, names, labels):
    pixels = _NUMBERS.integers(0, 256, (2 * len(names), 3072), np.uint8)
    for number, name in enumerate(names):
        rows = [bytes([*labels[: len(labels) - 1], 2 * number + row]) for row in range(2)]
        both = zip(rows, pixels[2 * number : 2 * number + 2], strict=True)
        (folder / name).write_bytes(b"".join(head + image.tobytes() for head, image in both))
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def test_idx(tmp_path):
    images, test = _idx(tmp_path), _idx(tmp_path, "t10k", 3)
    source = open_source(str(tmp_path))
    assert len(source) == 5
    assert np.array_equal(np.asarray(source.read(4).value)[..., 1], images[4]) and source.read(4).label == 4
    held_out = open_source(f"{tmp_path}@test")
    assert len(held_out) == 3 and np.array_equal(np.asarray(held_out.read(2).value)[..., 0], test[2])


@pytest.mark.parametrize(
    ("names", "test", "labels", "meta"),
    [
        ([f"data_batch_{n}.bin" for n in range(1, 6)], "test_batch.bin", [0], "batches.meta.txt"),
        (["train.bin"], "test.bin", [7, 0], "fine_label_names.txt"),
    ],
)
def test_cifar(names, test, labels, meta, tmp_path):
    images, held_out = _cifar(tmp_path, names, labels), _cifar(tmp_path, [test], labels)
    (tmp_path / meta).write_text("cat\ndog\n")
    source, tests = open_source(str(tmp_path)), open_source(f"{tmp_path}@test")
    assert len(source) == len(images) and len(tests) == 2 and source.classes == ["cat", "dog"]
    last = source.read(len(images) - 1)
    assert np.array_equal(np.asarray(last.value), images[-1]) and last.label == len(images) - 1
    assert np.array_equal(np.asarray(tests.read(1).value), held_out[1])


def test_damaged_and_lacking_files(tmp_path):
    _idx(tmp_path)
    with pytest.raises(DataError, match=r"lacks t10k-images-idx3-ubyte.*download it again"):
        open_source(f"{tmp_path}@test")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 9) + b"12")
    with pytest.raises(DataError, match="9 bytes should follow the header"):
        open_source(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"")[:10] + b"\xff" * 50)
    with pytest.raises(DataError, match="is damaged: Error -3 while decompressing"):
        open_source(tmp_path)
    _idx(tmp_path, kind=9)
    with pytest.raises(DataError, match="bytes in 3 dimensions"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="are splits of a folder"):
        open_source(f"{tmp_path}@valid")
    cifar = tmp_path / "cifar"
    cifar.mkdir()
    (cifar / "data_batch_1").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DataError, match=r"a pickle.*binary version"):
        open_source(cifar)
    (cifar / "data_batch_1.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="no multiple of 3073"):
        open_source(cifar)


def test_crops():
    picture = Image.fromarray(_NUMBERS.integers(0, 256, (12, 10, 3), np.uint8))
    random, middle = crops(8, padding=2)
    torch.manual_seed(0)
    assert random(picture).shape == middle(picture).shape == (3, 8, 8)
    assert not torch.equal(random(picture), random(picture)) and torch.equal(middle(picture), middle(picture))
    whole = np.asarray(picture)[2:10, 1:9].transpose(2, 0, 1) / 255
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(middle(picture).numpy(), (whole - mean) / std, atol=1e-5)
    for transform in crops(11):
        with pytest.raises(ValueError, match="12 × 10 is smaller than the crop of 11 × 11"):
            transform(picture)
    assert all(transform(picture).shape == (3, 16, 16) for transform in crops(16, scale=(0.1, 1.0)))
