"""The ``cuda`` backend: Triton kernels for NVIDIA GPUs, taken where a trial finds them right and fastest.

Triton is imported for the first tensor on a GPU.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ksurgeon.kernels import reference
from ksurgeon.kernels.activation import activate, check_activation
from ksurgeon.kernels.compiling import constant
from ksurgeon.kernels.cuda import ops
from ksurgeon.kernels.eager import has_modes, has_tangents, has_transforms
from ksurgeon.patterns.rotated import Rotated, sources_of

__all__ = ["apply_chain", "index_of", "why_not"]

_PLAIN = (Tensor, nn.Parameter)
_OLDEST = (8, 0)


@lru_cache
@constant
def why_not(index: int) -> str | None:
    """Why the kernels do not run on a GPU, or None if they do."""
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    found = torch.cuda.get_device_capability(index)
    if found < _OLDEST:
        return f"its compute capability is {found[0]}.{found[1]}, the kernels need {_OLDEST[0]}.{_OLDEST[1]}"
    return None


def index_of(device: torch.device) -> int:
    """Number of a GPU; that of the current one where the device does not say which."""
    return torch.cuda.current_device() if device.index is None else device.index


@lru_cache
@constant
def _runs_on(kind: str, index: int | None) -> bool:
    """Whether the kernels run on a device."""
    if kind != "cuda":
        return kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return why_not(torch.cuda.current_device() if index is None else index) is None


def apply_chain(
    x: Tensor,
    factors: Sequence[Tensor],
    dim: int,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Apply a chain by the Triton kernels where they can, by the reference elsewhere.

    Eager inference on plain tensors starts the kernels at once. Where gradients are wanted, or the call is
    compiled or traced with fake tensors, it is the operator ``ksurgeon::chain``. Under autocast the operands
    are cast as those of ``nn.Linear`` are. float64, complex128, ``torch.export`` (whose programs are to run
    without ksurgeon), ``torch.func`` transforms and forward-mode derivatives are left to the reference.
    """
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x, factors, bias = _cast(x, factors, bias, torch.get_autocast_dtype("cuda"))
    device, dtype, sources = x.device, x.dtype, sources_of(factors)
    if not (
        dtype in ops.DTYPES
        and x.layout is torch.strided
        and all([source.dtype is dtype and source.device == device for source in sources])
        and (bias is None or (bias.device == device and bias.is_complex() == dtype.is_complex))
        and not (dtype.is_complex and activation)
        and not (torch.compiler.is_exporting() or has_transforms())
        and _runs_on(device.type, device.index)
    ):
        return reference.apply_chain(x, factors, dim, bias, activation)
    if torch.compiler.is_compiling():
        return activate(_by_operator(x, factors, bias, dim), activation)
    if has_tangents():
        return reference.apply_chain(x, factors, dim, bias, activation)
    if has_modes():
        return activate(_by_operator(x, factors, bias, dim), activation)
    if type(x) not in _PLAIN or type(sources[0]) not in _PLAIN:
        return reference.apply_chain(x, factors, dim, bias, activation)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or any([source.requires_grad for source in sources])
        or (bias is not None and bias.requires_grad)
    ):
        return activate(ops.chain(x, list(factors), bias, dim), activation)
    check_activation(activation)
    from ksurgeon.kernels.cuda import choice, run

    return run.forward(x, factors, bias, dim, activation, way=choice.way_of("forward", x, factors, dim))


def _by_operator(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int) -> Tensor:
    if type(factors) is Rotated and not torch.is_grad_enabled():
        return ops.rotated_chain(x, *factors.sources, factors.sizes, bias, dim)
    return ops.chain(x, list(factors), bias, dim)


def _cast(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
    if not x.is_floating_point() or x.dtype == torch.float64:
        return x, factors, bias
    return x.to(dtype), [factor.to(dtype) for factor in factors], None if bias is None else bias.to(dtype)
