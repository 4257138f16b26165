"""Law 2, against a NumPy statement: groups normalise apart, both domains keep their own statistics, one move per
update.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsada_hpc.model.batch_norm import EPS, BatchNormState, GroupBatchNorm, GroupContext

DECAY = 0.9


def layer(group_size: int = 2, test: Any = "mixture") -> GroupBatchNorm:
    norm = GroupBatchNorm(3, GroupContext(group_size=group_size, test=test)).double()
    nn.init.normal_(norm.bias)
    return norm


def clips(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 2, 4, 4, generator=generator, dtype=torch.float64) * 3 + 1


def forward(norm: GroupBatchNorm, x: Tensor, domains: tuple[int, ...]) -> Tensor:
    with norm.context.recorded(domains):
        return norm(x)


def test_each_group_is_normalised_by_its_own_biased_statistics() -> None:
    norm, x = layer(), clips(6)
    got = forward(norm, x, (0, 0, 1)).detach().numpy()
    for g in range(3):
        part = x[2 * g : 2 * g + 2].numpy()
        mean, var = (f(part, axis=(0, 2, 3, 4), keepdims=True) for f in (np.mean, np.var))
        want = (part - mean) / np.sqrt(var + 1e-3) + norm.bias.detach().numpy()[:, None, None, None]
        np.testing.assert_allclose(got[2 * g : 2 * g + 2], want, rtol=1e-9, atol=1e-12)


def test_running_statistics_follow_the_law() -> None:
    norm, x = layer(), clips(8)
    forward(norm, x, (0, 0, 1, 1))
    state = BatchNormState(norm, decay=DECAY)
    state.update(state.take_sums(), (2, 2))
    rate = 1 - DECAY**4
    for domain in (0, 1):
        groups = x[4 * domain : 4 * domain + 4].numpy().reshape(2, 2, 3, -1).transpose(0, 2, 1, 3).reshape(2, 3, -1)
        np.testing.assert_allclose(norm.running_mean_DC[domain], rate * groups.mean(-1).mean(0), rtol=1e-9)
        np.testing.assert_allclose(norm.running_var_DC[domain], (1 - rate) + rate * groups.var(-1).mean(0), rtol=1e-9)


def test_accumulation_gives_the_statistics_of_the_whole_batch() -> None:
    whole, parts, x = layer(), layer(), clips(8)
    forward(whole, x, (0, 0, 1, 1))
    forward(parts, x[[0, 1, 4, 5]], (0, 1))
    forward(parts, x[[2, 3, 6, 7]], (0, 1))
    for norm in (whole, parts):
        state = BatchNormState(norm, decay=DECAY)
        state.update(state.take_sums(), (2, 2))
    torch.testing.assert_close(whole.running_mean_DC, parts.running_mean_DC)
    torch.testing.assert_close(whole.running_var_DC, parts.running_var_DC)


def test_recompute_in_the_backward_never_counts_twice() -> None:
    plain, recomputed, x = layer(), layer(), clips(4)
    forward(plain, x, (0, 1))
    with recomputed.context.recorded((0, 1)):
        y = checkpoint(recomputed, x.clone().requires_grad_(), use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(plain.sum_DSC, recomputed.sum_DSC)


def test_the_mixture_is_the_released_shared_average() -> None:
    """Both domains updating one variable eight times at 0.999 is, within the order of the eight, what the mixture of
    two sets gives.
    """
    norm = layer()
    state = BatchNormState(norm, decay=0.999)
    shared = np.zeros(3)
    for step in range(50):
        x = clips(16, seed=step)
        forward(norm, x, (0, 0, 0, 0, 1, 1, 1, 1))
        state.update(state.take_sums(), (4, 4))
        for g in range(8):
            shared = 0.999 * shared + 0.001 * x[2 * g : 2 * g + 2].numpy().mean(axis=(0, 2, 3, 4))
    mean, _ = norm.test_statistics()
    np.testing.assert_allclose(mean, shared, rtol=0.02)


def test_target_statistics_are_the_targets_alone() -> None:
    norm = layer(test="target")
    norm.running_mean_DC.copy_(torch.tensor([[1.0] * 3, [5.0] * 3]))
    norm.eval()
    mean, var = norm.test_statistics()
    assert mean.tolist() == [5.0] * 3
    x = clips(3)
    want = (x - 5) / (var[:, None, None, None] + EPS).sqrt() + norm.bias[:, None, None, None]
    torch.testing.assert_close(norm(x), want)


def test_source_only_training_leaves_the_target_set_out_of_the_mixture() -> None:
    norm = layer()
    forward(norm, clips(4), (0, 0))
    state = BatchNormState(norm, decay=DECAY)
    state.update(state.take_sums(), (2, 0))
    assert torch.equal(norm.test_statistics()[0], norm.running_mean_DC[0])


def test_sums_start_anew_after_they_are_taken() -> None:
    norm = layer()
    forward(norm, clips(4), (0, 1))
    state = BatchNormState(norm, decay=DECAY)
    assert state.take_sums().abs().sum() > 0
    assert state.take_sums().abs().sum() == 0


def test_a_cut_group_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="whole groups"):
        forward(layer(), clips(3), (0, 1))
