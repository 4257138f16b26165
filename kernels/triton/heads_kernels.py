# mypy: allow-untyped-defs, allow-incomplete-defs
"""The kernels of the fused heads: three forward, two backward. `heads.py` beside this file launches them.

Not run on a GPU yet: run in Triton's interpreter and compiled for sm_80 and sm_90.

N clips, D features per stream, S streams, K logits, H hidden units; P = 1 + S two-layer heads, the correspondence head
first; T = 1 + P terms, the classifier first. Losses are scalars, so the forward also forms the slope of every term by
its own logits and hidden units, for an upstream gradient of 1; the backward scales and spreads them.

Forward: `project` multiplies the features by all first layers at once, each program one share of D of one stream;
`score` adds the shares up and takes losses and slopes, each program one clip and head; `total` sums over clips.
Backward: `spread` takes everything that has a D in its shape, each program its own columns, so that nothing is added
across programs; `gather` takes the rest. No atomics anywhere: equal inputs give equal bits.

The types of arguments are the compiler's; pointers of streams and of two-layer heads come as tuples. H, K and D are
constants of the compiled kernel, N is not.
"""

import triton
import triton.language as tl


@triton.jit
def _pick(of, i):
    """`of[i]` for a tuple of pointers and an index known on the device alone."""
    found = of[0]
    for k in tl.static_range(1, len(of)):
        if i == k:
            found = of[k]
    return found


@triton.jit
def _wide(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _rounded(x):
    """fp32 rounded to the nearest bf16, ties to even; of bits, since the interpreter's own conversion cuts them off."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """`acc + a @ b` with fp32 accumulation. The interpreter's bf16 product multiplies bit patterns, so operands are
    rounded to bf16 there and multiplied in fp32: the same products, exactly.
    """
    if PRECISION == "bf16":
        if INTERPRETED:
            acc = tl.dot(_rounded(a), _rounded(b), acc)
        else:
            acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def project(
    features_SND,
    dropout_SND,
    classifier_SKD,
    discriminator_SHD,
    correspondence_HSD,
    share_CNW,
    N,
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    SHARES: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (S * SHARES, blocks of N). Row c = s * SHARES + i of `share_CNW` is the product of SPAN features of stream s
    with the rows of classifier, discriminator and correspondence head, W = K + H + H.
    """
    c = tl.program_id(0)
    s = c // SHARES
    first = (c % SHARES) * SPAN
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_K)
    features = _pick(features_SND, s)
    dropout = _pick(dropout_SND, s)
    classifier = _pick(classifier_SKD, s)
    discriminator = _pick(discriminator_SHD, s)
    correspondence = correspondence_HSD + s * D
    logits_NK = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    domain_NH = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    corr_NH = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    for start in range(0, SPAN, BLOCK_D):
        d = first + start + tl.arange(0, BLOCK_D)
        in_d = d < D
        in_nd = (n < N)[:, None] & in_d[None, :]
        in_dh = in_d[:, None] & (h < H)[None, :]
        at_ND = n[:, None] * D + d[None, :]
        x_ND = _wide(features + at_ND, in_nd)
        dropped_ND = x_ND * _wide(dropout + at_ND, in_nd)
        weight_DK = _wide(classifier + d[:, None] + k[None, :] * D, in_d[:, None] & (k < K)[None, :])
        logits_NK = _dot(dropped_ND, weight_DK, logits_NK, PRECISION, INTERPRETED)
        weight_DH = _wide(discriminator + d[:, None] + h[None, :] * D, in_dh)
        domain_NH = _dot(x_ND, weight_DH, domain_NH, PRECISION, INTERPRETED)
        weight_DH = _wide(correspondence + d[:, None] + h[None, :] * (S * D), in_dh)
        corr_NH = _dot(x_ND, weight_DH, corr_NH, PRECISION, INTERPRETED)
    W: tl.constexpr = K + 2 * H
    row_N = share_CNW + (c * N + n[:, None]) * W
    in_nh = (n < N)[:, None] & (h < H)[None, :]
    tl.store(row_N + k[None, :], logits_NK, mask=(n < N)[:, None] & (k < K)[None, :])
    tl.store(row_N + K + h[None, :], domain_NH, mask=in_nh)
    tl.store(row_N + K + H + h[None, :], corr_NH, mask=in_nh)


