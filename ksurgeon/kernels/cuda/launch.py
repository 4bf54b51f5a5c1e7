"""Starts the kernels. Imports Triton: only to be imported once a tensor wants it."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ksurgeon.kernels.cuda.digits import Whole
from ksurgeon.kernels.cuda.layout import Vectors
from ksurgeon.kernels.cuda.plan import Tiles, outer_tiles, step_tiles, whole_tiles
from ksurgeon.kernels.cuda.step import apply_step, outer_step
from ksurgeon.kernels.cuda.whole import apply_whole
from ksurgeon.patterns.pattern import Pattern

__all__ = ["Device", "allows_tf32", "device_of", "gradient_of_weight", "step", "whole"]

_KINDS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.complex64: tl.float32,
}


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


def allows_tf32() -> bool:
    """Whether PyTorch's matrix products of float32 numbers may be those of TF32."""
    # allow_tf32 raises where this, its successor, was set.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _arithmetic(x: Tensor) -> dict[str, object]:
    """In what type operands are multiplied, and how.

    float32 as three products of TF32, with errors of its own size, or as one where PyTorch's own matrix
    products are allowed the same.
    """
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    kind = tl.float32 if x.device.type == "cpu" else _KINDS[x.dtype]
    if kind != tl.float32:
        return {"KIND": kind, "PRECISION": "ieee"}
    return {"KIND": kind, "PRECISION": "tf32" if allows_tf32() else "tf32x3"}


def _next_power(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()


def _real(x: Tensor | None) -> Tensor | None:
    return torch.view_as_real(x) if x is not None and x.is_complex() else x


def _cut(pattern: Pattern, tiles: Tiles, x: Tensor) -> dict[str, object]:
    """The constants of the kernels of one factor."""
    a, b, c, d = pattern
    return {
        "A": a,
        "B": b,
        "C": c,
        "D": d,
        "ROWS": tiles.rows,
        "GROUP": tiles.group,
        "OUT": tiles.out,
        "IN": tiles.inner,
        "COMPLEX": x.is_complex(),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        **_arithmetic(x),
    }


def step(
    x: Vectors,
    weight: Tensor,
    y: Vectors,
    rows: int,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    transposed: bool = False,
    backwards: bool = False,
) -> None:
    """Apply one contiguous factor ``(a, d, b, c)`` to ``rows`` vectors of ``x``; the results go to ``y``.

    Where it is ``transposed`` it is conjugated, too. ``backwards``: begin with the last rows.
    """
    pattern = Pattern.of(weight.shape)
    pattern = pattern.transposed if transposed else pattern
    side_by_side = x.stride == 1 or y.stride == 1
    tiles = step_tiles(
        pattern, _next_power(rows), side_by_side, x.tensor.dtype.itemsize, device_of(x.tensor).programs
    )
    apply_step[(tiles.programs(pattern, rows),)](
        _real(x.tensor),
        _real(weight),
        _real(y.tensor),
        _real(bias),
        rows,
        *x.arguments,
        *y.arguments,
        X_SPLIT=x.split,
        Y_SPLIT=y.split,
        WIDE=x.is_wide(pattern.in_features) or y.is_wide(pattern.out_features),
        TRANSPOSED=transposed,
        BACKWARDS=backwards,
        ACTIVATION=activation,
        **_cut(pattern, tiles, x.tensor),
    )


def whole(
    x: Vectors,
    weights: Tensor,
    plan: Whole,
    y: Vectors,
    rows: int,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    transposed: bool = False,
) -> None:
    """Apply a chain of ``packed`` factors, or its transpose, to ``rows`` vectors of ``x`` at once."""
    steps, (first, last) = plan.steps, plan.places
    if transposed:
        steps, first, last = tuple((a, c, b, d, at) for a, b, c, d, at in reversed(steps)), last, first
    x_entries, y_entries = (
        steps[0][0] * steps[0][2] * steps[0][3],
        steps[-1][0] * steps[-1][1] * steps[-1][3],
    )
    kind = x.tensor.dtype
    side_by_side = x.stride == 1 and y.stride == 1
    programs = device_of(x.tensor).programs
    tiles = whole_tiles(plan.widest, _next_power(rows), side_by_side, kind.itemsize, programs)
    apply_whole[(-(-rows // tiles.rows),)](
        x.tensor,
        weights,
        y.tensor,
        bias,
        rows,
        *x.arguments,
        *y.arguments,
        STEPS=steps,
        X_PLACES=tuple(tuple(digit) for digit in first),
        Y_PLACES=tuple(tuple(digit) for digit in last),
        X_ENTRIES=x_entries,
        Y_ENTRIES=y_entries,
        ROWS=tiles.rows,
        X_SPLIT=x.split,
        Y_SPLIT=y.split,
        WIDE=x.is_wide(x_entries) or y.is_wide(y_entries),
        TRANSPOSED=transposed,
        ACTIVATION=activation,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **_arithmetic(x.tensor),
    )


def gradient_of_weight(g: Vectors, x: Vectors, pattern: Pattern, rows: int) -> Tensor:
    """Gradient of a factor from those of its results and from its inputs, in float32 or complex64.

    Programs that share a block sum over rows of their own; their sums are then added in one fixed order.
    """
    a, b, c, d = pattern
    side_by_side = g.stride == 1 or x.stride == 1
    kind = x.tensor.dtype
    tiles, each = outer_tiles(pattern, rows, side_by_side, kind.itemsize, device_of(x.tensor).programs)
    shares = -(-rows // each)
    wide = torch.complex64 if kind.is_complex else torch.float32
    sums = torch.empty(shares, *pattern.shape, dtype=wide, device=x.tensor.device)
    programs = shares * a * -(-d // tiles.group) * -(-b // tiles.out) * -(-c // tiles.inner)
    outer_step[(programs,)](
        _real(g.tensor),
        _real(x.tensor),
        _real(sums),
        rows,
        *g.arguments,
        *x.arguments,
        G_SPLIT=g.split,
        X_SPLIT=x.split,
        WIDE=g.is_wide(pattern.out_features) or x.is_wide(pattern.in_features),
        EACH=each,
        **_cut(pattern, tiles, x.tensor),
    )
    return sums[0] if shares == 1 else sums.sum(0)
