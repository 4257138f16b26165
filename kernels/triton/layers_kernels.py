"""The kernels of the layers between convolutions. `layers.py` beside this file launches them.

Not run on a GPU yet: run in Triton's interpreter and compiled for sm_80 and sm_90.

A channels_last_3d tensor, or a channel slice of one, is a matrix of rows of C channels `*_stride` elements apart; the
rows of a batch-norm group follow each other. A program takes SPAN rows of one group and BLOCK_C channels, BLOCK_R rows
at once. Sums over a group are taken in two launches, the programs' own sums in the order of their rows: no atomics, so
equal inputs give equal bits. A pool's backward gathers: every input adds up the windows that chose it.
"""

# Triton traces these functions; their arguments have its types, which are no annotations.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def _wide(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _relu(v):
    return tl.where(v <= 0, 0.0, v)  # tl.maximum would drop a NaN


@triton.jit
def _span(ROWS, SPAN):
    """Group of a program of the grid (groups x chunks, ...), and its first row and the end of its rows there."""
    chunks = tl.cdiv(ROWS, SPAN)
    first = (tl.program_id(0) % chunks) * SPAN
    return tl.program_id(0) // chunks, first, tl.minimum(first + SPAN, ROWS)


@triton.jit
def _keep_sums(partial_P2C, a_RC, b_RC, c, C):
    at_C = partial_P2C + tl.program_id(0).to(tl.int64) * 2 * C + c
    tl.store(at_C, tl.sum(a_RC, axis=0), mask=c < C)
    tl.store(at_C + C, tl.sum(b_RC, axis=0), mask=c < C)


