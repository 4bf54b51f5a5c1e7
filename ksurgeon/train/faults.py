"""Where numbers stopped being finite."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.find.inputs import as_call, tensors_of

__all__ = ["describe_fault"]


def describe_fault(model: nn.Module, batches: Iterable[Batch]) -> str:
    """The first parameter, input, module or gradient of the model that is not finite, in words."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the parameter {name} is not"
    for batch in batches:
        if fault := _fault_on(model, batch):
            return fault
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name} is not"
    return "the outputs are, so that it is the loss itself: look at the labels and the teacher"


def _fault_on(model: nn.Module, batch: Batch) -> str | None:
    args, kwargs = as_call(batch["inputs"])
    if not _finite((args, kwargs)):
        return "the inputs are not"
    first: list[str] = []

    def look(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not first and not _finite(output):
                first.append(path)

        return hook

    handles = [module.register_forward_hook(look(path)) for path, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {first[0] or 'the model'} is not" if first else None


def _finite(tree: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors_of(tree) if t.is_floating_point())
