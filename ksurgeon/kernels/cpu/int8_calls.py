"""Which calls with int8 factors the library takes, and their operator of PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.kernels.backend import Int8Chain
from ksurgeon.kernels.cpu import int8
from ksurgeon.kernels.eager import has_modes, has_transforms, is_jit_traced, is_special, is_transformed
from ksurgeon.kernels.layout import lies_in_rows, new_result
from ksurgeon.torch_private import not_compiled

__all__ = ["apply_int8", "at_once", "int8_chain"]


def apply_int8(
    x: Tensor,
    first: Int8Chain,
    second: Int8Chain,
    bias: Tensor | None,
    activation: str | None,
    dim: int,
) -> Tensor | None:
    """``kernels.int8.apply_int8`` where the library or its operator has it, else None."""
    compiling = torch.compiler.is_compiling()
    if x.dtype is torch.float64 or not x.is_cpu:
        return None
    if has_transforms() if compiling else is_transformed(x) or is_jit_traced():
        return None
    if compiling or has_modes() or type(x) is not Tensor:
        flat = [[tensor for pair in chain for tensor in pair] for chain in (first, second)]
        y: Tensor = int8_chain(x, flat[0], flat[1], bias, activation, dim)
        return y
    return int8.forward(x, first, second, bias, activation, dim)


def at_once(
    x: Tensor, tensors: tuple[Tensor, ...], bias: Tensor | None, dim: int, activation: str | None
) -> Tensor | None:
    """The product in plain eager inference, if it was packed before; None elsewhere."""
    if torch.is_grad_enabled() or type(x) is not Tensor or is_special():
        return None
    return int8.shortly(x, tensors, bias, dim, activation)


_LIBRARY = torch.library.Library("ksurgeon", "FRAGMENT")
_LIBRARY.define(
    "int8_chain(Tensor x, Tensor[] first, Tensor[] second, Tensor? bias, str? activation=None, "
    "int dim=-1) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)


def _pairs(tensors: Sequence[Tensor]) -> Int8Chain:
    return tuple(zip(tensors[::2], tensors[1::2], strict=True))


@not_compiled  # type: ignore[untyped-decorator]
def _int8_chain(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    bias: Tensor | None,
    activation: str | None = None,
    dim: int = -1,
) -> Tensor:
    y = int8.shortly(x, (*first, *second), bias, dim, activation)
    return int8.forward(x, _pairs(first), _pairs(second), bias, activation, dim) if y is None else y


def _fake(
    x: Tensor,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    bias: Tensor | None,
    activation: str | None = None,
    dim: int = -1,
) -> Tensor:
    (a, d, b), axis = first[-1].shape, dim % x.dim()
    return new_result(x, axis, a * d * b, lies_in_rows(x, axis))


_LIBRARY.impl("int8_chain", _int8_chain, "CPU")
int8_chain = torch.ops.ksurgeon.int8_chain.default
"""``apply_int8`` of plain tensors on the CPU, values and scales in turns."""

torch.library.register_fake("ksurgeon::int8_chain", _fake, lib=_LIBRARY)
