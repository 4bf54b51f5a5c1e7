"""Chains of int8 factors applied to vectors that are quantized as they come."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ksurgeon.kernels import cpu, reference
from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.cpu import int8 as by_library
from ksurgeon.kernels.cpu import int8_copy as by_copy
from ksurgeon.kernels.cpu.layout import lies_in_rows, new_result
from ksurgeon.kernels.dispatch import chosen_backend, is_plain_only
from ksurgeon.kernels.eager import has_modes, has_transforms, is_jit_traced, is_special, is_transformed
from ksurgeon.torch_private import any_autocast, not_compiled

__all__ = ["Int8Chain", "apply_int8", "at_once", "int8_chain", "linear_by_copy"]

Int8Chain = Sequence[tuple[Tensor, Tensor]]
"""Of every factor in the order applied its values, int8 ``(a, d, b, c)``, and scales ``(a, d, b)``."""

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
    compiling = torch.compiler.is_compiling()
    if (
        x.dtype is torch.float64
        or not x.is_cpu
        or not cpu.is_available()
        or chosen_backend(x.device) != "cpu"
    ):
        return _by_reference(x, first, second, bias, activation, dim)
    if has_transforms() if compiling else is_transformed(x) or is_jit_traced():
        return _by_reference(x, first, second, bias, activation, dim)
    if compiling or has_modes() or type(x) is not Tensor:
        flat = [[tensor for pair in chain for tensor in pair] for chain in (first, second)]
        y: Tensor = int8_chain(x, flat[0], flat[1], bias, activation, dim)
        return y
    return by_library.forward(x, first, second, bias, activation, dim)


def at_once(
    x: Tensor, tensors: tuple[Tensor, ...], bias: Tensor | None, dim: int, activation: str | None
) -> Tensor | None:
    """``apply_int8`` along ``dim`` in plain eager inference, if it was packed before; None elsewhere.

    ``tensors`` are values and scales of all factors in order.
    """
    if torch.is_grad_enabled() or type(x) is not Tensor or is_special():
        return None
    return by_library.shortly(x, tensors, bias, dim, activation)


def linear_by_copy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``F.linear(x, weight, bias)`` by an int8 copy of the floating weight ``(out, in)``, which is kept as
    long as the weight stays what it is; in plain eager inference of one dtype on a CPU with compiled kernels.
    None elsewhere."""
    parts = (weight,) if bias is None else (weight, bias)
    if (
        torch.is_grad_enabled()
        or type(x) is not Tensor
        or not x.is_cpu
        or not x.dim()
        or x.shape[-1:] != weight.shape[1:]
        or weight.shape[1] > by_library.LONGEST
        or not cpu.is_available()
        or is_special()
        or is_plain_only()
        or chosen_backend() != "cpu"
        or not all(type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype is x.dtype for t in parts)
    ):
        return None
    return by_copy.linear(x, weight, bias)


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
    y = by_library.shortly(x, (*first, *second), bias, dim, activation)
    return by_library.forward(x, _pairs(first), _pairs(second), bias, activation, dim) if y is None else y


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
