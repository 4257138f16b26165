"""One start of one run on one rank: come together, train, score, write the result."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsada_hpc.cluster.host import affinity_warning, keep_freed_memory, set_threads
from mmsada_hpc.cluster.join import agree, join, leave
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.config import Config, config_hash, dump_config
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.data.store import Store, sha256_file
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.pretrained import open_pretrained
from mmsada_hpc.observe.metrics import METRICS_FILE, MetricsLog, plain, read_metrics
from mmsada_hpc.observe.record import write_json, write_record
from mmsada_hpc.observe.screen import Screen, quiet_screen
from mmsada_hpc.observe.summary import result_table
from mmsada_hpc.train.checkpoint import Checkpoints, Position, TrainState
from mmsada_hpc.train.engine import gradient_dtype
from mmsada_hpc.train.evaluate import score_set
from mmsada_hpc.train.loop import Trained, TrainLoop
from mmsada_hpc.train.setup import Setup
from mmsada_hpc.train.stop import StopFlag

RESULT = "result.json"


def train(config: Config) -> dict[str, Any]:
    """Train, or go on with, the run in `config.run.dir`; returns what result.json holds.

    Raises:
        UserError: a wrong setting or input.
        Stopped: told to stop; saved.
    """
    world = find_world()
    device = Setup(config, _open_store(config), world).checked().device
    with quiet_screen(config.run.dir, world.rank) as screen, StopFlag().listening() as stop:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        world = join(
            world, backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30)
        )
        result = train_in_world(config, world, screen, stop)
        leave()
        return result


def train_in_world(config: Config, world: World, screen: Screen, stop: StopFlag) -> dict[str, Any]:
    """`train` where the ranks have come together already."""
    begin = time.monotonic()
    setup = Setup(config, _open_store(config), world).checked()
    keep_freed_memory()
    threads = set_threads(world.local_size, cpus_per_task=world.cpus_per_task)
    agree(world, config_hash(config), what="the config")
    agree(world, sha256_file(setup.store.path / MANIFEST), what="the store (store.json)")
    _announce(screen, setup, threads)
    return _train(setup, screen, stop, begin)


def _train(setup: Setup, screen: Screen, stop: StopFlag, begin: float) -> dict[str, Any]:
    config, is_main = setup.config, setup.world.rank == 0
    checkpoints = Checkpoints(
        config.run.dir, keep=config.checkpoint.keep, config_hash=config_hash(config), warn=screen.print
    )
    finished = _finished_result(config)
    state = checkpoints.load_newest() or TrainState(Position(), {}, {})
    if finished is not None and state.position == Position(2, config.train.stage2.steps):
        screen.print(f"{config.run.dir} is finished already; `mmsada report {config.run.dir}` shows it")
        return finished
    before = config.train.stage1.steps if state.position.stage == 2 else 0
    if state.model:
        screen.print(f"going on from step {state.position.step} of stage {state.position.stage}")
    if is_main:
        write_atomically(config.run.dir / "config.yaml", dump_config(config).encode())
        write_record(
            config.run.dir,
            extra={"device": str(setup.device), "world_size": setup.world.size, "batch": setup.layout.describe()},
        )
    with MetricsLog(config.run.dir, tensorboard=config.observe.tensorboard, enabled=is_main) as metrics:
        metrics.truncate_after(before + state.position.step if state.model else -1)
        loop = TrainLoop(setup, screen=screen, metrics=metrics, checkpoints=checkpoints, stop=stop)
        if config.observe.features and not state.model:
            _store_features(setup, loop, state, "before")
        trained = loop.run(state)
        done = Position(2, config.train.stage2.steps)
        evaluations = {name: loop.score(trained.engine, name, done) for name in config.eval.sets}
        if config.observe.features:
            _store_features(setup, loop, None, "after", trained)
        result = _result(setup, trained, evaluations, seconds=time.monotonic() - begin)
        trained.engine.close()
    if is_main:
        write_json(config.run.dir / RESULT, plain(result))
    screen.print("\n" + result_table(result))
    return result


def _open_store(config: Config) -> Store:
    if config.data.store is None:
        raise UserError("data.store is not set: give the folder that `mmsada prepare` made (data.store=FOLDER)")
    return Store.open(config.data.store)


def _finished_result(config: Config) -> dict[str, Any] | None:
    path: Path = config.run.dir / RESULT
    return json.loads(path.read_text()) if path.is_file() and (config.run.dir / METRICS_FILE).is_file() else None


def _announce(screen: Screen, setup: Setup, threads: int) -> None:
    world, config = setup.world, setup.config
    screen.print(
        f"{config.method.name} ({config.recipe} recipe), {'+'.join(config.data.source)} -> "
        f"{'+'.join(config.data.target) or '-'}, seed {config.seed}, {config.run.dir}"
    )
    engine = f"DeepSpeed ZeRO {config.train.zero_stage}" if config.train.engine == "deepspeed" else "DDP"
    screen.print(
        f"{world.size} rank(s) by {world.launcher}, {setup.device.type}, {threads} thread(s) a rank, {engine}, "
        f"{config.train.precision} (gradients travel in {gradient_dtype(config.train)})"
    )
    screen.print(setup.layout.describe())
    for path in config.model.pretrained.files().values():
        screen.print(f"starting from {open_pretrained(path).describe()}")
    for warning in [*setup.warnings(), *filter(None, [affinity_warning(world.cpus_per_task)])]:
        screen.print(f"warning: {warning}")


def _store_features(
    setup: Setup, loop: TrainLoop, state: TrainState | None, name: str, trained: Trained | None = None
) -> None:
    """Both domains' test features for the report's embedding."""
    if not setup.config.data.target:
        return
    engine = trained.engine if trained else loop.start_stage(1, state or TrainState(Position(), {}, {}))
    parts = [score_set(setup, engine, f"{side}/test", loop.screen) for side in ("source", "target")]
    if trained is None:
        engine.close()
    if setup.world.rank == 0:
        folder = setup.config.run.dir / "features"
        folder.mkdir(exist_ok=True)
        streams = {
            stream: np.concatenate([p.features[stream] for p in parts]).astype(np.float32)
            for stream in parts[0].features
        }
        domain = np.concatenate([np.full(len(p.rows), d) for d, p in enumerate(parts)])
        arrays: dict[str, Any] = {**streams, "domain": domain, "label": np.concatenate([p.labels for p in parts])}
        np.savez_compressed(folder / f"{name}.npz", **arrays)


def _result(
    setup: Setup, trained: Trained, evaluations: dict[str, dict[str, Any]], *, seconds: float
) -> dict[str, Any]:
    config, world = setup.config, setup.world
    result: dict[str, Any] = {
        "method": config.method.name,
        "label": setup.method.label(config) + ("" if config.data.motion else ", one-frame control"),
        "recipe": config.recipe,
        "seed": config.seed,
        "source": list(config.data.source),
        "target": list(config.data.target),
        "classes": list(setup.store.manifest.classes),
        "chance": round(100 / len(setup.store.manifest.classes), 4),
        "steps": config.train.stage1.steps + config.train.stage2.steps,
        "seconds": round(seconds, 1),
        "clips_per_s": round(trained.clips_per_s, 2),
        "world_size": world.size,
        "evaluations": evaluations,
    }
    for side in ("target", "source"):
        named = evaluations.get(f"{side}/test")
        if named is None:
            continue
        result[f"{side}_top1"], result[f"{side}_segments"] = named["top1"], named["segments"]
        if world.rank == 0 and config.eval.checkpoints:
            found = _named_top1(config, f"{side}/test")
            result["checkpoints"] = list(found)
            result[f"{side}_top1"] = round(float(np.mean(list(found.values()))), 4)
            result[f"{side}_top1_std"] = round(float(np.std(list(found.values()))), 4)
    return result


def _named_top1(config: Config, name: str) -> dict[int, float]:
    """Top-1 of a set at the steps of `eval.checkpoints`, from the log, which outlives a restart."""
    rows = [row for row in read_metrics(config.run.dir) if row["kind"] == "eval" and row["stage"] == 2]
    return {row["step"]: row["top1"] for row in rows if row["set"] == name and row["step"] in config.eval.checkpoints}
