"""Twenty updates of every method on a fixed plan and fixed clips, in fp64 by the plain engine: what golden_traces.json
holds. Renew it, and say in the commit what about the method has changed: `python -m tests.methods.trace`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmsada_hpc.cluster.host import keep_freed_memory
from mmsada_hpc.cluster.join import join, leave
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.config import Config, load_config
from mmsada_hpc.data.batch import Batch, make_batch
from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.philox import keep_mask
from mmsada_hpc.data.plan import ClipPlan, Planner, Pool
from mmsada_hpc.data.windows import WindowRule
from mmsada_hpc.methods import batch_layout, find_method, method_names, moment
from mmsada_hpc.model.batch_norm import BatchNormState
from mmsada_hpc.train.engine import Engine, make_engine
from mmsada_hpc.train.module import new_module, part_seed

GOLDEN = Path(__file__).with_name("golden_traces.json")
CLASSES, STEPS = 3, 10
# At this rate a change of 1e-15 in the weights moves no loss by more than 3e-10 over the 20 updates (at 1e-5 it grows
# to 0.1), while 20 updates move it by a third: another machine's rounding is told from another method.
SETTINGS = (
    "model.width=0.0625", "model.batch_norm.group_size=8", "model.batch_norm.decay=0.9", "method.mmd_block=4",
    "train.engine=ddp", "train.precision=fp64", "train.global_batch=16", "data.num_frames=4", "data.crop=32",
    f"train.stage1.steps={STEPS}", f"train.stage2.steps={STEPS}", "train.stage1.lr=1.0e-6",
    "train.stage2.lr=1.0e-6",
)  # fmt: skip


def trace(name: str, *, nudge: float = 0.0) -> list[dict[str, float]]:
    """Losses, accuracies and gradient norm of each update, both stages; ranks must have come together.

    Args:
        nudge: added to every weight at the start, to see how differences grow.
    """
    config = load_config(None, [*SETTINGS, f"method.name={name}"])
    layout, planner = batch_layout(config, 1), _planner(config)
    rows, state = list[dict[str, float]](), dict[str, Tensor]()
    for stage in (1, 2):
        module = new_module(config, num_classes=CLASSES).double()
        if state:
            module.load_state_dict(state)
            module.method.start_stage2(part_seed(config.seed, "stage 2 heads"))
        elif nudge:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(nudge)
        engine = make_engine(module, config.train, layout)
        norms = BatchNormState(module, decay=config.model.batch_norm.decay)
        for step in range(STEPS):
            plan = planner.step(stage, step)
            rows.append(_update(engine, config, _batch(config, plan, stage, step, engine), norms, stage, step))
        state = {key: value.clone() for key, value in engine.model_state().items()}
        engine.close()
    means = [value for key, value in state.items() if key.endswith("running_mean_DC")]
    rows.append({"running_means": float(torch.cat([m.flatten() for m in means]).norm())})
    return rows


def _update(
    engine: Engine, config: Config, batch: Batch, norms: BatchNormState, stage: int, step: int
) -> dict[str, float]:
    losses = engine.forward_backward(batch, engine.module.method.factors(moment(config.train, stage, step)), last=True)
    norms.update(norms.take_sums(), engine.layout.groups)
    norm = engine.gradient_norm()
    assert norm is not None
    engine.update(config.train.stage1.lr)
    figures = {key: float(value.detach()) for key, value in losses.figures.items()}
    return {"loss": float(losses.total.detach()), **figures, "grad_norm": float(norm)}


def _planner(config: Config) -> Planner:
    kind = find_method(config.method.name)
    sides = [Pool(100 * d + np.arange(30), np.full(30, 50), np.full(30, 150), np.arange(30) % CLASSES) for d in (0, 1)]
    return Planner(
        seed=0,
        pools=tuple(sides[side == "target"] for side in kind.trains_on),
        domain_batch=16 // len(kind.trains_on),
        rule=WindowRule(4, 2, 2),
        frame_size=(64, 80),
        crops="released",
        synchronised=False,
        negatives=kind.negatives,
        weigh=kind.weigh,
    )


def _batch(config: Config, plan: ClipPlan, stage: int, step: int, engine: Engine) -> Batch:
    """Clips that show their segment's class and domain as a pattern under noise; raw words, no Generator methods."""
    clips: dict[str, Tensor] = {s: torch.from_numpy(np.stack(list(_clips(plan, s)))) for s in STREAMS}
    widths = engine.module.network.feature_sizes
    masks: dict[str, Tensor] = {
        stream: torch.from_numpy(
            keep_mask(seed=0, stage=stage, step=step, lane=lane, rows=16, features=widths[stream], drop=0.5)
        )
        for lane, stream in enumerate(STREAMS)
    }
    places = np.arange(16) % engine.layout.domain_batch
    return make_batch(plan, clips, dropout_SND=masks, group_size=config.model.batch_norm.group_size, place_N=places)


def _clips(plan: ClipPlan, stream: str) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    channels = 3 if stream == "rgb" else 2
    shape = (4, 32, 32, channels)
    views = plan.views[stream]
    for segment, centre in zip(views.segment_N, views.centre_N, strict=True):
        words = np.random.Philox(key=np.array([segment, centre], np.uint64)).random_raw(int(np.prod(shape)))
        noise = (words >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5
        t, y, x = np.meshgrid(*(np.arange(n) for n in shape[:3]), indexing="ij")
        wave = np.sin(0.5 * x * (segment % CLASSES + 1) + 0.3 * t + 0.2 * y * (1 + segment // 100))
        yield 0.5 * noise.reshape(shape) + 0.4 * wave[..., None]


def all_traces() -> dict[str, list[dict[str, float]]]:
    """Of every registered method."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the maps are tiny: threads only wait for each other
    join(find_world())
    try:
        return {name: trace(name) for name in method_names()}
    finally:
        leave()
        torch.set_num_threads(threads)


if __name__ == "__main__":
    rounded = {
        name: [{key: float(f"{value:.12g}") for key, value in row.items()} for row in rows]
        for name, rows in all_traces().items()
    }
    GOLDEN.write_text(json.dumps(rounded, indent=0) + "\n")
