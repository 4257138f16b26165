"""Real runs on several ranks: each rank is a process that trains one config after another through the product's own
entry point.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsada_hpc.cluster.world import World
    from mmsada_hpc.config import Config

_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One run: overrides of the defaults, and a checkpoint to begin from."""

    overrides: tuple[str, ...]
    resume_from: str | None = None
    """A checkpoint folder to copy into the run folder first."""
    gradients_to: str | None = None
    """Instead of training, write the gradients of the first update here (.pt)."""


def run_ranks(world: int, jobs: list[Job], *, timeout: int = 240) -> None:
    """Run jobs one after another on `world` ranks of this machine, one thread each."""
    port = free_port()
    processes = [_start(rank, world, jobs, port) for rank in range(world)]
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    assert all(p.returncode == 0 for p in processes), "\n".join(outputs)


def _start(rank: int, world: int, jobs: list[Job], port: int) -> "subprocess.Popen[str]":
    env = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.train.ranks", json.dumps([asdict(job) for job in jobs])]
    return subprocess.Popen(
        command, env=env, cwd=_CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_jobs(jobs: list[Job]) -> None:
    from mmsada_hpc.cluster.join import join, leave
    from mmsada_hpc.cluster.world import find_world
    from mmsada_hpc.config import load_config
    from mmsada_hpc.observe.screen import quiet_screen
    from mmsada_hpc.train.run import train_in_world
    from mmsada_hpc.train.stop import StopFlag

    world = join(find_world())
    for job in jobs:
        config = load_config(None, job.overrides)
        if job.gradients_to is not None:
            _first_gradients(config, world, Path(job.gradients_to))
            continue
        if job.resume_from is not None and world.rank == 0:
            shutil.copytree(job.resume_from, config.run.dir / "checkpoints" / Path(job.resume_from).name)
        with quiet_screen(config.run.dir, world.rank) as screen:
            train_in_world(config, world, screen, StopFlag())
    leave()


def _first_gradients(config: "Config", world: "World", path: Path) -> None:
    """Loss and averaged gradients of the first update, through the real loader and engine."""
    import torch
    import torch.distributed as dist

    from mmsada_hpc.data.store import Store
    from mmsada_hpc.methods import moment
    from mmsada_hpc.train.engine import make_engine
    from mmsada_hpc.train.setup import Setup

    assert config.data.store is not None
    setup = Setup(config, Store.open(config.data.store), world)
    module = setup.new_module()
    engine = make_engine(module, config.train, setup.layout)
    loader = setup.train_loader(2, 0, features=module.network.feature_sizes)
    factors = module.method.factors(moment(config.train, 2, config.train.stage2.steps // 2))
    total = torch.zeros(())
    for micro in range(setup.layout.accumulation):
        losses = engine.forward_backward(loader.next(), factors, last=micro == setup.layout.accumulation - 1)
        total += losses.total.detach().float()
    dist.all_reduce(total)
    if world.rank == 0:
        gradients = {n: p.grad.contiguous() for n, p in module.named_parameters() if p.grad is not None}
        torch.save({"loss": total, "gradients": gradients}, path)


if __name__ == "__main__":
    _run_jobs([Job(**{**job, "overrides": tuple(job["overrides"])}) for job in json.loads(sys.argv[1])])
