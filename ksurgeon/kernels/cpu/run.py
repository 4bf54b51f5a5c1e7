"""Calls the library on real tensors. Everything it relies on is checked here."""

import ctypes
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ksurgeon.kernels.activation import activate, check_activation
from ksurgeon.kernels.cpu.merging import pull_back
from ksurgeon.kernels.cpu.native import ACTIVATIONS, KINDS, Chain, fast, is_available, library
from ksurgeon.kernels.cpu.pack import Pack, find_pack, forget, record_of
from ksurgeon.kernels.cpu.plan import FEW_ROWS
from ksurgeon.kernels.layout import check_memory, in_rows, lies_in_rows, new_result
from ksurgeon.patterns.pattern import axis_of
from ksurgeon.patterns.rotated import sources_of

__all__ = ["DTYPES", "backward", "forward", "shortly"]

DTYPES = frozenset(KINDS)

_NAMES = tuple(ACTIVATIONS)
_TRIES = 3  # before nothing is compared, where another thread writes to the factors
_threads = torch.get_num_threads
if is_available():
    _rows, _columns, _backward = library().ks_rows, library().ks_columns, library().ks_backward


def shortly(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None
) -> Tensor | None:
    """The product of plain CPU tensors if it can be had at once, else None.

    All checks of a product whose factors have been packed are made in one call of ``_fast``, where that was
    compiled.
    """
    if type(factors) is not tuple:
        factors = sources_of(factors)
    record = record_of(factors[0]) if factors else None
    code = ACTIVATIONS.get(activation, -1)
    if record is None or code < 0:
        return None
    y: Tensor | None = fast.product(x, factors, bias, record, code, _threads(), dim)
    return y


def forward(
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None,
    dim: int,
    activation: str | None = None,
    light: bool = False,
) -> Tensor:
    """Apply a chain to a CPU tensor; no gradients, no modes. ``light`` is that of ``find_pack``.

    Raises:
        ValueError: the size along ``dim``, or that of the bias, is not the chain's, the input's dtype is not
            that of the factors, or there is no such activation.
        MemoryError: there is no memory for the intermediate vectors.
        RuntimeError: the memory of an argument has been freed.
    """
    code = ACTIVATIONS.get(activation, -1)
    if code < 0:
        check_activation(activation)
    if not light:
        y = shortly(x, factors, bias, dim, activation)
        if y is not None:
            return y
    x = _held(x, "the input")
    if bias is not None and bias.is_cpu:
        bias = _held(bias, "the bias").to(x.dtype).contiguous()
    for _ in range(_TRIES):
        y = _forward(x, factors, find_pack(factors, light), bias, dim, code)
        if y is not None:
            return y
        forget(factors)  # they have changed behind the back of their version counters
    y = _forward(x, factors, Pack(factors, light, guarded=False), bias, dim, code)
    assert y is not None  # nothing was compared
    return y


def _forward(
    x: Tensor, factors: Sequence[Tensor], pack: Pack, bias: Tensor | None, dim: int, code: int
) -> Tensor | None:
    """The product, or None where the factors are no longer what was packed."""
    axis = axis_of(dim, x.dim())
    if pack.index(factors) is not None:
        if not pack.same_contents():
            return None
        return activate(_permuted(x, pack, factors, bias, axis), _NAMES[code])
    return _general(x, factors, pack, bias, axis, code)


def _general(
    x: Tensor, factors: Sequence[Tensor], pack: Pack, bias: Tensor | None, axis: int, code: int
) -> Tensor | None:
    if x.dtype is not (dtype := sources_of(factors)[0].dtype):
        raise ValueError(f"vectors of the factors' dtype, {dtype}, are needed, got {x.dtype}")
    if in_rows(x, axis):
        rows = x.numel() // max(x.shape[axis], 1)
        chain = pack.rows(factors, rows)
        _check(x.shape[axis], chain, bias)
        y, lies_so = new_result(x, axis, chain.out_features, True), lies_in_rows(x, axis)
        x = x.movedim(axis, -1).contiguous()
        source, to, start = x.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr()
        inputs, kind = chain.in_features, KINDS[x.dtype]
        done = _done(_rows(chain.address, source, inputs, to, rows, start, code, _threads(), kind), y)
        return done if done is None or lies_so else done.contiguous()
    chain = pack.columns(factors)
    x = x.contiguous()
    _check(x.shape[axis], chain, bias)
    y = new_result(x, axis, chain.out_features, False)
    if x.numel():
        images = prod(x.shape[:axis])
        columns = x.numel() // (images * chain.in_features)
        source, to, start = x.data_ptr(), y.data_ptr(), None if bias is None else bias.data_ptr()
        threads, kind = _threads(), KINDS[x.dtype]
        return _done(_columns(chain.address, source, to, images, columns, start, code, threads, kind), y)
    return y


