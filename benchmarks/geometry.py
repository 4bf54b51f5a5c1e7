"""How well a shuffle is undone from unlabelled data: ``python -m benchmarks.geometry``.

Pixels of photographs and of clothes, and channels of speech, are shuffled at random, and ``find_arrangement``
sees nothing but them. Printed and kept are the shares of neighbours that are neighbours again, and the time.
The data are Debian packages, fetched with apt-get the first time.
"""

import argparse
import gzip
import json
import wave
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.results import cpu_setting
from ksurgeon import find_arrangement, neighbour_share
from ksurgeon.kernels.cache import cache_folder
from recipes.fetch import unpack_deb

_PHOTOS = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
_WIDTH = 960  # of the photographs that patches are cut from
_RATE, _WINDOW, _HOP, _FFT = 8000, 256, 80, 512
_GREY = (0.299, 0.587, 0.114)


@cache
def photographs(folder: Path) -> list[Tensor]:
    """Each ``(height, 960, 3)``, uint8."""
    files = [file for package in _PHOTOS for file in sorted(unpack_deb(package, folder).rglob("*.jpg"))]
    pictures = []
    for file in files:
        with Image.open(file) as image:
            size = (_WIDTH, round(_WIDTH * image.height / image.width))
            pictures.append(torch.from_numpy(np.array(image.convert("RGB").resize(size))))
    return pictures


def patches(folder: Path, count: int, shape: tuple[int, int], seed: int, colour: bool = False) -> Tensor:
    """Patches from random places, ``(count, n)``, or ``(count, 3, n)`` in colour."""
    random, photos = torch.Generator().manual_seed(seed), photographs(folder)
    cut = []
    for number in torch.randint(len(photos), (count,), generator=random).tolist():
        photo = photos[number]
        y, x = (
            int(torch.randint(length - side + 1, (), generator=random))
            for length, side in zip(photo.shape, shape, strict=False)
        )
        cut.append(photo[y : y + shape[0], x : x + shape[1]])
    images = torch.stack(cut).flatten(1, 2).float()
    return images.mT.contiguous() if colour else images @ torch.tensor(_GREY)


def clothes(folder: Path, count: int, seed: int) -> Tensor:
    """Images of Fashion-MNIST shifted by up to 6 pixels on a field of 32×32, which cuts what leaves it."""
    file = next(unpack_deb("dataset-fashion-mnist", folder).rglob("train-images-idx3-ubyte.gz"))
    images = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    random = np.random.default_rng(seed)
    field = np.zeros((count, 40, 40), np.float32)
    shifts = random.integers(0, 13, (count, 2))
    for place, image, (y, x) in zip(field, images[random.permutation(len(images))], shifts, strict=False):
        place[y : y + 28, x : x + 28] = image
    return torch.from_numpy(field[:, 4:36, 4:36]).flatten(1)


@cache
def spectra(folder: Path) -> Tensor:
    """Power spectra of recorded prompts, a frame each 10 ms, ``(frames, 257)``."""
    frames = []
    for file in sorted(unpack_deb("asterisk-core-sounds-en-wav", folder).rglob("*.wav")):
        with wave.open(str(file)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768
        if len(samples) >= _WINDOW:
            frames.append(torch.from_numpy(samples).unfold(0, _WINDOW, _HOP))
    windows = torch.cat(frames) * torch.hann_window(_WINDOW, dtype=torch.float64)
    return torch.fft.rfft(windows, _FFT).abs().square()


def log_mel(folder: Path, count: int, channels: int, seed: int) -> Tensor:
    """Logarithms of triangular mel filters' outputs, of random frames."""
    edges = torch.linspace(
        *(2595 * np.log10(1 + f / 700) for f in (40, _RATE / 2)), channels + 2, dtype=torch.float64
    )
    low, middle, high = (700 * (10 ** (edges / 2595) - 1)).unfold(0, channels, 1)[:, :, None]
    bins = torch.arange(_FFT // 2 + 1) * _RATE / _FFT
    filters = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0)
    return (_frames(folder, count, seed) @ filters.mT + 1e-7).log()


def _frames(folder: Path, count: int, seed: int) -> Tensor:
    power = spectra(folder)
    return power[torch.randperm(len(power), generator=torch.Generator().manual_seed(seed))[:count]]


def cases(folder: Path, seed: int) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Names, data and grids."""
    large = patches(folder, 20_000, (32, 32), seed)
    yield "photographs, grey", large, (32, 32)
    yield "photographs, grey", large[:1000], (32, 32)
    noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(seed)) * large.std() / 2
    yield "photographs, noise of half their spread", large + noise, (32, 32)
    yield "photographs, colour", patches(folder, 5000, (32, 32), seed, colour=True), (32, 32)
    yield "photographs, grey", patches(folder, 20_000, (24, 40), seed), (24, 40)
    small = patches(folder, 20_000, (16, 16), seed)
    for count in (20_000, 1000, 300, 100):
        yield "photographs, grey", small[:count], (16, 16)
    for count in (20_000, 5000):
        yield "Fashion-MNIST, shifted", clothes(folder, count, seed), (32, 32)
    for channels in (40, 64, 80):
        yield "speech, log-mel channels", log_mel(folder, 20_000, channels, seed), (channels,)
    yield "speech, log-mel channels", log_mel(folder, 1000, 64, seed), (64,)
    yield "speech, log power spectrum", (_frames(folder, 20_000, seed)[:, :128] + 1e-7).log(), (128,)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=cache_folder() / "packages", help="where packages go")
    parser.add_argument("--only", default="", help="part of the names of cases; the file's other rows stay")
    parser.add_argument("--seeds", type=int, default=3, help="of small grids; those above 256 have one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/geometry.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.data.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int, tuple[int, ...]], dict[str, list[float]]] = {}
    for seed in range(given.seeds):
        for name, data, shape in cases(given.data, seed):
            n = data.shape[-1]
            if given.only not in name or (seed and n > 256):
                continue
            truth = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
            began = perf_counter()
            permutation = find_arrangement(data[..., truth], shape)
            seconds = perf_counter() - began
            row = rows.setdefault((name, len(data), shape), {"share": [], "seconds": []})
            row["share"].append(round(neighbour_share(permutation, truth, shape), 4))
            row["seconds"].append(round(seconds, 2))
            print(name, len(data), shape, row["share"], row["seconds"], flush=True)
    listed = [
        {"case": name, "examples": examples, "shape": shape, **row}
        for (name, examples, shape), row in rows.items()
    ]
    if given.only and given.json.exists():
        present = json.loads(given.json.read_text())["rows"]
        listed = [row for row in present if given.only not in row["case"]] + listed
    setting = cpu_setting(given.threads) | {"seeds": given.seeds}
    given.json.write_text(json.dumps({"setting": setting, "rows": listed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
