"""One rank of the checks of `OverlappedAveraging`: `python -m tests.train.overlap_ranks` under RANK, WORLD_SIZE, ..."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmsada_hpc.cluster.join import join, leave
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.train.overlap import OverlappedAveraging

SMALL_BYTES = 4096


def new_net() -> nn.Sequential:
    """Two convolutions in NDHWC and a head: three messages of 4 KiB and more."""
    torch.manual_seed(0)
    convolutions = [nn.Conv3d(2, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1)]
    net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 4 * 4 * 4, 5))
    return net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def clips(micro: int) -> Tensor:
    """Other ones on every rank."""
    generator = torch.Generator().manual_seed(100 * micro + dist.get_rank())
    return torch.randn(3, 2, 4, 4, 4, generator=generator)


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def plain_average(local: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As DeepSpeed's stage 0: the sum in the dtype that travels, times 1 / ranks, back into the gradients' own."""
    flat = torch.cat([g.reshape(-1) for g in local]).to(dtype)
    dist.all_reduce(flat)
    flat.mul_(1.0 / dist.get_world_size())
    parts = flat.to(local[0].dtype).split([g.numel() for g in local])
    return [part.reshape(g.shape) for part, g in zip(parts, local, strict=True)]


def check_averages(dtype: torch.dtype) -> None:
    net = new_net()
    averaging = OverlappedAveraging(list(net.parameters()), dtype, bucket_bytes=SMALL_BYTES)
    begun: list[int] = []
    last = next(net.parameters())
    last.register_post_accumulate_grad_hook(lambda _: begun.append(averaging.sent))
    for update in range(2):  # the second reuses the messages
        net.zero_grad()
        net(clips(2 * update)).square().mean().backward()
        averaging.begin()
        net(clips(2 * update + 1)).square().mean().backward()
        local = gradients(net)
        averaging.finish()
        expected = plain_average(local, dtype)
        for mine, average, own in zip(gradients(net), expected, local, strict=True):
            assert not torch.equal(mine, own), "every gradient was local until finish"
            if dist.get_world_size() == 2:
                assert torch.equal(mine, average)
            else:
                tolerance = 1e-6 if dtype == torch.float32 else 2e-2
                assert (mine - average).norm() <= tolerance * average.norm()
    plain, overlapped = begun[0], begun[1]
    assert plain == 0, "a backward before begin sends nothing"
    assert overlapped >= 1, "messages leave while the backward goes on"
    averaging.close()


def check_missing_gradient() -> None:
    """Rank 0 alone leaves the first convolution out: it counts as zero there, and nobody waits for ever."""
    net = new_net()
    averaging = OverlappedAveraging(list(net.parameters()), torch.float32, bucket_bytes=SMALL_BYTES)
    averaging.begin()
    x = clips(0)
    hidden = torch.ones(3, 16, 4, 4, 4) if dist.get_rank() == 0 else net[0](x)
    net[1:](hidden).square().mean().backward()
    weight = next(net.parameters())
    own = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    averaging.finish()  # first: rank 0 holds its messages back until then, and another would come between
    (expected,) = plain_average([own], torch.float32)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().sum() > 0
    averaging.close()


def main() -> None:
    join(find_world())
    for dtype in (torch.float32, torch.bfloat16):
        check_averages(dtype)
    check_missing_gradient()
    leave()


if __name__ == "__main__":
    main()
