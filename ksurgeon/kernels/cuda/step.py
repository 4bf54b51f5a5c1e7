"""The Triton kernels of one factor: applied to many vectors, and its gradient.

Both address vectors through strides, so that rows, columns and channels-first images need no copy. A program
takes ``GROUP`` neighbouring blocks of a factor with a stride: their entries lie side by side in memory.
Complex numbers are pairs of real ones, side by side; strides count the real ones.
"""

import triton
import triton.language as tl

__all__ = ["activated", "apply_step", "offsets", "outer_step"]


@triton.jit
def offsets(row, inner, outer_stride, inner_stride, SPLIT: tl.constexpr):
    """Where the vectors numbered ``row`` begin; ``SPLIT`` if their places have two strides."""
    if SPLIT:
        return (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    return row.to(tl.int64) * inner_stride


@triton.jit
def activated(v, ACTIVATION: tl.constexpr):
    """An activation by its name in ``ksurgeon.kernels.activations``; NaN stays NaN."""
    if ACTIVATION == "relu":
        v = tl.where(v <= 0.0, 0.0, v)
    elif ACTIVATION == "relu6":
        v = tl.where(v <= 0.0, 0.0, tl.where(v >= 6.0, 6.0, v))
    elif ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        v = v / (1.0 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
    elif ACTIVATION == "silu":
        v = v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "hardswish":
        v = v * tl.where(v <= -3.0, 0.0, tl.where(v >= 3.0, 1.0, (v + 3.0) * 0.16666666666666666))
    return v


@triton.jit
def _add_product(
    real,
    imaginary,
    left,
    left_mask,
    right,
    right_mask,
    CONJUGATE: tl.constexpr,
    COMPLEX: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add what lies at ``left`` times what lies at ``right``, that conjugated if asked for."""
    l_real = tl.load(left, mask=left_mask, other=0.0).to(KIND)
    r_real = tl.load(right, mask=right_mask, other=0.0).to(KIND)
    real = tl.dot(l_real, r_real, real, input_precision=PRECISION)
    if COMPLEX:
        l_imaginary = tl.load(left + 1, mask=left_mask, other=0.0).to(KIND)
        r_imaginary = tl.load(right + 1, mask=right_mask, other=0.0).to(KIND)
        if CONJUGATE:
            r_imaginary = -r_imaginary
        real = tl.dot(-l_imaginary, r_imaginary, real, input_precision=PRECISION)
        imaginary = tl.dot(l_real, r_imaginary, imaginary, input_precision=PRECISION)
        imaginary = tl.dot(l_imaginary, r_real, imaginary, input_precision=PRECISION)
    return real, imaginary


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
    ACTIVATION: tl.constexpr,
    COMPLEX: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
):
    """``y[r, a, o, j] = Σ_i weight[a, j, o, i] · x[r, a, i, j]``, plus ``bias[a, o, j]`` unless it is None.

    ``TRANSPOSED``: the weight lies as ``[a, j, i, o]``, and is conjugated. Products of ``KIND`` are summed in
    float32. ``ACTIVATION``, unless it is None, is applied to the sums.
    """
    groups: tl.constexpr = (D + GROUP - 1) // GROUP
    outs: tl.constexpr = (B + OUT - 1) // OUT
    of_o: tl.constexpr = 1 if TRANSPOSED else C
    of_i: tl.constexpr = B if TRANSPOSED else 1
    parts: tl.constexpr = 2 if COMPLEX else 1
    program = tl.program_id(0)
    tile = program // (A * groups * outs)
    if BACKWARDS:  # the rows that the step before wrote last are those still in the cache
        tile = tl.num_programs(0) // (A * groups * outs) - 1 - tile
    block = program % (A * groups * outs)
    a = block // (groups * outs)
    j0 = block // outs % groups * GROUP
    o = block % outs * OUT + tl.arange(0, OUT)
    row = tile * ROWS + tl.arange(0, ROWS)
    from_row = offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
    to_row = offsets(row + y_first, y_inner, y_outer_stride, y_inner_stride, Y_SPLIT)
    inside = row < rows
    if GROUP == 1:
        real = tl.full((ROWS, OUT), 0.0, tl.float32)
        imaginary = real
        for start in range(0, C, IN):
            i = start + tl.arange(0, IN)
            entry = (a * C + i) * D + j0
            if WIDE:
                entry = entry.to(tl.int64)
            real, imaginary = _add_product(
                real,
                imaginary,
                x + from_row[:, None] + entry[None, :] * x_stride,
                inside[:, None] & (i < C)[None, :],
                weight + ((a * D + j0) * (B * C) + (o * of_o)[None, :] + (i * of_i)[:, None]) * parts,
                (o < B)[None, :] & (i < C)[:, None],
                TRANSPOSED,
                COMPLEX,
                KIND,
                PRECISION,
            )
        target = ((a * B + o) * D + j0)[None, :]
        known = (o < B)[None, :]
        first = to_row[:, None]
        within = inside[:, None]
    else:
        j = j0 + tl.arange(0, GROUP)
        real = tl.full((GROUP, ROWS, OUT), 0.0, tl.float32)
        imaginary = real
        for start in range(0, C, IN):
            i = start + tl.arange(0, IN)
            entries = (a * C + i)[None, None, :] * D + j[:, None, None]
            if WIDE:
                entries = entries.to(tl.int64)
            real, imaginary = _add_product(
                real,
                imaginary,
                x + from_row[None, :, None] + entries * x_stride,
                inside[None, :, None] & (j < D)[:, None, None] & (i < C)[None, None, :],
                weight
                + (
                    ((a * D + j) * (B * C))[:, None, None]
                    + (o * of_o)[None, None, :]
                    + (i * of_i)[None, :, None]
                )
                * parts,
                (j < D)[:, None, None] & (o < B)[None, None, :] & (i < C)[None, :, None],
                TRANSPOSED,
                COMPLEX,
                KIND,
                PRECISION,
            )
        target = (a * B + o)[None, None, :] * D + j[:, None, None]
        known = (j < D)[:, None, None] & (o < B)[None, None, :]
        first = to_row[None, :, None]
        within = inside[None, :, None]
    if bias is not None:
        real += tl.load(bias + target * parts, mask=known, other=0.0).to(tl.float32)
        if COMPLEX:
            imaginary += tl.load(bias + target * parts + 1, mask=known, other=0.0).to(tl.float32)
    if WIDE:
        target = target.to(tl.int64)
    place = y + first + target * y_stride
    tl.store(place, activated(real, ACTIVATION).to(y.dtype.element_ty), mask=known & within)
    if COMPLEX:
        tl.store(place + 1, imaginary.to(y.dtype.element_ty), mask=known & within)


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
    COMPLEX: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
):
    """``sums[s, a, j, o, i] = Σ_r g[r, a, o, j] · conj(x[r, a, i, j])`` over the ``EACH`` rows of a share."""
    groups: tl.constexpr = (D + GROUP - 1) // GROUP
    outs: tl.constexpr = (B + OUT - 1) // OUT
    ins: tl.constexpr = (C + IN - 1) // IN
    blocks: tl.constexpr = A * groups * outs * ins
    parts: tl.constexpr = 2 if COMPLEX else 1
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
        real = tl.full((OUT, IN), 0.0, tl.float32)
        imaginary = real
        for start in range(0, EACH, ROWS):
            row = share * EACH + start + tl.arange(0, ROWS)
            g_row = offsets(row + g_first, g_inner, g_outer_stride, g_inner_stride, G_SPLIT)
            x_row = offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
            real, imaginary = _add_product(
                real,
                imaginary,
                g + of_g[:, None] * g_stride + g_row[None, :],
                (o < B)[:, None] & (row < rows)[None, :],
                x + of_x[None, :] * x_stride + x_row[:, None],
                (i < C)[None, :] & (row < rows)[:, None],
                True,
                COMPLEX,
                KIND,
                PRECISION,
            )
        place = ((share * A + a).to(tl.int64) * D + j0) * (B * C) + o[:, None] * C + i[None, :]
        known = (o < B)[:, None] & (i < C)[None, :]
    else:
        j = j0 + tl.arange(0, GROUP)
        of_gs = (a * B + o)[None, :, None] * D + j[:, None, None]
        of_xs = (a * C + i)[None, None, :] * D + j[:, None, None]
        if WIDE:
            of_gs = of_gs.to(tl.int64)
            of_xs = of_xs.to(tl.int64)
        real = tl.full((GROUP, OUT, IN), 0.0, tl.float32)
        imaginary = real
        for start in range(0, EACH, ROWS):
            row = share * EACH + start + tl.arange(0, ROWS)
            g_row = offsets(row + g_first, g_inner, g_outer_stride, g_inner_stride, G_SPLIT)
            x_row = offsets(row + x_first, x_inner, x_outer_stride, x_inner_stride, X_SPLIT)
            real, imaginary = _add_product(
                real,
                imaginary,
                g + of_gs * g_stride + g_row[None, None, :],
                (j < D)[:, None, None] & (o < B)[None, :, None] & (row < rows)[None, None, :],
                x + of_xs * x_stride + x_row[None, :, None],
                (j < D)[:, None, None] & (i < C)[None, None, :] & (row < rows)[None, :, None],
                True,
                COMPLEX,
                KIND,
                PRECISION,
            )
        place = ((share * A + a).to(tl.int64) * D + j)[:, None, None] * (B * C) + (
            o[None, :, None] * C + i[None, None, :]
        )
        known = (j < D)[:, None, None] & (o < B)[None, :, None] & (i < C)[None, None, :]
    tl.store(sums + place * parts, real, mask=known)
    if COMPLEX:
        tl.store(sums + place * parts + 1, imaginary, mask=known)
