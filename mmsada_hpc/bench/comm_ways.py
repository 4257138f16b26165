"""The ways to train that `bench comm` compares: plain DDP and DeepSpeed's stages, each with gradients that travel in
fp32 or in bf16, on the same network.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # its list of names is not whole
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from mmsada_hpc.cluster.world import World
from mmsada_hpc.config_train import TrainConfig
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.model.streams import MultiStream, use_ndhwc_weights
from mmsada_hpc.train.engine import DTYPES, deepspeed_config
from mmsada_hpc.train.overlap import OverlappedAveraging

PLAIN, SILENT, POWER = "DDP", "no communication", "DDP PowerSGD"
OTHERS = {"fp32": "bf16", "bf16": "fp32"}
LR, MOMENTUM = 1e-3, 0.9
Precision = Literal["fp32", "bf16"]
Stage = Literal[0, 1, 2]
# As training runs them, their gradients in the dtype that goes with its precision.
USUAL = (
    PLAIN,
    SILENT,
    "DDP contiguous",
    "DeepSpeed stage 0",
    "DeepSpeed stage 0 overlap",
    "DeepSpeed stage 1",
    "DeepSpeed stage 1 overlap",
    "DeepSpeed stage 2",
)
_TWO_DTYPES = tuple(name for name in USUAL if name.startswith("DeepSpeed"))
NAMES = (
    *USUAL,
    f"{PLAIN} bf16 gradients",
    POWER,
    *(f"{name} {dtype} gradients" for name in _TWO_DTYPES for dtype in OTHERS),
)


def every(precision: Precision) -> tuple[str, ...]:
    """All ways there are at a precision, none twice."""
    return tuple(name for name in NAMES if not name.endswith(f" {precision} gradients") or name.startswith(PLAIN))


@dataclass(frozen=True)
class Way:
    """One way to train, ready to step."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    backward: Callable[[], None]
    """Forward and backward of this rank's clips; then gradients are averaged."""
    update: Callable[[], None]
    close: Callable[[], None]
    gradients: str
    """What they travel in."""
    memory_format: str

    def step(self) -> None:
        self.backward()
        self.update()


class Net(nn.Module):
    """Both streams, and a number to differentiate: every parameter of theirs has a gradient."""

    def __init__(self, *, width: float, group_size: int) -> None:
        super().__init__()
        self.network = MultiStream(width=width, group_size=group_size, test_statistics="mixture")

    def forward(self, rgb_NTHWC: Tensor, flow_NTHWC: Tensor) -> Tensor:
        features = self.network({"rgb": rgb_NTHWC, "flow": flow_NTHWC})
        return torch.stack([x_ND.float().square().mean() for x_ND in features.values()]).sum()


