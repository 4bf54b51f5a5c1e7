"""Build the module that takes a site's place, and hand over what the old one had."""

from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import SurgeryError
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.kmatrix.structures import Structure

__all__ = ["KModule", "build_dense", "build_layer", "build_shuffle", "dense_weight", "hand_over"]

KModule = KLinear | KPointwiseConv | KChannelShuffle

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


def build_layer(module: nn.Module, structure: Structure, start: str = "empty") -> KLinear | KPointwiseConv:
    """K-module of a linear layer's or pointwise convolution's sizes, dtype and device, sharing its bias."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    options: dict[str, Any] = {
        "structure": structure,
        "start": start,
        "device": weight.device,
        "dtype": weight.dtype,
        "bias": bias is not None,
    }
    new: KLinear | KPointwiseConv
    if isinstance(module, nn.Linear):
        new = KLinear(module.in_features, module.out_features, **options)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        new = KPointwiseConv(
            module.in_channels,
            module.out_channels,
            module.stride,
            module.groups,
            dims=len(module.kernel_size),
            **options,
        )
    else:
        raise SurgeryError(f"a {type(module).__name__} is no layer that a K-module can replace")
    if bias is not None:
        new.bias = bias  # type: ignore[assignment]
    new.matrix.requires_grad_(weight.requires_grad)
    hand_over(module, new)
    return new


def build_shuffle(
    structure: Structure,
    channels: int,
    groups: int,
    dim: int,
    permutation: tuple[int, ...],
    start: str,
    like: nn.Module,
    training: bool,
) -> KChannelShuffle:
    """K-matrix in place of a shuffle, of the dtype and device of the model ``like``."""
    reference = next((p for p in like.parameters() if p.dtype.is_floating_point), torch.empty(0))
    return KChannelShuffle(
        channels,
        groups,
        dim,
        permutation=permutation,
        start=start,
        structure=structure,
        device=reference.device,
        dtype=reference.dtype,
    ).train(training)


def hand_over(old: nn.Module, new: nn.Module) -> None:
    """Training flag and hooks of the old module become the new one's; both share the hooks."""
    new.train(old.training)
    for name in _HOOKS:
        if name in vars(old):
            object.__setattr__(new, name, vars(old)[name])


def dense_weight(module: nn.Module) -> Tensor:
    """Weight of a linear layer or pointwise convolution as a matrix ``(out, in)``, zero between groups."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    groups = getattr(module, "groups", 1)
    matrix = weight.detach().flatten(1)
    return matrix if groups == 1 else torch.block_diag(*matrix.chunk(groups))


def build_dense(module: nn.Module, ndim: int = 0) -> nn.Module:
    """The dense layer of torch.nn that computes what a K-module does now.

    ``ndim`` is the number of dimensions of what a shuffle takes.

    Raises:
        SurgeryError: a shuffle along a dimension that no dense layer of torch.nn maps.
    """
    assert isinstance(module, (KLinear, KPointwiseConv, KChannelShuffle))
    weight = module.weight.detach()
    factor = module.matrix.factors[0]
    new: nn.Module
    if isinstance(module, KPointwiseConv):
        new = _CONVOLUTIONS[len(module.kernel_size)](
            module.in_channels,
            module.out_channels,
            1,
            module.stride,  # type: ignore[arg-type]
            groups=module.groups,
            bias=False,
            device="meta",
        )
    elif isinstance(module, KLinear) or module.dim in (-1, ndim - 1):
        new = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    elif module.dim == 1 and ndim - 2 in _CONVOLUTIONS:
        new = _CONVOLUTIONS[ndim - 2](module.in_features, module.out_features, 1, bias=False, device="meta")
        weight = weight.reshape(*weight.shape, *[1] * (ndim - 2))
    else:
        raise SurgeryError(
            f"no dense layer maps dimension {module.dim} of a tensor of {ndim} dimensions; "
            "set the K-matrix back to its shuffle, or keep it"
        )
    new.weight = nn.Parameter(weight, requires_grad=factor.requires_grad)
    new.bias = getattr(module, "bias", None)
    hand_over(module, new)
    return new