def _done(status: int, y: Tensor) -> Tensor | None:
    """What came of a call: the result, or None where the factors were no longer what was packed."""
    if status < 0:
        raise MemoryError("not enough memory for the intermediate vectors of a product")
    return y if status else None


def _permuted(x: Tensor, pack: Pack, factors: Sequence[Tensor], bias: Tensor | None, axis: int) -> Tensor:
    index = pack.index(factors)
    assert index is not None
    if x.shape[axis] != len(index):
        raise ValueError(f"the chain takes vectors of {len(index)} entries, got {x.shape[axis]}")
    if bias is not None and not (bias.is_cpu and bias.shape == index.shape):
        raise ValueError(
            f"the bias must have shape ({len(index)},) and be on the CPU, got {tuple(bias.shape)}"
        )
    y = new_result(x, axis, len(index), rows := lies_in_rows(x, axis))
    if rows:
        torch.index_select(x.movedim(axis, -1).contiguous(), -1, index, out=y.movedim(axis, -1))
    else:
        torch.index_select(x.contiguous(), axis, index, out=y)
    return y if bias is None else y.add_(bias.view(-1, *[1] * (x.dim() - axis - 1)))


def _held(x: Tensor, name: str) -> Tensor:
    """``x`` with what its entries are in memory, nothing left to negate or conjugate; no other thread can
    exchange its memory."""
    x = x.detach()
    check_memory(x, name)
    return x.resolve_neg().resolve_conj()


def _check(size: int, chain: Chain, bias: Tensor | None) -> None:
    if size != chain.in_features:
        raise ValueError(f"the chain takes vectors of {chain.in_features} entries, got {size}")
    if bias is not None and not bias.is_cpu:
        raise ValueError(f"the bias must be on the CPU as the vectors are, got one on {bias.device}")
    if bias is not None and bias.shape != (chain.out_features,):
        raise ValueError(f"the bias must have shape ({chain.out_features},), got {tuple(bias.shape)}")


def backward(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], dim: int, need_x: bool, need_factors: bool
) -> tuple[Tensor | None, list[Tensor] | None]:
    """Gradients of the input and of the factors; the intermediate vectors are computed once more.

    ``g`` and ``x`` have the dtype of the factors; sums of half precision are made in float32.

    Raises:
        MemoryError: there is no memory for the intermediate vectors.
        RuntimeError: the memory of an argument has been freed.
    """
    x, g = _held(x, "the input"), _held(g, "the gradient")
    pack, axis = find_pack(factors, light=True), dim % x.dim()
    by_rows = in_rows(x, axis)
    if by_rows:
        x, g = x.movedim(axis, -1), g.movedim(axis, -1)
    x, g = x.contiguous(), g.contiguous()
    chain, transposed = pack.rows(factors, FEW_ROWS), pack.transposed(factors)
    _check(x.shape[-1 if by_rows else axis], chain, None)
    gx = torch.empty_like(x) if need_x else None
    sums = torch.float64 if chain.is_double else torch.float32
    gradients = []
    if need_factors:
        for step in chain.steps:
            gradients.append(x.new_zeros(library().ks_size(step, chain.is_double), dtype=sums))
    pointers = (ctypes.c_void_p * len(gradients))(*(packed.data_ptr() for packed in gradients))
    if x.numel():
        status = _backward(
            chain.address,
            transposed.address,
            x.data_ptr(),
            g.data_ptr(),
            None if gx is None else gx.data_ptr(),
            ctypes.addressof(pointers) if need_factors else None,
            x.numel() // chain.in_features,
            0 if by_rows else prod(x.shape[axis + 1 :]),
            _threads(),
            KINDS[x.dtype],
        )
        _done(status or -1, x)
    result_x = gx.movedim(-1, axis) if gx is not None and by_rows else gx
    if not need_factors:
        return result_x, None
    plain = chain.gradients(gradients)
    exact = [factor.detach().to(plain[0].dtype) for factor in factors]
    of_factors = pull_back(exact, pack.counts(factors, "rows"), plain)
    return result_x, [gradient.to(factors[0].dtype) for gradient in of_factors]
