"""Two engines behind one small interface: DeepSpeed (the product) and plain DDP (the yardstick, and fp64 for tests)."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmsada_hpc.config_train import TrainConfig
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.base import Factors, Losses
from mmsada_hpc.methods.heads import TruncatedLinear
from mmsada_hpc.model.convolution import SameConv3d
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.streams import use_ndhwc_weights
from mmsada_hpc.train.module import TrainModule
from mmsada_hpc.train.optimizers import keys, load_state, make_optimizer, set_rate, state_of
from mmsada_hpc.train.overlap import OverlappedAveraging

Momentum = Mapping[str, Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


class Engine(ABC):
    """Forward, backward and update of one stage.

    A rank's loss is its weighted sum x world size x accumulation, because every engine averages over ranks and
    micro-batches (law 3).
    """

    def __init__(self, module: TrainModule, train: TrainConfig, layout: BatchLayout) -> None:
        self.module, self.train, self.layout = module, train, layout

    @abstractmethod
    def forward_backward(self, batch: Batch, factors: Factors, *, last: bool) -> Losses:
        """Add one micro-batch's gradients; after the `last` of an update they are averaged over ranks."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`(logits, features)` in test mode, no gradients."""

    @torch.no_grad()
    def probe(self, features_SND: Mapping[str, Tensor], domain: int) -> dict[str, float]:
        """Accuracies of the method's other heads on gathered test features (call it on every rank)."""
        self.module.eval()
        parameter = next(self.module.method.parameters())
        with self.whole_parameters():
            inputs = {s: x.to(parameter.device, torch.float32).to(self.dtype) for s, x in features_SND.items()}
            return self.module.method.probe(inputs, domain)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.train.precision == "fp64" else torch.float32

    def whole_parameters(self) -> contextlib.AbstractContextManager[None]:
        """Inside it every rank holds every parameter whole."""
        return contextlib.nullcontext()

    @abstractmethod
    def update(self, lr: float) -> None:
        """One optimiser update at a learning rate; gradients are then zero."""

    @abstractmethod
    def model_state(self) -> dict[str, Tensor]:
        """Parameters and buffers, whole, on every rank (call it on every rank)."""

    @abstractmethod
    def momentum(self) -> dict[str, Tensor]:
        """Momentum by parameter name, and what else the optimiser keeps, whole, on every rank (call it on every
        rank).
        """

    @abstractmethod
    def gradient_norm(self) -> Tensor | None:
        """Norm of the averaged gradients before the update; None where the engine has them in pieces."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine hung on the module."""


def make_engine(
    module: TrainModule, train: TrainConfig, layout: BatchLayout, *, momentum: Momentum | None = None
) -> Engine:
    """Wrap a module whose weights are loaded; `momentum` is what a checkpoint held, None starts anew."""
    kind = DeepSpeedEngine if train.engine == "deepspeed" else DdpEngine
    return kind(module, train, layout, momentum=momentum)


def _named(module: TrainModule) -> dict[str, torch.nn.Parameter]:
    return dict(module.named_parameters())


def _check_names(module: TrainModule, train: TrainConfig, momentum: Momentum) -> None:
    missing = keys(_named(module), train) ^ set(momentum)
    if missing:
        raise UserError(
            f"the checkpoint's momentum does not fit the model: {sorted(missing)[0]}; it was written by another method "
            f"or model.width"
        )


class DdpEngine(Engine):
    """`DistributedDataParallel` with gradient accumulation by `no_sync`."""

    def __init__(
        self, module: TrainModule, train: TrainConfig, layout: BatchLayout, *, momentum: Momentum | None
    ) -> None:
        super().__init__(module, train, layout)
        if train.precision == "fp64":
            module.double()
        if train.memory_format == "ndhwc":
            use_ndhwc_weights(module)
        device = next(module.parameters()).device
        self._ddp = DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=False,
        )
        self._optimizer = make_optimizer(module, train)
        if momentum is not None:
            _check_names(module, train, momentum)
            load_state(self._optimizer, _named(module), train, momentum)

    def forward_backward(self, batch: Batch, factors: Factors, *, last: bool) -> Losses:
        self._ddp.train()
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            with self._autocast():
                losses = Losses(*self._ddp(batch, factors))
            # DDP averages over ranks but adds up micro-batches.
            (losses.total * self.layout.world_size).backward()
        return losses

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self.module.eval()
        with self._autocast():
            return self.module(batch)

    def update(self, lr: float) -> None:
        set_rate(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def model_state(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def momentum(self) -> dict[str, Tensor]:
        return state_of(self._optimizer, _named(self.module), self.train)

    def gradient_norm(self) -> Tensor | None:
        return torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])

    def close(self) -> None:
        del self._ddp

    def _autocast(self) -> Any:
        device = next(self.module.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.train.precision == "bf16")


