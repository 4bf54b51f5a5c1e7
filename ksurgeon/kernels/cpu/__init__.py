"""The ``cpu`` backend: a small shared library of C++17, chosen for the machine's instruction set at run time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ksurgeon.kernels import reference
from ksurgeon.kernels.cpu import ops
from ksurgeon.kernels.cpu.library import instruction_set, is_available, why_missing
from ksurgeon.kernels.cpu.pack import forget
from ksurgeon.kernels.cpu.run import DTYPES, forward

__all__ = ["apply_chain", "forget", "instruction_set", "is_available", "why_missing"]

_PLAIN = (Tensor, nn.Parameter)


def apply_chain(x: Tensor, factors: Sequence[Tensor], dim: int, bias: Tensor | None = None) -> Tensor:
    """Apply a chain by the compiled kernels where they can, by the reference elsewhere.

    Eager inference on plain CPU tensors calls the library at once. Where gradients are wanted, or the call
    is compiled, exported or traced with fake tensors, it is the operator ``ksurgeon::chain``. Complex
    numbers, other devices, autocast, ``torch.func`` transforms and forward-mode derivatives are left to
    the reference.
    """
    first = factors[0]
    dtype = x.dtype
    if not (x.is_cpu and dtype in DTYPES and first.dtype is dtype and first.is_cpu and x.layout is torch.strided):
        return reference.apply_chain(x, factors, dim, bias)
    if torch.compiler.is_compiling():
        return _by_operator(x, factors, dim, bias)
    if (
        torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return reference.apply_chain(x, factors, dim, bias)
    if torch._C._len_torch_dispatch_stack():
        return _by_operator(x, factors, dim, bias)
    if type(x) not in _PLAIN or type(first) not in _PLAIN:
        return reference.apply_chain(x, factors, dim, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or any([factor.requires_grad for factor in factors])
        or (bias is not None and bias.requires_grad)
    ):
        return _by_operator(x, factors, dim, bias)
    return forward(x, factors, bias, dim)


def _by_operator(x: Tensor, factors: Sequence[Tensor], dim: int, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        return reference.apply_chain(x, factors, dim, bias)
    return ops.chain(x, list(factors), bias, dim)
