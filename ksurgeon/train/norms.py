"""Statistics of batch normalisation, estimated anew."""

from collections.abc import Iterable

import torch
from torch import nn

from ksurgeon.find.inputs import as_call
from ksurgeon.train.preprocess import Batch

__all__ = ["batch_norms", "estimate_batch_norms"]


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Layers of batch normalisation that keep statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]


@torch.no_grad()
def estimate_batch_norms(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running statistics by plain averages over the batches.

    Surgery changes what the layers see; statistics of the original are then wrong, and cost more than the
    surgery did. Every other module stays in eval mode.
    """
    norms = batch_norms(model)
    if not norms:
        return
    training = [module for module in model.modules() if module.training]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()  # type: ignore[operator]
            norm.momentum = None  # type: ignore[assignment]  # a plain average
            norm.training = True
        for batch in batches:
            args, kwargs = as_call(batch["inputs"])
            model(*args, **kwargs)
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module in training:
            module.training = True