@triton.jit
def moments(x, partial_P2C, ROWS, SPAN, x_stride, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Grid (groups x chunks, blocks of C). Sums of x and x^2 of a program's rows, less the group's first row: nothing
    cancels where the mean is large beside the spread.
    """
    group, first, end = _span(ROWS, SPAN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += group.to(tl.int64) * ROWS * x_stride
    pivot_C = _wide(x + c, c < C)
    a_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    b_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(first, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < end)[:, None] & (c < C)[None, :]
        d_RC = _wide(x + r.to(tl.int64)[:, None] * x_stride + c[None, :], mask) - pivot_C[None, :]
        d_RC = tl.where(mask, d_RC, 0.0)
        a_RC += d_RC
        b_RC += d_RC * d_RC
    _keep_sums(partial_P2C, a_RC, b_RC, c, C)


@triton.jit
def _add_chunks(partial_P2C, group, chunks, c, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Both sums of a group, from those of its chunks; in fp64, as a difference of their squares follows."""
    a_PC = tl.zeros((BLOCK_P, BLOCK_C), tl.float64)
    b_PC = tl.zeros((BLOCK_P, BLOCK_C), tl.float64)
    for start in range(0, chunks, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < chunks)[:, None] & (c < C)[None, :]
        at_PC = partial_P2C + (group * chunks + p)[:, None].to(tl.int64) * 2 * C + c[None, :]
        a_PC += tl.load(at_PC, mask=mask, other=0.0).to(tl.float64)
        b_PC += tl.load(at_PC + C, mask=mask, other=0.0).to(tl.float64)
    return tl.sum(a_PC, axis=0), tl.sum(b_PC, axis=0)


@triton.jit
def statistics(
    x, partial_P2C, mean_GC, var_GC, ROWS, SPAN, x_stride, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Grid (groups, blocks of C). Mean and biased variance from what `moments` left."""
    group = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    a_C, b_C = _add_chunks(partial_P2C, group, tl.cdiv(ROWS, SPAN), c, C, BLOCK_P, BLOCK_C)
    pivot_C = _wide(x + group.to(tl.int64) * ROWS * x_stride + c, c < C)
    shift_C = a_C / ROWS
    var_C = b_C / ROWS - shift_C * shift_C
    tl.store(mean_GC + group * C + c, (pivot_C + shift_C).to(tl.float32), mask=c < C)
    tl.store(var_GC + group * C + c, tl.where(var_C < 0, 0.0, var_C).to(tl.float32), mask=c < C)


@triton.jit
def _normalised(x, at_RC, mask, mean_C, inv_std_C):
    return (_wide(x + at_RC, mask) - mean_C[None, :]) * inv_std_C[None, :]


@triton.jit
def norm_relu(
    x, mean_GC, inv_std_GC, bias_C, out, ROWS, SPAN, x_stride, out_stride,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (groups x chunks, blocks of C)."""
    group, first, end = _span(ROWS, SPAN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_C = _wide(mean_GC + group * C + c, c < C)
    inv_std_C = _wide(inv_std_GC + group * C + c, c < C)
    bias_C = _wide(bias_C + c, c < C)
    above = group.to(tl.int64) * ROWS
    for start in range(first, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < end)[:, None] & (c < C)[None, :]
        row_R1 = (above + r)[:, None]
        xhat_RC = _normalised(x, row_R1 * x_stride + c[None, :], mask, mean_C, inv_std_C)
        tl.store(out + row_R1 * out_stride + c[None, :], _relu(xhat_RC + bias_C[None, :]), mask=mask)


@triton.jit
def passed_sums(
    gy, x, mean_GC, inv_std_GC, bias_C, kept, partial_P2C, ROWS, SPAN, gy_stride, x_stride, kept_stride,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (groups x chunks, blocks of C). Sums of the gradient that the ReLU lets pass, and of it times the normalised
    input; what passes is left in `kept` where that is given.
    """
    group, first, end = _span(ROWS, SPAN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_C = _wide(mean_GC + group * C + c, c < C)
    inv_std_C = _wide(inv_std_GC + group * C + c, c < C)
    bias_C = _wide(bias_C + c, c < C)
    above = group.to(tl.int64) * ROWS
    a_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    b_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(first, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < end)[:, None] & (c < C)[None, :]
        row_R1 = (above + r)[:, None]
        xhat_RC = _normalised(x, row_R1 * x_stride + c[None, :], mask, mean_C, inv_std_C)
        g_RC = _wide(gy + row_R1 * gy_stride + c[None, :], mask)
        passed_RC = tl.where(xhat_RC + bias_C[None, :] <= 0, 0.0, g_RC)
        if kept is not None:
            tl.store(kept + row_R1 * kept_stride + c[None, :], passed_RC, mask=mask)
        a_RC += passed_RC
        b_RC += tl.where(mask, passed_RC * xhat_RC, 0.0)
    _keep_sums(partial_P2C, a_RC, b_RC, c, C)


@triton.jit
def means(
    partial_P2C, mean_G2C, grad_bias_C, CHUNKS, COUNT,
    G: tl.constexpr, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of C,). Both sums of `passed_sums` over COUNT, per group; the first, over all groups, is the bias's
    gradient.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad_C = tl.zeros((BLOCK_C,), tl.float64)
    for group in range(G):
        a_C, b_C = _add_chunks(partial_P2C, group, CHUNKS, c, C, BLOCK_P, BLOCK_C)
        grad_C += a_C
        tl.store(mean_G2C + (2 * group) * C + c, (a_C / COUNT).to(tl.float32), mask=c < C)
        tl.store(mean_G2C + (2 * group + 1) * C + c, (b_C / COUNT).to(tl.float32), mask=c < C)
    tl.store(grad_bias_C + c, grad_C.to(tl.float32), mask=c < C)


@triton.jit
def norm_relu_backward(
    gy, x, mean_GC, inv_std_GC, bias_C, mean_G2C, gx, ROWS, SPAN, gy_stride, x_stride, gx_stride,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (groups x chunks, blocks of C). `mean_G2C` is what `means` left."""
    group, first, end = _span(ROWS, SPAN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_C = _wide(mean_GC + group * C + c, c < C)
    inv_std_C = _wide(inv_std_GC + group * C + c, c < C)
    bias_C = _wide(bias_C + c, c < C)
    passed_C = _wide(mean_G2C + 2 * group * C + c, c < C)
    slope_C = _wide(mean_G2C + (2 * group + 1) * C + c, c < C)
    above = group.to(tl.int64) * ROWS
    for start in range(first, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < end)[:, None] & (c < C)[None, :]
        row_R1 = (above + r)[:, None]
        xhat_RC = _normalised(x, row_R1 * x_stride + c[None, :], mask, mean_C, inv_std_C)
        g_RC = _wide(gy + row_R1 * gy_stride + c[None, :], mask)
        passed_RC = tl.where(xhat_RC + bias_C[None, :] <= 0, 0.0, g_RC)
        gx_RC = (passed_RC - passed_C[None, :] - xhat_RC * slope_C[None, :]) * inv_std_C[None, :]
        tl.store(gx + row_R1 * gx_stride + c[None, :], gx_RC, mask=mask)


@triton.jit
def _places(row_R, T, H, W):
    """Clip, t, h and w of rows."""
    hw_R = row_R // W
    th_R = hw_R // H
    return th_R // T, th_R % T, hw_R % H, row_R % W


@triton.jit
def max_pool(
    x, y, places, ROWS, x_stride, T, H, W, OUT_T, OUT_H, OUT_W,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of output rows, blocks of C). y and places have no gaps between rows."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (r < ROWS)[:, None] & (c < C)[None, :]
    n, t, h, w = _places(r, OUT_T, OUT_H, OUT_W)
    best_RC = tl.full((BLOCK_R, BLOCK_C), float("-inf"), tl.float32)
    place_RC = tl.full((BLOCK_R, BLOCK_C), -1, tl.int32)
    for kt in range(KT):
        for kh in range(KH):
            for kw in tl.static_range(KW):
                it = t * ST - BT + kt
                ih = h * SH - BH + kh
                iw = w * SW - BW + kw
                there_R = (it >= 0) & (it < T) & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
                row_R = ((n * T + it) * H + ih) * W + iw
                mask = there_R[:, None] & inside
                v_RC = _wide(x + row_R[:, None].to(tl.int64) * x_stride + c[None, :], mask)
                # The first of equals stays; a NaN wins over every number, as in PyTorch.
                wins = (v_RC > best_RC) | ((v_RC != v_RC) & (best_RC == best_RC)) | (place_RC < 0)
                best_RC = tl.where(mask & wins, v_RC, best_RC)
                place_RC = tl.where(mask & wins, (kt * KH + kh) * KW + kw, place_RC)
    at_RC = r[:, None].to(tl.int64) * C + c[None, :]
    tl.store(y + at_RC, best_RC, mask=inside)
    tl.store(places + at_RC, place_RC.to(tl.uint8), mask=inside)


@triton.jit
def max_pool_backward(
    gy, places, x, mean_GC, inv_std_GC, mean_G2C, gx,
    ROWS, SPAN, gy_stride, x_stride, gx_stride, T, H, W, OUT_T, OUT_H, OUT_W,
    ADDS: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (groups x chunks, blocks of C) over input rows: into `gx`, or added to it; with `x` also through a batch
    norm whose output was pooled, as `norm_relu_backward`, gy being what its ReLU lets pass.
    """
    group, first, end = _span(ROWS, SPAN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    above = group * ROWS
    for start in range(first, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < end)[:, None] & (c < C)[None, :]
        row_R1 = (above + r)[:, None].to(tl.int64)
        n, t, h, w = _places(above + r, T, H, W)
        # The first window that may hold a place, on each axis; an axis has at most cdiv(kernel, stride) of them.
        first_t = tl.maximum(t + (BT - KT + ST), 0) // ST
        first_h = tl.maximum(h + (BH - KH + SH), 0) // SH
        first_w = tl.maximum(w + (BW - KW + SW), 0) // SW
        g_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for jt in range((KT + ST - 1) // ST):
            for jh in range((KH + SH - 1) // SH):
                for jw in tl.static_range((KW + SW - 1) // SW):
                    ot, oh, ow = first_t + jt, first_h + jh, first_w + jw
                    kt, kh, kw = t + BT - ot * ST, h + BH - oh * SH, w + BW - ow * SW
                    there_R = (kt >= 0) & (ot < OUT_T) & (kh >= 0) & (oh < OUT_H) & (kw >= 0) & (ow < OUT_W)
                    mask = there_R[:, None] & inside
                    from_R1 = (((n * OUT_T + ot) * OUT_H + oh) * OUT_W + ow)[:, None].to(tl.int64)
                    chosen_RC = tl.load(places + from_R1 * C + c[None, :], mask=mask, other=255).to(tl.int32)
                    place_R = (kt * KH + kh) * KW + kw
                    mask = mask & (chosen_RC == place_R[:, None])
                    g_RC += _wide(gy + from_R1 * gy_stride + c[None, :], mask)
        if x is not None:
            mean_C = _wide(mean_GC + group * C + c, c < C)
            inv_std_C = _wide(inv_std_GC + group * C + c, c < C)
            passed_C = _wide(mean_G2C + 2 * group * C + c, c < C)
            slope_C = _wide(mean_G2C + (2 * group + 1) * C + c, c < C)
            xhat_RC = _normalised(x, row_R1 * x_stride + c[None, :], inside, mean_C, inv_std_C)
            g_RC = (g_RC - passed_C[None, :] - xhat_RC * slope_C[None, :]) * inv_std_C[None, :]
        if ADDS:
            g_RC += _wide(gx + row_R1 * gx_stride + c[None, :], inside)
        tl.store(gx + row_R1 * gx_stride + c[None, :], g_RC, mask=inside)
