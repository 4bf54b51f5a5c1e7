"""The ``cpu`` backend: a small shared library of C++17 that picks the machine's instruction set."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.kernels import reference
from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.cpu import ops
from ksurgeon.kernels.cpu.low_rank import train_beside
from ksurgeon.kernels.cpu.native import instruction_set, is_available, team, why_missing
from ksurgeon.kernels.cpu.ops import chain_inference
from ksurgeon.kernels.cpu.pack import forget
from ksurgeon.kernels.cpu.run import DTYPES, forward, shortly
from ksurgeon.kernels.eager import has_modes, has_transforms, is_special, needs_torch_operations
from ksurgeon.patterns.rotated import Rotated, sources_of
from ksurgeon.torch_private import any_autocast

__all__ = [
    "apply_chain",
    "at_once",
    "beside",
    "chain_inference",
    "few_rows",
    "forget",
    "instruction_set",
    "is_available",
    "team",
    "why_missing",
]

_PLAIN = (Tensor, nn.Parameter)
_SUMMED = (torch.float32, torch.float64, torch.bfloat16)
is_compiling, is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled


def apply_chain(
    x: Tensor,
    factors: Sequence[Tensor],
    dim: int,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Apply a chain by the compiled kernels where they can, by the reference elsewhere.

    Eager calls on plain CPU tensors go to the library at once, with a node of autograd's own where gradients
    are wanted; eager training of whole matrices, as a low rank has them, is PyTorch's own products. A call
    that is compiled, traced with fake tensors or made in any other dispatch mode is the operator
    ``ksurgeon::chain``, or ``ksurgeon::chain_inference`` if it is compiled without gradients. Activations of
    complex numbers, other devices, autocast, ``torch.func`` transforms, ``torch.jit.trace``, ``torch.export``
    (whose programs are to run without ksurgeon) and forward-mode derivatives are left to the reference.
    """
    y = None if is_compiling() else at_once(x, factors, bias, dim, activation)
    if y is not None:
        return y
    sources, dtype = sources_of(factors), x.dtype
    if dtype not in DTYPES or sources[0].dtype is not dtype or not x.is_cpu or x.layout is not torch.strided:
        return reference.apply_chain(x, factors, dim, bias, activation)
    if activation is not None and dtype.is_complex:
        return reference.apply_chain(x, factors, dim, bias, activation)  # which refuses it
    if is_compiling():
        if torch.compiler.is_exporting() or has_transforms():
            return reference.apply_chain(x, factors, dim, bias, activation)
        return _by_operator(x, factors, dim, bias, activation)
    if any_autocast() or needs_torch_operations():
        return reference.apply_chain(x, factors, dim, bias, activation)
    if has_modes():
        return _by_operator(x, factors, dim, bias, activation)
    tensors = [x, *sources] if bias is None else [x, *sources, bias]
    if not all([type(tensor) in _PLAIN for tensor in tensors]):
        return reference.apply_chain(x, factors, dim, bias, activation)
    if is_grad_enabled() and (
        x.requires_grad
        or any([source.requires_grad for source in sources])
        or (bias is not None and bias.requires_grad)
    ):
        if dim in (-1, x.dim() - 1) and dtype is not torch.float16 and _are_matrices(x, factors, bias):
            return _by_matrices(x, factors, bias, activation)
        return activate(ops.train_chain(x, factors, bias, dim), activation)
    return forward(x, factors, bias, dim, activation)


def at_once(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None
) -> Tensor | None:
    """What ``apply_chain`` gives if the library can be called without further ado:
    eager inference on plain tensors, with factors packed before. None elsewhere.

    Not to be asked while ``torch.compiler.is_compiling()``, which its callers have to know themselves.
    """
    if is_grad_enabled() or type(x) is not Tensor or is_special():
        return None
    return shortly(x, factors, bias, dim, activation)


def few_rows(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
    """What ``apply_chain`` gives along the last dimension in inference on plain tensors on the CPU, which all
    have one dtype and fit. None elsewhere."""
    parts = (*factors, *(() if bias is None else (bias,)))
    if (
        is_grad_enabled()
        or type(x) is not Tensor
        or is_special()
        or not x.is_cpu
        or x.layout is not torch.strided
        or x.dtype not in DTYPES
        or not x.dim()
        or x.shape[-1] != factors[0].shape[3]
        or not all([type(part) in _PLAIN and part.dtype is x.dtype and part.is_cpu for part in parts])
    ):
        return None
    return forward(x, factors, bias, -1)


def beside(
    x: Tensor, factors: Sequence[Tensor], side: Sequence[Tensor], bias: Tensor | None
) -> Tensor | None:
    """What ``apply_chain`` gives along the last dimension plus the same of a low rank ``side``, if both can
    be trained as one: eager training on plain contiguous tensors of one real dtype. None elsewhere."""
    if is_compiling() or not is_grad_enabled() or type(x) is not Tensor or is_special():
        return None
    dtype, parts = x.dtype, (*factors, *side)
    if (
        dtype not in _SUMMED
        or not x.is_cpu
        or len(side) != 2
        or not all([type(part) in _PLAIN and part.dtype is dtype for part in parts])
        or not any([part is not None and part.requires_grad for part in (x, bias, *parts)])
        or x.shape[-1:] != side[0].shape[-1:]
        or not x.is_contiguous()
        or not _are_matrices(x, side, bias)
    ):
        return None
    return train_beside(x, factors, side[0], side[1], bias)


def _are_matrices(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> bool:
    """Whether the factors have one block each, and everything is of one dtype."""
    return all([f.shape[0] * f.shape[1] == 1 and f.dtype is x.dtype for f in factors]) and (
        bias is None or (bias.dtype is x.dtype and bias.shape == (factors[-1].shape[2],))
    )


def _by_matrices(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, activation: str | None) -> Tensor:
    """A chain of whole matrices: PyTorch trains it in half of the kernels' time, but for float16."""
    for factor in factors[:-1]:
        x = F.linear(x, factor[0, 0])
    return activate(F.linear(x, factors[-1][0, 0], bias), activation)


def _by_operator(
    x: Tensor, factors: Sequence[Tensor], dim: int, bias: Tensor | None, activation: str | None
) -> Tensor:
    if any_autocast():
        return reference.apply_chain(x, factors, dim, bias, activation)
    if type(factors) is Rotated and not is_grad_enabled():
        return activate(ops.rotated_chain(x, *factors.sources, factors.sizes, bias, dim), activation)
    if is_compiling() and not is_grad_enabled():
        y: Tensor = ops.chain_inference(x, list(factors), bias, dim, activation)
        return y
    return activate(ops.chain(x, list(factors), bias, dim), activation)
