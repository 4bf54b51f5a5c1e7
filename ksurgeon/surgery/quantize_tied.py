"""Output heads tied to embeddings, computed in int8."""

from collections import defaultdict

import torch
from torch import nn

from ksurgeon.errors import WeightsError
from ksurgeon.kernels.rounding import LONGEST, rounded
from ksurgeon.kmatrix.int8_tied import TiedInt8Linear
from ksurgeon.surgery.operate import ClassSwap

__all__ = ["tied_heads", "to_int8"]

_KINDS = (torch.float32, torch.bfloat16, torch.float16)


def tied_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Layers of class ``nn.Linear`` whose weight is otherwise that of embeddings alone, by path."""
    holders: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)].append(module)
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if type(module) is not nn.Linear or weight is None or "forward" in vars(module):
            continue
        others = [other for other in holders[id(weight)] if other is not module]
        fits = weight.dtype in _KINDS and module.in_features <= LONGEST
        if fits and others and all(isinstance(other, nn.Embedding) for other in others):
            found[path] = module
    return found


@torch.no_grad()
def to_int8(layer: nn.Module) -> tuple[ClassSwap, float]:
    """What lets a tied layer be computed in int8, and the relative Frobenius error of its weight.

    Raises:
        WeightsError: the weight is not finite.
    """
    weight = layer.get_parameter("weight").detach()
    if not bool(weight.isfinite().all()):
        raise WeightsError("weights that are NaN or infinite cannot be quantized; load sound weights")
    values, scale = rounded(weight[None, None], weight.dtype)
    error = float((values * scale.float().unsqueeze(-1) - weight).norm())
    size = float(weight.float().norm())
    return ClassSwap(layer, nn.Linear, TiedInt8Linear), error / size if size else 0.0
