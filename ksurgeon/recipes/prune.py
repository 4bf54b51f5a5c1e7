"""Magnitude pruning, which structured matrices are compared with."""

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from ksurgeon.errors import RecipeError
from ksurgeon.rules.schema import matching

__all__ = ["count_nonzero", "prune"]


def prune(model: nn.Module, targets: tuple[str, ...], share: float) -> None:
    """Keep the largest ``share`` of the weights of every layer that the targets name; the rest stays zero in
    training too.

    Raises:
        RecipeError: no layer is named.
    """
    layers = [
        module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.dim() >= 2  # type: ignore[operator, union-attr]
        and not isinstance(module, nn.Embedding)
        and matching(targets, (path, type(module).__name__))
    ]
    if not layers:
        raise RecipeError(f"prune: {', '.join(targets)} name no layer with a weight")
    for layer in layers:
        torch_prune.l1_unstructured(layer, "weight", amount=1 - share)


def count_nonzero(model: nn.Module) -> int:
    """Parameters, of pruned layers only those that are left."""
    masked = sum(int((mask == 0).sum()) for name, mask in model.named_buffers() if name.endswith("_mask"))
    return sum(torch.numel(parameter) for parameter in model.parameters()) - masked
