"""Small models with random weights from all of timm, torchvision and transformers, by name."""

import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tools.survey import tiny_transformers

__all__ = ["LIBRARIES", "build", "names"]

LIBRARIES = ("timm", "torchvision", "transformers")
_SMALL_NAMES = ("atto", "test", "nano", "pico", "tiny", "xxs", "xs", "050", "small", "_s")


def names(library: str) -> list[str]:
    """One model of each module of timm, all of torchvision, or every model type of transformers."""
    listing: dict[str, Callable[[], list[str]]] = {
        "timm": _timm_names, "torchvision": _torchvision_names, "transformers": tiny_transformers.names,
    }  # fmt: skip
    return listing[library]()


def build(library: str, name: str) -> Iterator[nn.Module]:
    """The model in eval mode, its weights from a fixed seed; then, if there are any, other sizes of it.

    Raises:
        RuntimeError: none can be built that is small.
    """
    torch.manual_seed(0)
    random.seed(0)
    if library == "transformers":
        yield from tiny_transformers.build(name)
    elif library == "timm":
        import timm

        yield timm.create_model(name).eval()
    else:
        import torchvision

        builder = torchvision.models.get_model_builder(name)
        options: dict[str, Any] = {}
        if "weights_backbone" in inspect.signature(builder).parameters:
            options["weights_backbone"] = None
        if ".detection." in builder.__module__ and "ssd" not in name:
            options |= {"min_size": 192, "max_size": 256}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        yield builder(weights=None, **options).eval()


def _timm_names() -> list[str]:
    import timm

    chosen = []
    for module in timm.list_modules():
        models = timm.list_models(module=module)
        small = [m for word in _SMALL_NAMES for m in models if word in m]
        if models:
            chosen.append((small or sorted(models, key=len))[0])
    return chosen


def _torchvision_names() -> list[str]:
    import torchvision

    skipped = tuple(f"torchvision.models.{part}" for part in ("quantization", "optical_flow", "video"))
    return [
        name
        for name in torchvision.models.list_models()
        if not torchvision.models.get_model_builder(name).__module__.startswith(skipped)
    ]
