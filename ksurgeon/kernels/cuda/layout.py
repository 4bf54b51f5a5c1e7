"""Vectors of a tensor as the kernels address them: by number, through at most three strides."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EVEN", "Vectors", "scratch", "vectors_along"]


EVEN = 128
"""Rows: slices of many begin at multiples of this."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vector ``r`` begins at ``r // inner · outer_stride + r % inner · inner_stride``.

    Attributes:
        tensor: holds them.
        stride: from one entry of a vector to the next.
        first: number of the vector that counts as the first.
        split: whether the places of the vectors have two strides indeed; ``inner`` says nothing otherwise.
    """

    tensor: Tensor
    inner: int
    outer_stride: int
    inner_stride: int
    stride: int
    split: bool
    first: int = 0

    def from_row(self, first: int) -> "Vectors":
        """The same vectors, counted from another one."""
        return Vectors(
            self.tensor, self.inner, self.outer_stride, self.inner_stride, self.stride, self.split, first
        )

    @property
    def arguments(self) -> tuple[int, int, int, int, int]:
        """What the kernels take after the pointer; strides count the parts of complex numbers."""
        parts = 2 if self.tensor.is_complex() else 1
        return (
            self.first,
            self.inner,
            self.outer_stride * parts,
            self.inner_stride * parts,
            self.stride * parts,
        )

    def is_wide(self, entries: int) -> bool:
        """Whether places inside a vector do not fit 32 bits."""
        return self.arguments[-1] * entries >= 2**31


def _collapsed(sizes: list[int], strides: list[int]) -> tuple[int, int] | None:
    """Number and stride of places with one stride, or None if they have several."""
    count, stride = 1, 0
    for size, step in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if count == 1:
            stride = step
        elif step != stride * count:
            return None
        count *= size
    return count, stride


def vectors_along(x: Tensor, dim: int) -> Vectors | None:
    """The vectors along ``dim`` (counted from 0), or None if their places have too many strides."""
    sizes, strides = list(x.shape), list(x.stride())
    stride = strides[dim]
    whole = _collapsed(sizes[:dim] + sizes[dim + 1 :], strides[:dim] + strides[dim + 1 :])
    if whole is not None:
        count, step = whole
        return Vectors(x, max(count, 1), 0, step, stride, False)
    outer = _collapsed(sizes[:dim], strides[:dim])
    inner = _collapsed(sizes[dim + 1 :], strides[dim + 1 :])
    if outer is None or inner is None:
        return None
    return Vectors(x, inner[0], outer[1], inner[1], stride, True)


def scratch(like: Tensor, rows: int, entries: int, in_rows: bool, room: Tensor | None = None) -> Vectors:
    """Vectors yet to be written, in rows or in columns, in ``room`` if that is given."""
    # Wide accesses need columns that begin at even addresses.
    padded = rows if in_rows else -(-rows // EVEN) * EVEN
    if room is None:
        room = torch.empty(padded * entries, dtype=like.dtype, device=like.device)
    return Vectors(room, 1, 0, entries if in_rows else 1, 1 if in_rows else padded, False)
