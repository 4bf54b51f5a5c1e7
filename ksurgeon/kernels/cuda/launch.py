"""Starts the kernels. Imports Triton: only to be imported once a tensor wants it."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ksurgeon.kernels.cuda.layout import Vectors
from ksurgeon.kernels.cuda.plan import outer_tiles, step_tiles
from ksurgeon.kernels.cuda.step import apply_step, outer_step
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["Device", "device_of", "gradient_of_weight", "step"]

_KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Device(NamedTuple):
    """What the cut of the work depends on."""

    processors: int
    cache: int

    @property
    def programs(self) -> int:
        """Programs that keep it busy."""
        return 2 * self.processors


@lru_cache
def _properties(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.multi_processor_count, properties.L2_cache_size)


def device_of(x: Tensor) -> Device:
    """The device of a tensor; a small one for tensors on the CPU, where Triton interprets."""
    return _properties(x.device.index) if x.is_cuda else Device(2, 4096)


def _precision(dtype: torch.dtype) -> str:
    """How operands are multiplied: float32 as three products of TF32, with errors of its own size, or as one.

    One where PyTorch's own matrix products are allowed the same.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _kind(x: Tensor) -> tl.dtype:
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    return tl.float32 if x.device.type == "cpu" else _KINDS[x.dtype]


def _next_power(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()


def step(
    x: Vectors,
    weight: Tensor,
    y: Vectors,
    rows: int,
    bias: Tensor | None = None,
    *,
    transposed: bool = False,
    backwards: bool = False,
) -> None:
    """Apply one contiguous factor ``(a, d, b, c)`` to ``rows`` vectors of ``x``; the results go to ``y``."""
    a, d, b, c = weight.shape
    if transposed:
        b, c = c, b
    pattern, dtype = Pattern(a, b, c, d), x.tensor.dtype
    side_by_side = x.stride == 1 or y.stride == 1
    tiles = step_tiles(pattern, _next_power(rows), side_by_side, dtype.itemsize, device_of(x.tensor).programs)
    apply_step[(tiles.programs(pattern, rows),)](
        x.tensor,
        weight,
        y.tensor,
        bias,
        rows,
        *x.arguments,
        *y.arguments,
        A=a,
        D=d,
        B=b,
        C=c,
        ROWS=tiles.rows,
        GROUP=tiles.group,
        OUT=tiles.out,
        IN=tiles.inner,
        X_SPLIT=x.split,
        Y_SPLIT=y.split,
        WIDE=x.is_wide(pattern.in_features) or y.is_wide(pattern.out_features),
        TRANSPOSED=transposed,
        BACKWARDS=backwards,
        PRECISION=_precision(dtype),
        KIND=_kind(x.tensor),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def gradient_of_weight(g: Vectors, x: Vectors, pattern: Pattern, rows: int) -> Tensor:
    """Gradient of a factor, in float32, from those of its results and from its inputs.

    Programs that share a block sum over rows of their own; their sums are then added in one fixed order.
    """
    a, b, c, d = pattern
    side_by_side = g.stride == 1 or x.stride == 1
    dtype = x.tensor.dtype
    tiles, each = outer_tiles(pattern, rows, side_by_side, dtype.itemsize, device_of(x.tensor).programs)
    shares = -(-rows // each)
    sums = torch.empty(shares, *pattern.shape, dtype=torch.float32, device=x.tensor.device)
    programs = shares * a * -(-d // tiles.group) * -(-b // tiles.out) * -(-c // tiles.inner)
    outer_step[(programs,)](
        g.tensor,
        x.tensor,
        sums,
        rows,
        *g.arguments,
        *x.arguments,
        A=a,
        D=d,
        B=b,
        C=c,
        ROWS=tiles.rows,
        GROUP=tiles.group,
        OUT=tiles.out,
        IN=tiles.inner,
        G_SPLIT=g.split,
        X_SPLIT=x.split,
        WIDE=g.is_wide(pattern.out_features) or x.is_wide(pattern.in_features),
        EACH=each,
        PRECISION=_precision(dtype),
        KIND=_kind(x.tensor),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return sums[0] if shares == 1 else sums.sum(0)
