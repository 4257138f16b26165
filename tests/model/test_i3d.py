"""I3D with Sonnet's semantics: sizes, padding, parameter counts, memory format (spec 1.1, 1.5, 9.4)."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.convolution import SameConv3d, same_padding
from mmsada_hpc.model.i3d import I3d, SameMaxPool3d
from mmsada_hpc.model.streams import MultiStream, channels_first, use_ndhwc_weights


def context(group_size: int = 2) -> GroupContext:
    return GroupContext(group_size=group_size, test="mixture")


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """The plain statement: pad every axis by what TF would, then nothing else."""
    pads: list[int] = []
    for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def test_parameter_counts_are_those_of_the_released_checkpoints() -> None:
    model = MultiStream(width=1.0, group_size=16, test_statistics="mixture")
    counts = {name: sum(p.numel() for p in stream.parameters()) for name, stream in model.streams.items()}
    assert counts == {"rgb": 12_279_984, "flow": 12_258_032}
    buffers = {name: b for name, b in model.streams["rgb"].named_buffers() if name.endswith("running_mean_DC")}
    assert sum(b.shape[1] for b in buffers.values()) * 2 == 14_560
    assert model.feature_sizes == {"rgb": 1024, "flow": 1024}


@pytest.mark.parametrize("size", [(8, 16, 16), (7, 15, 17), (9, 14, 13)])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (1, 1)])
def test_convolutions_pad_as_tensorflow_does(size: tuple[int, int, int], kernel: int, stride: int) -> None:
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    conv = SameConv3d(3, 4, kernel, stride).double()
    want = F.conv3d(pad_same(x, (kernel,) * 3, (stride,) * 3), conv.weight, stride=stride)
    torch.testing.assert_close(conv(x), want)
    assert want.shape[2:] == tuple(-(-n // stride) for n in size)


@pytest.mark.parametrize("size", [(8, 16, 16), (7, 15, 17), (5, 6, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))],
)
def test_pools_pad_as_tensorflow_does(
    size: tuple[int, int, int], kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x = torch.rand(1, 2, *size, dtype=torch.float64)
    want = F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)
    assert torch.equal(SameMaxPool3d(kernel, stride)(x), want)


def test_the_stem_pads_two_before_and_three_after() -> None:
    assert same_padding(224, 7, 2) == (2, 3)
    assert same_padding(112, 3, 2) == (0, 1)
    assert same_padding(15, 7, 2) == (3, 3)


def test_a_16x224x224_clip_shrinks_as_published() -> None:
    network = I3d(3, context(1), width=0.0625).eval()
    network.fuses = False  # so that the layers are called as modules
    shapes = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda module, args, out, name=name: shapes.update({name: tuple(out.shape[2:])}))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 16, 224, 224)).shape == (1, network.feature_size)
    assert shapes["Conv3d_1a_7x7"] == (8, 112, 112)
    assert shapes["MaxPool3d_3a_3x3"] == (8, 28, 28)
    assert shapes["MaxPool3d_4a_3x3"] == (4, 14, 14)
    assert shapes["Mixed_5c"] == (2, 7, 7)
    assert list(shapes)[-1] == "Mixed_5c"


@pytest.mark.parametrize("shape", [(8, 32, 32), (16, 45, 61), (6, 64, 48)])
def test_any_size_and_frame_count_goes_through(shape: tuple[int, int, int]) -> None:
    network = I3d(2, context(2), width=0.125)
    y = network(torch.randn(2, 2, *shape))
    assert y.shape == (2, network.feature_size)
    assert torch.isfinite(y).all()


def test_every_activation_stays_ndhwc() -> None:
    """With 16 clips: below that, on one thread, torch takes a kernel of its own that answers NCDHW in place of
    oneDNN.
    """
    network = MultiStream(width=0.25, group_size=8, test_statistics="mixture")
    use_ndhwc_weights(network)
    strays = []

    def look(module: torch.nn.Module, args: object, out: Tensor) -> None:
        if out.ndim == 5 and not out.is_contiguous(memory_format=torch.channels_last_3d):
            strays.append(tuple(out.shape))

    for module in network.streams.modules():
        if not isinstance(module, torch.nn.ModuleDict | I3d):
            module.register_forward_hook(look)
    clips = {"rgb": torch.rand(16, 8, 64, 64, 3), "flow": torch.rand(16, 8, 64, 64, 2)}
    with torch.no_grad():
        network(clips, (0, 1))
    assert strays == []


def test_ndhwc_is_a_view() -> None:
    clips = torch.rand(2, 8, 32, 32, 3)
    assert channels_first(clips).data_ptr() == clips.data_ptr()
    assert channels_first(clips).is_contiguous(memory_format=torch.channels_last_3d)


def test_the_seed_alone_decides_the_initial_weights() -> None:
    from mmsada_hpc.config import load_config
    from mmsada_hpc.train.module import new_module

    config = load_config(None, ["model.width=0.125", "seed=5"])
    torch.manual_seed(0)
    first = new_module(config, num_classes=8)
    torch.manual_seed(1)
    second = new_module(config, num_classes=8)
    other = new_module(load_config(None, ["model.width=0.125", "seed=6"]), num_classes=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_bf16_gradients_over_two_frames_are_finite_on_a_cpu() -> None:
    """With freed memory full of NaN, which torch's own kernel hands on (see `has_broken_bf16_gradient`)."""
    conv = SameConv3d(16, 32, 3)
    x = torch.randn(4, 16, 2, 3, 3).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        exact = F.conv3d(x, conv.weight, padding=1)
    for _ in range(40):
        junk = [torch.full((size,), torch.nan) for size in (1_000, 5_000, 20_000, 100_000, 400_000)]
        del junk
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        (gradient,) = torch.autograd.grad(y.float().sum(), conv.weight)
        assert y.dtype == torch.bfloat16
        assert torch.isfinite(gradient).all()
    torch.testing.assert_close(y, exact, rtol=0.02, atol=0.02)
