"""The step that `bench step` measures, in several forms: two streams, MM-SADA's heads and SGD on resident clips."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsada_hpc.bench.naive_i3d import NaiveI3d
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.convolution import SameConv3d
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.streams import MultiStream, channels_first, use_ndhwc_weights
from mmsada_kernels import adaptation_heads
from mmsada_kernels.reference import Linear, Mlp

CHANNELS = {"rgb": 3, "flow": 2}
NUM_CLASSES, HIDDEN = 8, 100


@dataclass(frozen=True)
class Shape:
    """Of a micro-batch, half of it source clips."""

    clips: int
    frames: int
    size: int
    """Side of a frame in pixels."""
    width: float
    """Of the networks."""

    def __str__(self) -> str:
        return f"{self.clips}x{self.frames}x{self.size}^2" + (f" width {self.width:g}" if self.width != 1 else "")


@dataclass(frozen=True)
class Form:
    """How a step is computed."""

    network: str
    """naive | modules | fused."""
    bf16: bool

    def __str__(self) -> str:
        return f"{self.network} {'bf16' if self.bf16 else 'fp32'}"


def resident_clips(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Per stream `(N, T, H, W, C)` in [-1, 1)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.clips, shape.frames, shape.size, shape.size)
    return {
        name: (torch.rand(*sizes, channels, generator=generator) * 2 - 1).to(device)
        for name, channels in CHANNELS.items()
    }


class StepModel(nn.Module):
    """Both streams and every head; the mean loss of a micro-batch whose first half is source."""

    def __init__(self, shape: Shape, form: Form) -> None:
        assert form.network in ("naive", "modules", "fused"), f"{form.network}: no form of the network"
        super().__init__()
        torch.manual_seed(0)
        streams = MultiStream(width=shape.width, group_size=shape.clips, test_statistics="mixture")
        networks = {name: network for name, network in streams.streams.items() if isinstance(network, I3d)}
        for network in networks.values():
            network.fuses = form.network == "fused"
        widths = list(streams.feature_sizes.values())
        self.classifier = nn.ModuleList(nn.Linear(width, NUM_CLASSES) for width in widths)
        self.discriminator = nn.ModuleList(_two_layers(width) for width in widths)
        self.correspondence = _two_layers(sum(widths))
        self.streams: nn.Module = streams
        if form.network == "naive":  # last, so that all forms draw the same weights
            self.streams = nn.ModuleDict({name: NaiveI3d(network) for name, network in networks.items()})

    def forward(self, clips_NTHWC: Mapping[str, Tensor]) -> Tensor:
        if isinstance(self.streams, MultiStream):
            features = list(self.streams(clips_NTHWC, (0,)).values())
        else:
            features = [net(channels_first(clips_NTHWC[name])) for name, net in self.streams.named_children()]
        n, device = len(features[0]), features[0].device
        domain_N = (torch.arange(n, device=device) >= n // 2).long()
        every_N = torch.full((n,), 1 / n, device=device)
        found = adaptation_heads(
            features,
            [torch.full_like(x, 2.0) for x in features],
            classifier_S=[Linear(head.weight, head.bias) for head in self.classifier],  # type: ignore[arg-type]
            discriminator_S=[_mlp(head) for head in self.discriminator],  # type: ignore[arg-type]
            correspondence_head=_mlp(self.correspondence),
            label_N=torch.arange(n, device=device) % NUM_CLASSES,
            domain_N=domain_N,
            corresponds_N=torch.arange(n, device=device) % 2 == 0,
            weight_ce_N=2 * every_N * (domain_N == 0),
            weight_corr_N=every_N,
            weight_domain_N=every_N,
            reversal=torch.tensor(0.5, device=device),
            num_classes=NUM_CLASSES,
        )
        terms = [found.classified.scored, found.corresponds, *found.domain_S]
        return torch.stack([term.loss for term in terms]).sum()


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def _mlp(head: nn.Sequential) -> Mlp:
    first, _, second = head
    return Mlp(first.weight, first.bias, second.weight, second.bias)  # type: ignore[arg-type]


def make_step(shape: Shape, form: Form, device: torch.device) -> Callable[[], None]:
    """One update: forward, backward, SGD; returns when the device is done."""
    model, clips = StepModel(shape, form).to(device), resident_clips(shape, device)
    if form.network != "naive":
        use_ndhwc_weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=form.bf16):
            loss = model(clips)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def executed_flops(shape: Shape) -> int:
    """Of the convolutions of one update, 2 per multiply-add: forward, weight gradient, and input gradient but for the
    stems, which need none. Batch norm, pools, heads and the optimiser are not counted.
    """
    total = 0

    def count(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        assert isinstance(module, SameConv3d)
        forward = 2 * out.numel() * module.weight[0].numel()
        total += forward * (2 if module.in_channels in CHANNELS.values() else 3)

    with torch.device("meta"):
        for channels in CHANNELS.values():
            network = I3d(channels, GroupContext(group_size=shape.clips, test="mixture"), width=shape.width)
            network.fuses = False
            for module in network.modules():
                if isinstance(module, SameConv3d):
                    module.register_forward_hook(count)
            network(torch.empty(shape.clips, channels, shape.frames, shape.size, shape.size))
    return total
