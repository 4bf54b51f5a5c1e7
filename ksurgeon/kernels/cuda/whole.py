"""The Triton kernel of a whole chain: vectors stay on the chip from the first factor to the last."""

import triton
import triton.language as tl

from ksurgeon.kernels.cuda.step import activated, offsets

__all__ = ["apply_whole"]


@triton.jit
def _places(place, DIGITS: tl.constexpr):
    """Where the entries of padded vectors lie in the vectors, and which of them are there; see ``Digit``."""
    at = place * 0
    known = place >= 0
    for k in tl.static_range(len(DIGITS)):
        digit = place % DIGITS[k][0]
        if DIGITS[k][0] != DIGITS[k][1]:
            known = known & (digit < DIGITS[k][1])
        at += digit * DIGITS[k][2]
        place = place // DIGITS[k][0]
    return at, known


@triton.jit
def _stepped(
    v,
    weight,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
):
    """One factor, its entries lying as ``[a, j, i, o]``, or as ``[a, j, o, i]`` if it is ``TRANSPOSED``."""
    of_o: tl.constexpr = C if TRANSPOSED else 1
    of_i: tl.constexpr = 1 if TRANSPOSED else B
    blocks = tl.permute(tl.reshape(v.to(KIND), (ROWS, A, C, D)), (1, 3, 0, 2))
    block, i, o = tl.arange(0, A * D), tl.arange(0, C), tl.arange(0, B)
    entries = tl.load(
        weight + block[:, None, None] * (B * C) + i[None, :, None] * of_i + o[None, None, :] * of_o
    )
    outputs = tl.dot(tl.reshape(blocks, (A * D, ROWS, C)), entries.to(KIND), input_precision=PRECISION)
    return tl.reshape(tl.permute(tl.reshape(outputs, (A, D, ROWS, B)), (2, 0, 3, 1)), (ROWS, A * B * D))


@triton.jit
def apply_whole(
    x,
    weights,
    y,
    bias,
    rows,
    x_first,
    x_inner,
    x_outer_stride,
    x_inner_stride,
    x_stride,
    y_first,
    y_inner,
    y_outer_stride,
    y_inner_stride,
    y_stride,
    STEPS: tl.constexpr,
    X_PLACES: tl.constexpr,
    Y_PLACES: tl.constexpr,
    X_ENTRIES: tl.constexpr,
    Y_ENTRIES: tl.constexpr,
    ROWS: tl.constexpr,
    X_SPLIT: tl.constexpr,
    Y_SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
):
    """Apply every factor to ``ROWS`` vectors; ``STEPS`` is ``(a, b, c, d, first entry)`` of each, padded.

    Bias and activation follow the last. Between two factors vectors are rounded to ``KIND``, as in memory.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None]
    at, known = _places(tl.arange(0, X_ENTRIES), X_PLACES)
    if WIDE:
        at = at.to(tl.int64)
    from_row = offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
    v = tl.load(x + from_row[:, None] + at[None, :] * x_stride, mask=inside & known[None, :], other=0.0)
    for s in tl.static_range(len(STEPS)):
        v = _stepped(
            v,
            weights + STEPS[s][4],
            STEPS[s][0],
            STEPS[s][1],
            STEPS[s][2],
            STEPS[s][3],
            ROWS,
            TRANSPOSED,
            PRECISION,
            KIND,
        )
    at, known = _places(tl.arange(0, Y_ENTRIES), Y_PLACES)
    if bias is not None:
        v += tl.load(bias + at, mask=known, other=0.0).to(tl.float32)[None, :]
    if WIDE:
        at = at.to(tl.int64)
    to_row = offsets(row + y_first, y_inner, y_outer_stride, y_inner_stride, Y_SPLIT)
    tl.store(
        y + to_row[:, None] + at[None, :] * y_stride,
        activated(v, ACTIVATION).to(y.dtype.element_ty),
        mask=inside & known[None, :],
    )
