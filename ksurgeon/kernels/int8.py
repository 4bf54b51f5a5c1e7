"""Chains of int8 factors applied to vectors that are quantized as they come."""

import torch
from torch import Tensor, nn

from ksurgeon.kernels import reference
from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.backend import Int8Chain
from ksurgeon.kernels.dispatch import backend_of, is_plain_only
from ksurgeon.kernels.eager import is_special
from ksurgeon.kernels.rounding import LONGEST
from ksurgeon.torch_private import any_autocast

__all__ = ["Int8Chain", "apply_int8", "linear_by_copy"]

_PLAIN = (Tensor, nn.Parameter)
_SMALLEST = 1e-36  # of a vector's largest entry; smaller ones count as zero


def apply_int8(
    x: Tensor,
    first: Int8Chain,
    second: Int8Chain = (),
    bias: Tensor | None = None,
    activation: str | None = None,
    dim: int = -1,
) -> Tensor:
    """Multiply the vectors along dimension ``dim`` of ``x`` by the sum of two chains, add a bias, activate.

    Before each factor every vector is quantized to integers from -127 to 127, its largest absolute entry
    being 127; products are summed exactly. One with an entry that is not finite gives NaN everywhere.

    Args:
        x: real floating tensor, ``in_features`` along ``dim``.
        first, second: chains of equal sizes; the second may be empty.
        bias: ``(out_features,)``.
        activation: as of ``kernels.apply_chain``.
        dim: the dimension that is mapped.

    Returns:
        A tensor of the shape of ``x``, ``out_features`` along ``dim``, in the dtype of ``x``, or in that of
        autocast.

    Raises:
        ValueError: sizes that do not fit, or there is no activation of that name.
    """
    if any_autocast() and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not x.is_floating_point():
        raise ValueError(f"vectors of a real floating dtype are needed, got {x.dtype}")
    y = backend_of(x.device).apply_int8(x, first, second, bias, activation, dim)
    return _by_reference(x, first, second, bias, activation, dim) if y is None else y


def linear_by_copy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``F.linear(x, weight, bias)`` by an int8 copy of the floating weight ``(out, in)``, which is kept as
    long as the weight stays what it is; in plain eager inference of one dtype where a backend has it, as on a
    CPU with compiled kernels. None elsewhere."""
    parts = (weight,) if bias is None else (weight, bias)
    if (
        torch.is_grad_enabled()
        or type(x) is not Tensor
        or not x.dim()
        or x.shape[-1:] != weight.shape[1:]
        or weight.shape[1] > LONGEST
        or is_special()
        or is_plain_only()
        or not all(type(t) in _PLAIN and t.device == x.device and t.dtype is x.dtype for t in parts)
    ):
        return None
    return backend_of(x.device).linear_by_copy(x, weight, bias)


def _by_reference(
    x: Tensor,
    first: Int8Chain,
    second: Int8Chain,
    bias: Tensor | None,
    activation: str | None,
    dim: int = -1,
) -> Tensor:
    exact = torch.promote_types(x.dtype, torch.float32)
    rows = x.movedim(dim, -1).to(exact)
    y = _product(rows, first)
    if second:
        y = y + _product(rows, second)
    return activate(y if bias is None else y + bias.to(exact), activation).to(x.dtype).movedim(-1, dim)


def _product(x: Tensor, chain: Int8Chain) -> Tensor:
    for values, scale in chain:
        most = x.abs().amax(-1, keepdim=True)
        counts, finite = most > _SMALLEST, most.isfinite()
        numbers = torch.where(counts & finite, x * (127 / torch.where(counts, most, 1)), 0).round()
        sums = reference.apply_chain(numbers, [values.to(x.dtype)], -1)
        step = torch.where(finite, torch.where(counts, most / 127, 0), torch.nan)
        x = sums * scale.to(x.dtype).transpose(1, 2).reshape(-1) * step
    return x