class DeepSpeedEngine(Engine):
    """`deepspeed.initialize` with the optimiser, ZeRO stage and `torch_autocast` from the config."""

    def __init__(
        self, module: TrainModule, train: TrainConfig, layout: BatchLayout, *, momentum: Momentum | None
    ) -> None:
        super().__init__(module, train, layout)
        import deepspeed  # takes seconds, and prints

        # Compiles for a minute where the machine has not done so yet, and serves inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if train.zero_stage == 3:
            for parameter in module.method.parameters():  # the kernels take them outside their own modules
                deepspeed.zero.register_external_parameter(module, parameter)
            for network in module.modules():  # whose parameters are whole inside their own modules' forward alone
                if isinstance(network, I3d):
                    network.fuses = False
        # ZeRO may make its optimiser states by an update with zero gradients: at rate 0 and without decay that leaves
        # weights and momentum untouched.
        optimizer = make_optimizer(module, train)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(train, layout), dist_init_required=False
        )
        for group, decay in zip(self._engine.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        if layout.world_size == 1 and train.zero_stage == 0:  # nothing to average: saves copies of every gradient
            self._engine.enable_backward_allreduce = False
        if train.memory_format == "ndhwc" and train.zero_stage == 0:
            use_ndhwc_weights(module)
        self._averaging = self._overlap() if overlaps(train, layout) else None
        if momentum is not None:
            _check_names(module, train, momentum)
            self._load_momentum(momentum)

    def _overlap(self) -> OverlappedAveraging:
        """In place of DeepSpeed's own averaging, which waits for the end of the backward (D17)."""
        self._engine.enable_backward_allreduce = False
        return OverlappedAveraging(list(self.module.parameters()), DTYPES[gradient_dtype(self.train)])

    def forward_backward(self, batch: Batch, factors: Factors, *, last: bool) -> Losses:
        self._engine.train()
        losses = Losses(*self._engine(batch, factors))
        if last and self._averaging is not None:
            self._averaging.begin()
        # DeepSpeed averages over ranks and divides by the accumulation.
        self._engine.backward(losses.total * (self.layout.world_size * self.layout.accumulation))
        if not last:
            self._engine.step()
        elif self._averaging is not None:
            self._averaging.finish()
        return losses

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self._engine.eval()
        return self._engine(batch)

    def update(self, lr: float) -> None:
        set_rate(self._engine.optimizer, lr)
        self._engine.step()

    def model_state(self) -> dict[str, Tensor]:
        with self.whole_parameters():
            return {
                name: value.clone() if self.train.zero_stage == 3 else value
                for name, value in self.module.state_dict().items()
            }

    def momentum(self) -> dict[str, Tensor]:
        if self.train.zero_stage == 0:
            return state_of(self._optimizer, _named(self.module), self.train)
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            name: safe_get_full_optimizer_state(p, "momentum_buffer").clone() for name, p in _named(self.module).items()
        }

    def gradient_norm(self) -> Tensor | None:
        if self.train.zero_stage:
            return None
        return torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])

    def close(self) -> None:
        if self._averaging is not None:
            self._averaging.close()
        self._engine.destroy()

    def _load_momentum(self, momentum: Momentum) -> None:
        if self.train.zero_stage == 0:
            load_state(self._optimizer, _named(self.module), self.train, momentum)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        zero = self._engine.optimizer
        stage3 = self.train.zero_stage == 3
        # DeepSpeed links the states of its flat shards to parameters after the first update: do both before it.
        for flat in zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups:
            zero.optimizer.state[flat].setdefault("momentum_buffer", torch.zeros_like(flat))
        if not stage3:
            zero._lazy_init_hp_params_optimizer_state()
        for name, p in _named(self.module).items():
            safe_set_full_optimizer_state(p, momentum[name].to(p.device), "momentum_buffer")

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[None]:
        if self.train.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield


def gradient_dtype(train: TrainConfig) -> str:
    """What gradients travel in between ranks (D14): DDP sends the fp32 gradients of its fp32 weights."""
    return "fp32" if train.precision == "bf16" and train.engine == "ddp" else train.precision


def overlaps(train: TrainConfig, layout: BatchLayout) -> bool:
    """Whether gradients are averaged during the backward inside DeepSpeed's stage 0 (`train.overlap`). Not where CUDA
    graphs replay the backward: it leaves all gradients at once.
    """
    plain = train.engine == "ddp" or train.zero_stage > 0 or train.accelerate == "graphs"
    return train.overlap and layout.world_size > 1 and not plain


def _bf16_modules(train: TrainConfig) -> dict[str, Any]:
    """Under autocast ZeRO 1 and 2 go by the class of a module for what its gradients travel in (fp32 unless it is
    listed), not by `communication_data_type`; torch's own classes alone are listed by default, not those made of them.
    """
    if train.zero_stage not in (1, 2):
        return {}
    kinds = (SameConv3d, TruncatedLinear, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {"lower_precision_safe_modules": [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]}


def deepspeed_config(train: TrainConfig, layout: BatchLayout) -> dict[str, Any]:
    """DeepSpeed's own settings; batch sizes in its words."""
    bf16 = train.precision == "bf16"
    return {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "zero_optimization": {"stage": train.zero_stage, "overlap_comm": train.zero_stage > 0},
        "zero_allow_untested_optimizer": True,  # SGD is not in DeepSpeed's list (D16)
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", **_bf16_modules(train)},
        "communication_data_type": gradient_dtype(train),
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
