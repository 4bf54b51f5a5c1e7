"""The Triton kernels: one factor applied to many vectors, and the gradient of one factor.

Both address vectors through strides, so that rows, columns and channels-first images need no copy. A program
takes ``GROUP`` neighbouring blocks of a factor with a stride: their entries lie side by side in memory.
"""

import triton
import triton.language as tl

__all__ = ["apply_step", "outer_step"]


@triton.jit
def _offsets(row, inner, outer_stride, inner_stride, SPLIT: tl.constexpr):
    """Where the vectors numbered ``row`` begin; ``SPLIT`` if their places have two strides."""
    if SPLIT:
        return (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    return row.to(tl.int64) * inner_stride


@triton.jit
def apply_step(
    x,
    weight,
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
    A: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    X_SPLIT: tl.constexpr,
    Y_SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
):
    """``y[r, a, o, j] = Σ_i weight[a, j, o, i] · x[r, a, i, j]``, plus ``bias[a, o, j]`` unless it is None.

    ``TRANSPOSED``: the weight lies as ``[a, j, i, o]``. Products of ``KIND`` are summed in float32.
    """
    groups: tl.constexpr = (D + GROUP - 1) // GROUP
    outs: tl.constexpr = (B + OUT - 1) // OUT
    of_o: tl.constexpr = 1 if TRANSPOSED else C
    of_i: tl.constexpr = B if TRANSPOSED else 1
    program = tl.program_id(0)
    tile = program // (A * groups * outs)
    if BACKWARDS:  # the rows that the step before wrote last are those still in the cache
        tile = tl.num_programs(0) // (A * groups * outs) - 1 - tile
    block = program % (A * groups * outs)
    a = block // (groups * outs)
    j0 = block // outs % groups * GROUP
    o = block % outs * OUT + tl.arange(0, OUT)
    row = tile * ROWS + tl.arange(0, ROWS)
    from_row = _offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
    to_row = _offsets(row + y_first, y_inner, y_outer_stride, y_inner_stride, Y_SPLIT)
    inside = row < rows
    if GROUP == 1:
        total = tl.full((ROWS, OUT), 0.0, tl.float32)
        for start in range(0, C, IN):
            i = start + tl.arange(0, IN)
            entry = (a * C + i) * D + j0
            if WIDE:
                entry = entry.to(tl.int64)
            of_x = tl.load(
                x + from_row[:, None] + entry[None, :] * x_stride,
                mask=inside[:, None] & (i < C)[None, :],
                other=0.0,
            )
            of_weight = tl.load(
                weight + (a * D + j0) * (B * C) + (o * of_o)[None, :] + (i * of_i)[:, None],
                mask=(o < B)[None, :] & (i < C)[:, None],
                other=0.0,
            )
            total = tl.dot(of_x.to(KIND), of_weight.to(KIND), total, input_precision=PRECISION)
        target = (a * B + o) * D + j0
        if bias is not None:
            total += tl.load(bias + target, mask=o < B, other=0.0).to(tl.float32)[None, :]
        if WIDE:
            target = target.to(tl.int64)
        tl.store(
            y + to_row[:, None] + target[None, :] * y_stride,
            total.to(y.dtype.element_ty),
            mask=inside[:, None] & (o < B)[None, :],
        )
    else:
        j = j0 + tl.arange(0, GROUP)
        totals = tl.full((GROUP, ROWS, OUT), 0.0, tl.float32)
        for start in range(0, C, IN):
            i = start + tl.arange(0, IN)
            entries = (a * C + i)[None, None, :] * D + j[:, None, None]
            if WIDE:
                entries = entries.to(tl.int64)
            of_x = tl.load(
                x + from_row[None, :, None] + entries * x_stride,
                mask=inside[None, :, None] & (j < D)[:, None, None] & (i < C)[None, None, :],
                other=0.0,
            )
            of_weight = tl.load(
                weight
                + ((a * D + j) * (B * C))[:, None, None]
                + (o * of_o)[None, None, :]
                + (i * of_i)[None, :, None],
                mask=(j < D)[:, None, None] & (o < B)[None, None, :] & (i < C)[None, :, None],
                other=0.0,
            )
            totals = tl.dot(of_x.to(KIND), of_weight.to(KIND), totals, input_precision=PRECISION)
        targets = (a * B + o)[None, None, :] * D + j[:, None, None]
        known = (j < D)[:, None, None] & (o < B)[None, None, :]
        if bias is not None:
            totals += tl.load(bias + targets, mask=known, other=0.0).to(tl.float32)
        if WIDE:
            targets = targets.to(tl.int64)
        tl.store(
            y + to_row[None, :, None] + targets * y_stride,
            totals.to(y.dtype.element_ty),
            mask=known & inside[None, :, None],
        )


@triton.jit
def outer_step(
    g,
    x,
    sums,
    rows,
    g_first,
    g_inner,
    g_outer_stride,
    g_inner_stride,
    g_stride,
    x_first,
    x_inner,
    x_outer_stride,
    x_inner_stride,
    x_stride,
    A: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    G_SPLIT: tl.constexpr,
    X_SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
    EACH: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
):
    """``sums[s, a, j, o, i] = Σ_r g[r, a, o, j] · x[r, a, i, j]`` over the ``EACH`` rows of share ``s``."""
    groups: tl.constexpr = (D + GROUP - 1) // GROUP
    outs: tl.constexpr = (B + OUT - 1) // OUT
    ins: tl.constexpr = (C + IN - 1) // IN
    blocks: tl.constexpr = A * groups * outs * ins
    program = tl.program_id(0)
    share = program // blocks
    block = program % blocks
    a = block // (groups * outs * ins)
    j0 = block // (outs * ins) % groups * GROUP
    o = block // ins % outs * OUT + tl.arange(0, OUT)
    i = block % ins * IN + tl.arange(0, IN)
    if GROUP == 1:
        of_g = (a * B + o) * D + j0
        of_x = (a * C + i) * D + j0
        if WIDE:
            of_g = of_g.to(tl.int64)
            of_x = of_x.to(tl.int64)
        total = tl.full((OUT, IN), 0.0, tl.float32)
        for start in range(0, EACH, ROWS):
            row = share * EACH + start + tl.arange(0, ROWS)
            g_row = _offsets(row + g_first, g_inner, g_outer_stride, g_inner_stride, G_SPLIT)
            x_row = _offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
            left = tl.load(
                g + of_g[:, None] * g_stride + g_row[None, :],
                mask=(o < B)[:, None] & (row < rows)[None, :],
                other=0.0,
            )
            right = tl.load(
                x + of_x[None, :] * x_stride + x_row[:, None],
                mask=(i < C)[None, :] & (row < rows)[:, None],
                other=0.0,
            )
            total = tl.dot(left.to(KIND), right.to(KIND), total, input_precision=PRECISION)
        place = ((share * A + a).to(tl.int64) * D + j0) * (B * C)
        tl.store(sums + place + o[:, None] * C + i[None, :], total, mask=(o < B)[:, None] & (i < C)[None, :])
    else:
        j = j0 + tl.arange(0, GROUP)
        of_gs = (a * B + o)[None, :, None] * D + j[:, None, None]
        of_xs = (a * C + i)[None, None, :] * D + j[:, None, None]
        if WIDE:
            of_gs = of_gs.to(tl.int64)
            of_xs = of_xs.to(tl.int64)
        totals = tl.full((GROUP, OUT, IN), 0.0, tl.float32)
        for start in range(0, EACH, ROWS):
            row = share * EACH + start + tl.arange(0, ROWS)
            g_row = _offsets(row + g_first, g_inner, g_outer_stride, g_inner_stride, G_SPLIT)
            x_row = _offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
            left = tl.load(
                g + of_gs * g_stride + g_row[None, None, :],
                mask=(j < D)[:, None, None] & (o < B)[None, :, None] & (row < rows)[None, None, :],
                other=0.0,
            )
            right = tl.load(
                x + of_xs * x_stride + x_row[None, :, None],
                mask=(j < D)[:, None, None] & (i < C)[None, None, :] & (row < rows)[None, :, None],
                other=0.0,
            )
            totals = tl.dot(left.to(KIND), right.to(KIND), totals, input_precision=PRECISION)
        places = ((share * A + a).to(tl.int64) * D + j) * (B * C)
        tl.store(
            sums + places[:, None, None] + o[None, :, None] * C + i[None, None, :],
            totals,
            mask=(j < D)[:, None, None] & (o < B)[None, :, None] & (i < C)[None, None, :],
        )
