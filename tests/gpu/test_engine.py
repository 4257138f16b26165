"""An update by each engine on a GPU is the plain engine's on the CPU."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

for package in ("pydantic", "yaml", "nvidia.dali", "cv2"):  # config and methods need them
    pytest.importorskip(package, reason=f"{package} is not installed: no engine was tried on a GPU")

from mmsada_hpc.cluster.join import join, leave  # noqa: E402
from mmsada_hpc.cluster.world import find_world  # noqa: E402
from mmsada_hpc.config import Config, load_config  # noqa: E402
from mmsada_hpc.data.batch import Batch  # noqa: E402
from mmsada_hpc.methods import batch_layout, moment  # noqa: E402
from mmsada_hpc.train.engine import make_engine  # noqa: E402
from mmsada_hpc.train.gpu import use_switches  # noqa: E402
from mmsada_hpc.train.module import TrainModule, new_module  # noqa: E402

SETTINGS = (
    "model.width=0.125", "model.batch_norm.group_size=4", "train.global_batch=8", "train.stage2.steps=10",
    "data.num_frames=4", "data.crop=32", "model.dropout=0.0",
)  # fmt: skip
CLASSES = 3


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    join(find_world(), backend="cpu:gloo,cuda:nccl")
    yield
    leave()


def config_of(*more: str) -> Config:
    return load_config(None, [*SETTINGS, *more])


def batch_of(module: TrainModule, device: str) -> Batch:
    rng = torch.Generator().manual_seed(1)
    domain_N = torch.arange(8) // 4
    corresponds_N = torch.arange(8) % 4 != 3
    classified_N = (domain_N == 0) & corresponds_N
    every_N = torch.full((8,), 1 / 8, dtype=torch.float64)
    widths = module.network.feature_sizes
    batch = Batch(
        clips_NTHWC={
            name: torch.rand(8, 4, 32, 32, channels, generator=rng) * 2 - 1
            for name, channels in (("rgb", 3), ("flow", 2))
        },
        label_N=torch.arange(8) % CLASSES,
        domain_N=domain_N,
        corresponds_N=corresponds_N,
        place_N=torch.arange(8) % 4,
        weights={"ce": classified_N.double() / classified_N.sum(), "corr": every_N, "domain": every_N},
        dropout_SND={name: torch.ones(8, width) for name, width in widths.items()},
        group_domains=(0, 1),
    )
    fields: dict[str, Any] = {field: moved(getattr(batch, field), device) for field in vars(batch)}
    return dataclasses.replace(batch, **fields)


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {key: x.to(device) for key, x in value.items()} if isinstance(value, dict) else value


def updated(config: Config, device: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures of two updates, and the weights after them."""
    module = new_module(config, num_classes=CLASSES).to(device)
    use_switches(module.network, config.train, torch.device(device))
    engine = make_engine(module, config.train, batch_layout(config, 1))
    figures: dict[str, float] = {}
    for step in range(2):
        factors = module.method.factors(moment(config.train, 2, 5 + step))
        losses = engine.forward_backward(batch_of(module, device), factors, last=True)
        engine.update(0.01)
        figures |= {f"{name} {step}": float(value.detach()) for name, value in losses.figures.items()}
    weights = {name: x.detach().cpu().clone() for name, x in engine.model_state().items()}
    engine.close()
    return figures, weights


@pytest.mark.parametrize("accelerate", ["none", "graphs"])
@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_an_update_on_a_gpu_is_the_cpus(engine: str, accelerate: str) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: its engine was not tried on a GPU")
    wanted, weights_there = updated(config_of("train.engine=ddp"), "cpu")
    found, weights_here = updated(config_of(f"train.engine={engine}", f"train.accelerate={accelerate}"), "cuda:0")
    assert found == pytest.approx(wanted, rel=2e-3, abs=2e-3)
    assert weights_here.keys() == weights_there.keys()
    for name, there in weights_there.items():
        assert torch.allclose(weights_here[name], there, rtol=2e-2, atol=2e-3), name
