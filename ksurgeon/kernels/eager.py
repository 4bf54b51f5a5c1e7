"""Where a product may depend on what is in its factors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ksurgeon.kernels.compiling import constant

__all__ = ["has_transforms", "is_batched", "is_eager", "is_transformed"]


def is_eager(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether the entries of the factors can be looked at, and nothing is to be differentiated or recorded.

    On GPUs never: to look would be to wait for them.
    """
    if not x.is_cpu or torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *factors)):
        return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not has_transforms()
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and all(factor.is_cpu and type(factor) in (Tensor, nn.Parameter) for factor in factors)
    )


@constant
def has_transforms() -> bool:
    """Whether a transform of ``torch.func`` is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for a batch of them in ``vmap``."""
    return has_transforms() and bool(torch._C._functorch.is_batchedtensor(tensor))


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor may have a batch or a tangent that only PyTorch's own operations see: under
    ``torch.func``, in a batch of gradients (``is_grads_batched``), or with forward-mode derivatives."""
    return (
        has_transforms()
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
        or forward_ad._current_level >= 0
    )
