"""Channel shuffles, exact and trained, alone and in a whole ShuffleNet."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.turns import Call, compared, measure
from ksurgeon import convert
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.models.opening import open_model

__all__ = ["SHUFFLES", "shuffle", "shufflenet"]

SHUFFLES = ((116, 28), (232, 14), (464, 7))


def trained_(module: nn.Module) -> nn.Module:
    """Move every K-matrix of a module away from a permutation, as training does."""
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, KMatrix):
                for factor in child.factors:
                    factor.add_(torch.randn_like(factor), alpha=0.01)
    return module


def shuffle(channels: int, size: int, seconds: float) -> list[dict[str, Any]]:
    """A shuffle of two groups by K-matrix, exact and after training, against PyTorch's operations."""
    x, layer = torch.randn(1, channels, size, size), KChannelShuffle(channels, 2)

    def original() -> Tensor:
        return x.view(1, 2, channels // 2, size, size).transpose(1, 2).contiguous().view(x.shape)

    learned = trained_(deepcopy(layer))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), original())
        calls: dict[str, Call] = {"exact": lambda: layer(x), "after training": lambda: learned(x)}
        times = measure(calls | {"the original": original}, seconds)
    case = f"C = {channels}, {size}×{size}"
    return [
        compared(
            "channel shuffle",
            f"{case}, {name}",
            1,
            {name: times[name], "the original": times["the original"]},
            {"the original": 1 / 3},
        )
        for name in ("exact", "after training")
    ]


def shufflenet(seconds: float) -> list[dict[str, Any]]:
    """The whole ``shufflenet_v2_x1_0``, its shuffles replaced, against itself as it was."""
    loaded = open_model("torchvision:shufflenet_v2_x1_0", weights="random")
    x = torch.randn(1, 3, 224, 224)
    original = loaded.model.eval()
    exact = convert(deepcopy(original), "shuffle", x).model
    learned = trained_(deepcopy(exact))
    with torch.inference_mode():
        calls: dict[str, Call] = {"exact": lambda: exact(x), "after training": lambda: learned(x)}
        times = measure(calls | {"the original": lambda: original(x)}, seconds)
    return [
        compared(
            "whole model",
            f"shufflenet_v2_x1_0, {name}",
            1,
            {name: times[name], "the original": times["the original"]},
            {"the original": 1 / 1.25},
        )
        for name in ("exact", "after training")
    ]
