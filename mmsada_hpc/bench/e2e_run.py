"""A short run of the real training, for a benchmark: its config, its store, its folder."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mmsada_hpc.cluster.join import join, leave, say_to_all
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.config import Config, build_config, load_config
from mmsada_hpc.data.demo import DemoOptions, render_demo
from mmsada_hpc.data.demo_kitchens import VERBS
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.screen import Screen, quiet_screen
from mmsada_hpc.train.loop import TrainLoop
from mmsada_hpc.train.run import train_in_world
from mmsada_hpc.train.stop import StopFlag

T = TypeVar("T")

_DEFAULT = Path("demo.yaml")


@contextlib.contextmanager
def coming_together() -> Iterator[World]:
    """The ranks' world as training needs it; a process that is alone comes together with itself for this time."""
    world = find_world()
    if dist.is_initialized():
        yield world
        return
    try:
        yield join(world, backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    finally:
        leave()


def bench_config(path: Path | None, overrides: Sequence[str], *, stores: Path) -> Config:
    """The config whose updates are timed; without `path` the demo's, on toy kitchens that are rendered where they are
    missing. Call it on every rank.
    """
    config = load_config(path or _DEFAULT, overrides)
    if path is not None or any(word.startswith("data.store=") for word in overrides):
        return config
    store = toy_store(config, stores) if find_world().rank == 0 else None
    return _with(config, {"data": {"store": say_to_all(store)}})


def toy_store(config: Config, stores: Path) -> Path:
    """A store of 80 short clips of two toy kitchens (synthetic), a little larger and longer than the config's windows;
    made where it is missing.
    """
    data = config.data
    side, frames = max(72, 2 * math.ceil(data.crop * 8 / 7 / 2)), max(48, 3 * data.num_frames * data.rgb_step // 2)
    store, videos = stores / f"bench_{side}x{frames}", stores / f"bench_{side}x{frames}_videos"
    if not (store / MANIFEST).is_file():
        options = DemoOptions(videos, train=4, test=1, height=max(96, side), width=max(96, side), frames=frames)
        prepare(PrepareOptions(store, videos, render_demo(options), classes=VERBS, size=f"{side}x{side}"))
    return store


def short_run(config: Config, updates: int, *, save_every: int, runs: Path) -> Config:
    """The config with nothing left but updates of one stage (the second where it has one) and checkpoints, in a new
    folder. Call it on every rank.
    """
    has_second = config.train.stage2.steps > 0
    folder = runs / say_to_all(f"e2e-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    return _with(
        config,
        {
            "run": {"dir": folder},
            "train": {
                "stage1": {"steps": 0 if has_second else updates},
                "stage2": {"steps": updates if has_second else 0},
            },
            "checkpoint": {"every": save_every, "minutes": 0, "keep": 1, "best_by": None},
            "eval": {"every": 0, "sets": [], "during": [], "checkpoints": []},
            "observe": {"features": False},
        },
    )


def train_for(config: Config, world: World, make_loop: Callable[..., TrainLoop]) -> None:
    """Train in `config.run.dir` with a loop of `make_loop`; the folder is gone afterwards, unless what went wrong is
    told nowhere else. What training shows goes to screen.txt in that folder.
    """
    try:
        with quiet_screen(config.run.dir, world.rank):
            _train(config, world, make_loop)
    except UserError:
        _remove(config.run.dir, world)
        raise
    _remove(config.run.dir, world)


def _train(config: Config, world: World, make_loop: Callable[..., TrainLoop]) -> None:
    shown = os.devnull if world.rank else config.run.dir / "screen.txt"
    with contextlib.closing(Screen(open(shown, "w", encoding="utf-8"), visible=world.rank == 0)) as screen:
        train_in_world(config, world, screen, StopFlag(), make_loop=make_loop)
    dist.barrier()


def _remove(folder: Path, world: World) -> None:
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def kept(make: Callable[..., T], into: list[T]) -> Callable[..., T]:
    """`make`, whose result is also put into a list."""

    def remember(*args: Any, **kwargs: Any) -> T:
        into.append(make(*args, **kwargs))
        return into[-1]

    return remember


def shape_of(config: Config, num_ranks: int) -> str:
    """What decides how long an update takes, for the name of a row."""
    data, train = config.data, config.train
    engine = f"ZeRO{train.zero_stage}" if train.engine == "deepspeed" else "DDP"
    return (
        f"{config.method.name} {data.num_frames}x{data.crop}^2 w{config.model.width:g} N={train.global_batch} "
        f"{train.precision} {engine} x{num_ranks}"
    )


def _with(config: Config, changes: dict[str, Any]) -> Config:
    values = config.model_dump()
    for section, change in changes.items():
        for key, value in change.items():
            values[section][key] = {**values[section][key], **value} if isinstance(value, dict) else value
    return build_config(values)
