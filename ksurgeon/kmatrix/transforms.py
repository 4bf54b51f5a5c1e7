"""Fourier, cosine, Hadamard and circulant matrices as chains of Kronecker-sparse factors, exact to rounding.

All factors are computed in double precision, from angles reduced in integers.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.radix import transform_radices

__all__ = [
    "as_real",
    "circulant_factors",
    "dct_factors",
    "dft_factors",
    "digit_reversal",
    "hadamard_factors",
    "symmetric_bins",
    "symmetric_factor",
]

Part = Literal["both", "real"]


def digit_reversal(radices: Sequence[int]) -> Tensor:
    """The order in which the butterfly factors of a DFT take their input: ``F x = B x[digit_reversal]``.

    Bit reversal where every radix is 2.
    """
    order = torch.zeros(1, dtype=torch.int64)
    stride = 1
    for radix in radices:
        # The first stage's digit is the slowest of the time index, the last stage's the fastest.
        order = (torch.arange(radix)[:, None] + radix * order[None, :]).flatten()
        stride *= radix
    return order


def dft_factors(n: int, radices: Sequence[int] | None = None, *, inverse: bool = False) -> list[Tensor]:
    """Butterfly factors B of a DFT, complex128: ``torch.fft.fft(x) = B x[digit_reversal(radices)]``.

    Cooley and Tukey's decimation in time; strides 1, r1, r1·r2, … in the order applied (Dao et al.,
    ICLR 2020, section 2.2). The transposed factors in the opposite order give
    ``torch.fft.fft(x)[digit_reversal]``.

    Args:
        n: size; its radices may be any, also large primes, which become dense blocks.
        radices: their product is n; chosen by ``transform_radices`` if left out.
        inverse: the inverse DFT, scaled by 1/n.

    Raises:
        StructureError: radices that do not multiply to n.
    """
    radices = transform_radices(n) if radices is None else tuple(radices)
    if prod(radices) != n:
        raise StructureError(
            f"radices {list(radices)} multiply to {prod(radices)}, the transform has size {n}"
        )
    factors, stride = [], 1
    for radix in radices:
        d, o, i = torch.arange(stride), torch.arange(radix), torch.arange(radix)
        turns = i * (d[:, None, None] + stride * o[:, None]) % (stride * radix)
        block = _roots(turns, stride * radix, inverse)
        factors.append(block.expand(n // (stride * radix), -1, -1, -1).clone())
        stride *= radix
    if inverse:
        factors[-1] /= n
    return factors


def _roots(turns: Tensor, size: int, inverse: bool = False) -> Tensor:
    """``exp(∓2πi · turns / size)``, exact at multiples of a quarter turn."""
    table = torch.arange(size, dtype=torch.float64) * (2 * torch.pi / size)
    roots = torch.polar(torch.ones_like(table), table if inverse else -table)
    for quarter, value in ((0, 1), (1, 1j if inverse else -1j), (2, -1), (3, -1j if inverse else 1j)):
        if quarter * size % 4 == 0:
            roots[quarter * size // 4] = torch.tensor(value)
    return roots[turns]


def symmetric_factor(factor: Tensor, radix: int) -> Tensor:
    """What of a factor of a DFT whose first radix is ``radix`` belongs to outputs 0 … radix // 2 of the first
    stage: of real input the others are their conjugates, in reverse."""
    half, stride = radix // 2 + 1, factor.shape[1]
    if stride == 1:
        return factor[:, :, :half]
    return factor.unflatten(1, (stride // radix, radix))[:, :, :half].flatten(1, 2)


def symmetric_bins(n: int, radix: int) -> Tensor:
    """Where the frequencies 0 … n // 2 stand in what such factors give; those whose remainder by ``radix`` is
    above half of it stand there as their conjugates."""
    frequencies = torch.arange(n // 2 + 1)
    mirrored = frequencies % radix > radix // 2
    there = torch.where(mirrored, n - frequencies, frequencies)
    return there % radix + (radix // 2 + 1) * (there // radix)


def dct_factors(
    n: int, radices: Sequence[int] | None = None, *, ortho: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """DCT-II as an order and real factors: ``scipy.fft.dct(x) = B x[order]``, float64.

    Makhoul's way (IEEE Trans. ASSP, 1980): the DFT of the even entries followed by the odd ones backwards,
    turned by a quarter of a sample, of which the real part is taken.
    """
    radices = transform_radices(n) if radices is None else tuple(radices)
    factors = dft_factors(n, radices)
    k = torch.arange(n).view(radices[-1], n // radices[-1]).T
    turn = 2 * _roots(k, 4 * n)
    if ortho:
        turn *= (0.5 / n) ** 0.5
        turn[0, 0] *= 0.5**0.5
    factors[-1] = factors[-1] * turn[None, :, :, None]
    index = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)])
    return index[digit_reversal(radices)], as_real(factors, takes="real", gives="real")


def hadamard_factors(n: int, *, ortho: bool = False) -> list[Tensor]:
    """The Hadamard matrix in Sylvester's order, float64, radix 4 where that goes; no permutation is needed.

    Raises:
        StructureError: n is no power of two.
    """
    if n < 1 or n & (n - 1):
        raise StructureError(f"a Hadamard matrix of Sylvester's kind has a power of two as its size, got {n}")
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    factors, stride = [], 1
    while stride < n:
        block = torch.kron(two, two) if n // stride % 4 == 0 else two
        factors.append(block.expand(n // (stride * len(block)), stride, -1, -1).clone())
        stride *= len(block)
    if not factors:
        factors = [torch.ones(1, 1, 1, 1, dtype=torch.float64)]
    if ortho:
        factors[-1] /= n**0.5
    return factors


def circulant_factors(column: Tensor, radices: Sequence[int] | None = None) -> list[Tensor]:
    """Factors of the circulant matrix with the given first column: circular convolution with it.

    ``F⁻¹ diag(F c) F``: the DFT by decimation in frequency leaves its output where the inverse by decimation
    in time takes its input, so that no permutation is left, and the chain has the shape of a K-matrix BB*.

    Args:
        column: vector of size n, real or complex. A real one gives real factors (float64), for real input.
    """
    n = len(column)
    radices = transform_radices(n) if radices is None else tuple(radices)
    spectrum = torch.fft.fft(column.to(torch.complex128))[digit_reversal(radices)]
    first = [factor.mT for factor in reversed(dft_factors(n, radices))]
    last = dft_factors(n, radices, inverse=True)
    last[0] = last[0] * spectrum.view(n // radices[0], 1, 1, radices[0])
    if column.is_complex():
        return first + last
    down = as_real(first, takes="real", gives="both", falling=True)
    return down + as_real(last, takes="both", gives="real")


def as_real(
    factors: Sequence[Tensor], *, takes: Part = "both", gives: Part = "both", falling: bool = False
) -> list[Tensor]:
    """A chain of complex factors as one of real factors, on real and imaginary parts.

    Args:
        factors: complex factors, or their parts along a last dimension, whose strides rise from one to the
            next (``falling``: fall), as those of a butterfly do.
        takes: "real" for real input, of n entries; "both" for input whose parts stand side by side within
            each block of the first factor (entry, part).
        gives: "both" puts all real parts before all imaginary ones where strides rise; "real" only those.
    """
    chain = []
    for position, factor in enumerate(factors):
        a, d, b, c = factor.shape[:4]
        re, im = (factor.real, factor.imag) if factor.is_complex() else factor.unbind(-1)
        # (part out, out, in, part in) where strides rise: the part stays next to the digit that comes next.
        whole = torch.stack([re, -im, im, re], -1).view(a, d, b, c, 2, 2).permute(0, 1, 4, 2, 3, 5)
        if position == 0 and takes == "real":
            whole = whole[..., :1]
        if position == len(factors) - 1 and gives == "real":
            whole = whole[:, :, :1]
        parts_out, parts_in = whole.shape[2], whole.shape[-1]
        if falling:
            whole = whole.permute(0, 1, 3, 2, 5, 4)
        chain.append(whole.reshape(a, d, b * parts_out, c * parts_in).contiguous())
    return chain