@dataclass(frozen=True)
class Maker:
    """Makes ways of one network and one rank's clips."""

    net: Net
    clips: Sequence[Tensor]
    precision: Precision
    world: World

    def make(self, name: str) -> Way:
        """Call it on every rank, with the same names in the same order."""
        base, gradients = self._split(name)
        if base == POWER:
            return self._ddp(compressed=True)
        if base.startswith("DeepSpeed"):
            stage: Any = int(base.split()[2])
            return self._deepspeed(stage, overlap=base.endswith("overlap"), gradients=gradients)
        return self._ddp(ndhwc=base != "DDP contiguous", silent=base == SILENT, bf16=gradients == "bf16")

    def alone(self, clips: Sequence[Tensor]) -> Way:
        """One process, without any engine: what all of them must equal."""
        module = self._copy(ndhwc=True)
        return self._plain(module, module, clips, gradients="fp32")

    def _split(self, name: str) -> tuple[str, str]:
        usual = "fp32" if name.startswith((PLAIN, SILENT)) else self.precision
        for dtype in OTHERS:
            if name.endswith(f" {dtype} gradients"):
                return name.removesuffix(f" {dtype} gradients"), dtype
        return name, usual

    def _copy(self, *, ndhwc: bool) -> Net:
        module = copy.deepcopy(self.net)
        if ndhwc:
            use_ndhwc_weights(module)
        return module

    def _ddp(self, *, ndhwc: bool = True, silent: bool = False, bf16: bool = False, compressed: bool = False) -> Way:
        """As the plain engine of training wraps it; `silent` keeps the gradients on their ranks."""
        module = self._copy(ndhwc=ndhwc)
        device = next(module.parameters()).device
        ddp = DistributedDataParallel(
            module, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
        )
        if bf16:
            ddp.register_comm_hook(dist.group.WORLD, _in_bf16)
        if compressed:  # torch's own; its first two updates are plain
            ddp.register_comm_hook(PowerSGDState(None, start_powerSGD_iter=2), powerSGD_hook)
        around = ddp.no_sync if silent else contextlib.nullcontext
        gradients = "bf16" if bf16 else "fp32"
        return self._plain(ddp, module, self.clips, gradients=gradients, ndhwc=ndhwc, around=around)

    def _plain(
        self,
        wrapped: nn.Module,
        module: nn.Module,
        clips: Sequence[Tensor],
        *,
        gradients: str,
        ndhwc: bool = True,
        around: Callable[[], Any] = contextlib.nullcontext,
    ) -> Way:
        optimizer = _sgd(module)
        device = next(module.parameters()).device.type

        def backward() -> None:
            with around():
                with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = wrapped(*clips)
                loss.backward()

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        form = "ndhwc" if ndhwc else "contiguous"
        return Way(module, optimizer, backward, update, lambda: None, gradients, form)

    def _deepspeed(self, stage: Stage, *, overlap: bool, gradients: str) -> Way:
        """With the settings of training, but for the overlap and the gradients' dtype. Weights keep their layout at
        stages 1 and 2 (law 4). At stage 0 `overlap` is `train.overlap`.
        """
        import deepspeed

        # Compiles for a minute where the machine has not done so yet, and serves inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        module = copy.deepcopy(self.net)
        settings = self._settings(stage, overlap=overlap, gradients=gradients)
        optimizer = _sgd(module)
        engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        averaging = None
        if stage == 0:
            use_ndhwc_weights(module)
        if stage == 0 and overlap:
            engine.enable_backward_allreduce = False
            averaging = OverlappedAveraging(list(module.parameters()), DTYPES[gradients])

        def backward() -> None:
            loss = engine(*self.clips)
            if averaging is not None:
                averaging.begin()
            engine.backward(loss)
            if averaging is not None:
                averaging.finish()

        def close() -> None:
            if averaging is not None:
                averaging.close()
            engine.destroy()

        form = "ndhwc" if stage == 0 else "contiguous"
        return Way(module, optimizer, backward, engine.step, close, gradients, form)

    def _settings(self, stage: Stage, *, overlap: bool, gradients: str) -> Mapping[str, Any]:
        size = len(self.clips[0])
        train = TrainConfig(zero_stage=stage, precision=self.precision)  # type: ignore[call-arg]  # defaults
        layout = BatchLayout(size * self.world.size, size, 1, self.world.size, size, 1, "mixed")
        settings = deepspeed_config(train, layout)
        settings["zero_optimization"] = {**settings["zero_optimization"], "overlap_comm": overlap and stage > 0}
        settings["communication_data_type"] = gradients
        if stage and self.precision == "bf16" and gradients == "fp32":
            # Under autocast ZeRO sends the gradients of these modules in bf16, whatever the type named above.
            settings["torch_autocast"] = {**settings["torch_autocast"], "lower_precision_safe_modules": []}
        return settings


def _in_bf16(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """torch's own hook, which DDP refuses by its name where there is no NCCL, though gloo adds bf16 up as well."""
    found: torch.futures.Future[Tensor] = bf16_compress_hook(group, bucket)
    return found


def _sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
