"""EfficientNet-Lite0 and its student on pictures: ``python -m benchmarks.pictures --student FOLDER``.

How steady the classes are that the recipe ``efficientnet_lite0`` asks a student to agree with: on how many
of its held-out crops the original itself keeps its class when a crop is mirrored or noisy, or when the
weights of its pointwise convolutions are rounded. And how long original and student take, in turns.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.data import lite0
from benchmarks.prepared import prepared, recipe_named
from benchmarks.results import cpu_setting
from benchmarks.turns import measure
from ksurgeon import load
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

_STEP = 2 / 128  # two of 255 grey values, as the model takes pictures
_BATCHES = (1, 32)
Change = Callable[[Tensor], Tensor]


def changes() -> dict[str, Change]:
    """What is done to a batch of pictures, by name."""
    generator = torch.Generator().manual_seed(0)
    return {
        "mirrored": lambda x: x.flip(-1),
        "noise of 2/255": lambda x: x + _STEP * torch.randn(x.shape, generator=generator),
    }


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose pointwise convolutions have weights of so many bits, one scale for each output channel."""
    model = deepcopy(model)
    largest = 2 ** (bits - 1) - 1
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            weight = module.weight.data
            scale = weight.abs().amax((1, 2, 3), keepdim=True) / largest
            module.weight.data = (weight / scale).round() * scale
    return model


@torch.no_grad()
def logits(model: nn.Module, crops: list[Tensor], change: Change = lambda x: x) -> Tensor:
    """Of all crops."""
    return torch.cat([model(change(batch)) for batch in crops])


def steadiness(model: nn.Module, crops: list[Tensor]) -> dict[str, float]:
    """Shares of the crops that keep their class, and the median probability of the first class."""
    given = logits(model, crops)
    found = {name: logits(model, crops, change) for name, change in changes().items()}
    found |= {f"weights of {bits} bits": logits(rounded(model, bits), crops) for bits in (8, 6)}
    same = {name: float((other.argmax(1) == given.argmax(1)).float().mean()) for name, other in found.items()}
    return {"median of the highest probability": float(given.softmax(1).amax(1).median()), **same}


@torch.no_grad()
def times(models: dict[str, nn.Module], seconds: float) -> dict[str, Any]:
    """Milliseconds of a batch of random pictures, by its size."""
    torch.manual_seed(0)
    found = {}
    for size in _BATCHES:
        pictures = torch.randn(size, 3, 224, 224)
        calls = {name: lambda model=model, x=pictures: model(x) for name, model in models.items()}
        measured = measure(calls, seconds)
        found[str(size)] = {name: row["median"] / 1000 for name, row in measured.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--student", type=Path, help="folder of a student, whose time is taken too")
    parser.add_argument("--seconds", type=float, default=20, help="of timing, for each model and batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/pictures.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = recipe_named("efficientnet_lite0")
    transform = find_function("efficientnet_lite0.py:transform", RecipeError, recipe.folder)
    files = sorted(prepared(recipe)["test"].glob("*.jpg"))
    crops = [transform(Image.open(file).convert("RGB")) for file in files]
    model = lite0()
    row: dict[str, Any] = {
        "setting": cpu_setting(given.threads),
        "crops": len(crops),
        "steadiness": steadiness(model, list(torch.stack(crops).split(32))),
    }
    if given.student is not None:
        row["milliseconds"] = times({"original": model, "student": load(given.student)}, given.seconds)
    print(json.dumps(row, indent=1))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
