"""What kind of call this is: a plain eager one, or one that something else is to see or to transform."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ksurgeon.kernels.compiling import constant
from ksurgeon.torch_private import (
    any_autocast,
    dispatch_modes,
    has_tangents,
    is_batched_tensor,
    is_legacy_batched_tensor,
    jit_trace,
    top_transform,
)

__all__ = [
    "has_modes",
    "has_tangents",
    "has_transforms",
    "is_batched",
    "is_eager",
    "is_jit_traced",
    "is_special",
    "is_transformed",
    "needs_torch_operations",
]


def is_special() -> bool:
    """Whether a call is more than a plain eager one: autocast, a transform, a dispatch mode, or a trace.

    Not to be asked while ``torch.compiler.is_compiling()``, which callers have to know themselves.
    """
    return any_autocast() or needs_torch_operations() or dispatch_modes() > 0


def needs_torch_operations() -> bool:
    """Whether only PyTorch's own operations are understood: transforms of ``torch.func``, forward-mode
    derivatives, ``torch.jit.trace``."""
    return top_transform() is not None or has_tangents() or jit_trace() is not None


def has_modes() -> bool:
    """Whether a dispatch mode, as that of fake tensors, is to see the operators that are called."""
    return dispatch_modes() > 0


def is_jit_traced() -> bool:
    """Whether ``torch.jit.trace`` records the call."""
    return jit_trace() is not None


def is_eager(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether the entries of the factors can be looked at, and nothing is to be differentiated or recorded.

    On GPUs never: to look would be to wait for them.
    """
    if not x.is_cpu or torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *factors)):
        return False
    return (
        not has_modes()
        and not needs_torch_operations()
        and all(factor.is_cpu and type(factor) in (Tensor, nn.Parameter) for factor in factors)
    )


@constant
def has_transforms() -> bool:
    """Whether a transform of ``torch.func`` is under way."""
    return top_transform() is not None


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for a batch of them in ``vmap``."""
    return has_transforms() and bool(is_batched_tensor(tensor))


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor may have a batch or a tangent that only PyTorch's own operations see: under
    ``torch.func``, in a batch of gradients (``is_grads_batched``), or with forward-mode derivatives."""
    return has_transforms() or is_legacy_batched_tensor(tensor) or has_tangents()