@triton.jit
def _sum_shares(share_CNW, n, first, count, column, in_column, N, W: tl.constexpr, BLOCK_C: tl.constexpr):
    """Columns of clip n, added over `count` rows from `first` on, always in the same order."""
    found = tl.zeros((column.shape[0],), tl.float32)
    for start in range(0, count, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        at = ((first + c) * N + n)[:, None] * W + column[None, :]
        found += tl.sum(tl.load(share_CNW + at, mask=(c < count)[:, None] & in_column[None, :], other=0.0), axis=0)
    return found


@triton.jit
def _score_classes(
    share_CNW, bias_SK, label_N, weight_N, logits_NK, slope_NK, n, N, NUM_CLASSES, H, K, S, SHARES, BLOCK_C, BLOCK_K
):
    """Loss and hit of the fused logits of clip n (spec 1.2); writes the logits and the slope by them."""
    k = tl.arange(0, BLOCK_K)
    logit_K = _sum_shares(share_CNW, n, 0, S * SHARES, k, k < K, N, K + 2 * H, BLOCK_C)
    for s in tl.static_range(S):
        logit_K += _wide(bias_SK[s] + k, k < K)
    label = tl.load(label_N + n).to(tl.int32)
    weight = tl.load(weight_N + n).to(tl.float32)
    shown_K = tl.where(k < NUM_CLASSES, logit_K, float("-inf"))
    top = tl.max(shown_K, axis=0)
    exp_K = tl.exp(shown_K - top)
    total = tl.sum(exp_K, axis=0)
    is_label_K = k == label
    right = tl.sum(tl.where(is_label_K, logit_K, 0.0), axis=0)
    known = (label >= 0) & (label < NUM_CLASSES)
    loss = weight * tl.where(known, top + tl.log(total) - right, float("nan"))
    first_top = tl.min(tl.where(shown_K == top, k, BLOCK_K), axis=0)
    hit = tl.where(first_top == label, weight, 0.0)
    # The label's own slope is what the others have, so a sure clip's slope is not a difference of ones.
    others = tl.sum(tl.where(is_label_K, 0.0, exp_K), axis=0)
    slope_K = weight / total * tl.where(is_label_K, -others, exp_K)
    tl.store(logits_NK + n * K + k, logit_K, mask=k < K)
    tl.store(slope_NK + n * K + k, tl.where(k < NUM_CLASSES, slope_K, 0.0), mask=k < K)
    return loss, hit


@triton.jit
def _score_pair(share_H, bias1_H, weight2_2H, bias2_2, right, weight, at_N, h, H, hidden_NH, slope_NH, slope2_N):
    """Loss and hit of one two-layer head on one clip; writes the hidden units, the slope by them and that by the second
    logit: by the first it is the opposite, since the two probabilities add up to 1.
    """
    hidden_H = tl.maximum(share_H + _wide(bias1_H + h, h < H), 0.0)
    weight0_H = _wide(weight2_2H + h, h < H)
    weight1_H = _wide(weight2_2H + H + h, h < H)
    logit0 = tl.sum(hidden_H * weight0_H, axis=0) + tl.load(bias2_2).to(tl.float32)
    logit1 = tl.sum(hidden_H * weight1_H, axis=0) + tl.load(bias2_2 + 1).to(tl.float32)
    ahead = tl.where(right == 1, logit1 - logit0, logit0 - logit1)
    far = tl.exp(-tl.abs(ahead))
    loss = weight * tl.where((right == 0) | (right == 1), tl.maximum(-ahead, 0.0) + tl.log(1.0 + far), float("nan"))
    hit = tl.where((logit1 > logit0) == (right == 1), weight, 0.0)
    wrong = weight * tl.where(ahead > 0, far, 1.0) / (1.0 + far)
    slope1 = tl.where(right == 1, -wrong, wrong)
    slope_H = tl.where(hidden_H > 0, slope1 * (weight1_H - weight0_H), 0.0)
    tl.store(hidden_NH + at_N * H + h, hidden_H, mask=h < H)
    tl.store(slope_NH + at_N * H + h, slope_H, mask=h < H)
    tl.store(slope2_N + at_N, slope1)
    return loss, hit


@triton.jit
def score(
    share_CNW,
    bias_SK,
    bias1_PH,
    weight2_P2H,
    bias2_P2,
    label_N,
    domain_N,
    corresponds_N,
    weight_ce_N,
    weight_corr_N,
    weight_domain_N,
    logits_NK,
    slope_NK,
    hidden_PNH,
    slope_PNH,
    slope2_PN,
    scored_2TN,
    N,
    NUM_CLASSES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (N, T): weighted loss and hit of clip n under term t, `scored_2TN`, and what the backward needs."""
    n = tl.program_id(0)
    t = tl.program_id(1)
    if t == 0:
        loss, hit = _score_classes(
            share_CNW, bias_SK, label_N, weight_ce_N, logits_NK, slope_NK, n, N,
            NUM_CLASSES, H, K, S, SHARES, BLOCK_C, BLOCK_K,
        )  # fmt: skip
    else:
        p = t - 1
        h = tl.arange(0, BLOCK_H)
        first, count, column = 0, S * SHARES, K + H
        right = tl.load(corresponds_N + n).to(tl.int32)
        weight = tl.load(weight_corr_N + n).to(tl.float32)
        if p > 0:
            first, count, column = (p - 1) * SHARES, SHARES, K
            right = tl.load(domain_N + n).to(tl.int32)
            weight = tl.load(weight_domain_N + n).to(tl.float32)
        share_H = _sum_shares(share_CNW, n, first, count, column + h, h < H, N, K + 2 * H, BLOCK_C)
        loss, hit = _score_pair(
            share_H, _pick(bias1_PH, p), _pick(weight2_P2H, p), _pick(bias2_P2, p), right, weight,
            p * N + n, h, H, hidden_PNH, slope_PNH, slope2_PN,
        )  # fmt: skip
    tl.store(scored_2TN + t * N + n, loss)
    tl.store(scored_2TN + (2 + S + t) * N + n, hit)


@triton.jit
def total(scored_2TN, losses_T, accuracies_T, N, T: tl.constexpr, BLOCK_N: tl.constexpr):
    """Grid (T,): losses and hits of one term, summed over clips."""
    t = tl.program_id(0)
    loss_N = tl.zeros((BLOCK_N,), tl.float32)
    hit_N = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        loss_N += tl.load(scored_2TN + t * N + n, mask=n < N, other=0.0)
        hit_N += tl.load(scored_2TN + (T + t) * N + n, mask=n < N, other=0.0)
    tl.store(losses_T + t, tl.sum(loss_N, axis=0))
    tl.store(accuracies_T + t, tl.sum(hit_N, axis=0))


@triton.jit
def spread(
    grad_losses_T,
    reversal,
    features_SND,
    dropout_SND,
    classifier_SKD,
    discriminator_SHD,
    correspondence_HSD,
    slope_NK,
    slope_PNH,
    grad_features_SND,
    grad_classifier_SKD,
    grad_discriminator_SHD,
    grad_correspondence_HSD,
    N,
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (blocks of D, S): the gradients of BLOCK_D columns of one stream's features and of all first layers."""
    s = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    h = tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_K)
    in_hd = (h < H)[:, None] & (d < D)[None, :]
    in_kd = (k < K)[:, None] & (d < D)[None, :]
    at_HD = h[:, None] * D + d[None, :]
    at_KD = k[:, None] * D + d[None, :]
    at_HSD = h[:, None] * (S * D) + s * D + d[None, :]
    grad_ce = tl.load(grad_losses_T)
    grad_corr = tl.load(grad_losses_T + 1)
    grad_domain = tl.load(grad_losses_T + 2 + s)
    reverse = -tl.load(reversal).to(tl.float32) * grad_domain
    features = _pick(features_SND, s)
    dropout = _pick(dropout_SND, s)
    grad_features = _pick(grad_features_SND, s)
    classifier_KD = _wide(_pick(classifier_SKD, s) + at_KD, in_kd)
    discriminator_HD = _wide(_pick(discriminator_SHD, s) + at_HD, in_hd)
    correspondence_HD = _wide(correspondence_HSD + at_HSD, in_hd)
    grad_classifier_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    grad_discriminator_HD = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    grad_correspondence_HD = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        in_nd = (n < N)[:, None] & (d < D)[None, :]
        in_nh = (n < N)[:, None] & (h < H)[None, :]
        in_nk = (n < N)[:, None] & (k < K)[None, :]
        at_ND = n[:, None] * D + d[None, :]
        at_NH = n[:, None] * H + h[None, :]
        x_ND = _wide(features + at_ND, in_nd)
        drop_ND = _wide(dropout + at_ND, in_nd)
        none_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        by_NK = grad_ce * _wide(slope_NK + n[:, None] * K + k[None, :], in_nk)
        grad_ND = drop_ND * _dot(by_NK, classifier_KD, none_ND, PRECISION, INTERPRETED)
        grad_classifier_KD = _dot(tl.trans(by_NK), x_ND * drop_ND, grad_classifier_KD, PRECISION, INTERPRETED)
        # The correspondence head, then the stream's discriminator behind the reversal.
        by_NH = _wide(slope_PNH + at_NH, in_nh)
        grad_ND += grad_corr * _dot(by_NH, correspondence_HD, none_ND, PRECISION, INTERPRETED)
        grad_correspondence_HD = _dot(tl.trans(by_NH), x_ND, grad_correspondence_HD, PRECISION, INTERPRETED)
        by_NH = _wide(slope_PNH + (1 + s) * N * H + at_NH, in_nh)
        grad_ND += reverse * _dot(by_NH, discriminator_HD, none_ND, PRECISION, INTERPRETED)
        grad_discriminator_HD = _dot(tl.trans(by_NH), x_ND, grad_discriminator_HD, PRECISION, INTERPRETED)
        tl.store(grad_features + at_ND, grad_ND, mask=in_nd)
    tl.store(_pick(grad_classifier_SKD, s) + at_KD, grad_classifier_KD, mask=in_kd)
    tl.store(_pick(grad_discriminator_SHD, s) + at_HD, grad_domain * grad_discriminator_HD, mask=in_hd)
    tl.store(grad_correspondence_HSD + at_HSD, grad_corr * grad_correspondence_HD, mask=in_hd)


@triton.jit
def gather(
    grad_losses_T,
    slope_NK,
    hidden_PNH,
    slope_PNH,
    slope2_PN,
    grad_bias_SK,
    grad_bias1_PH,
    grad_weight2_P2H,
    grad_bias2_P2,
    N,
    H: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T, blocks of columns): the gradients of all biases and of the second layers, sums over clips."""
    t = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(grad_losses_T + t)
    if t == 0:
        bias_K = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            mask = (n < N)[:, None] & (i < K)[None, :]
            bias_K += tl.sum(_wide(slope_NK + n[:, None] * K + i[None, :], mask), axis=0)
        for s in tl.static_range(S):
            tl.store(grad_bias_SK[s] + i, grad * bias_K, mask=i < K)
    else:
        p = t - 1
        bias1_H = tl.zeros((BLOCK,), tl.float32)
        weight2_H = tl.zeros((BLOCK,), tl.float32)
        bias2_N = tl.zeros((BLOCK_N,), tl.float32)
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            mask = (n < N)[:, None] & (i < H)[None, :]
            at_NH = (p * N + n[:, None]) * H + i[None, :]
            slope2_N = tl.load(slope2_PN + p * N + n, mask=n < N, other=0.0)
            bias1_H += tl.sum(_wide(slope_PNH + at_NH, mask), axis=0)
            weight2_H += tl.sum(slope2_N[:, None] * _wide(hidden_PNH + at_NH, mask), axis=0)
            bias2_N += slope2_N
        weight2_2H = _pick(grad_weight2_P2H, p)
        tl.store(_pick(grad_bias1_PH, p) + i, grad * bias1_H, mask=i < H)
        tl.store(weight2_2H + i, -grad * weight2_H, mask=i < H)
        tl.store(weight2_2H + H + i, grad * weight2_H, mask=i < H)
        if tl.program_id(1) == 0:
            bias2 = grad * tl.sum(bias2_N, axis=0)
            tl.store(_pick(grad_bias2_P2, p), -bias2)
            tl.store(_pick(grad_bias2_P2, p) + 1, bias2)
