"""One start of one run on one rank: come together, train, score, write the result."""

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from mmsada_hpc.cluster.claim import claim, holds_claim
from mmsada_hpc.cluster.code import code_hash
from mmsada_hpc.cluster.host import affinity_warning, keep_freed_memory, set_threads
from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.cluster.join import agree, gather, join, leave, say_to_all
from mmsada_hpc.cluster.requeue import slurm_job_id, slurm_start_id
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.config import Config, config_hash, dump_config
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.data.store import Store, sha256_file
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.pretrained import open_pretrained
from mmsada_hpc.observe.goodput import Ledger, read_goodput
from mmsada_hpc.observe.metrics import METRICS_FILE, MetricsLog, plain, read_metrics
from mmsada_hpc.observe.record import write_json, write_record
from mmsada_hpc.observe.screen import Screen, quiet_screen
from mmsada_hpc.observe.summary import result_table
from mmsada_hpc.schedule import describe_stage, stage_schedule, total_steps
from mmsada_hpc.train.checkpoint import Checkpoints, Position, TrainState
from mmsada_hpc.train.engine import gradient_dtype
from mmsada_hpc.train.evaluate import score_set
from mmsada_hpc.train.loop import Trained, TrainLoop, last_position
from mmsada_hpc.train.optimizers import NAMES
from mmsada_hpc.train.setup import Setup
from mmsada_hpc.train.stop import Interrupted, StopFlag, Stopped
from mmsada_hpc.train.watch import Watch, watching

RESULT = "result.json"


def train(config: Config, *, stop: StopFlag | None = None) -> dict[str, Any]:
    """Train, or go on with, the run in `config.run.dir`; returns what result.json holds.

    Args:
        stop: a flag that listens already; None = listen for the time of this call.

    Raises:
        UserError: a wrong setting or input.
        Stopped: told to stop; saved.
        LostRankError: another rank is gone.
    """
    if stop is None:
        with StopFlag().listening() as own:
            return train(config, stop=own)
    _refuse_cancelled(config)
    world = find_world()
    device = Setup(config, _open_store(config), world).checked().device
    with quiet_screen(config.run.dir, world.rank) as screen:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(minutes=config.watch.start_minutes)
        world = join(world, backend=backend, timeout=patience, alarm=screen.alarm)
        result = train_in_world(config, world, screen, stop)
        leave()
        return result


def train_in_world(
    config: Config, world: World, screen: Screen, stop: StopFlag, *, make_loop: Callable[..., TrainLoop] = TrainLoop
) -> dict[str, Any]:
    """`train` where the ranks have come together already; `make_loop` is for whoever times the loop from inside."""
    setup = Setup(config, _open_store(config), world).checked()
    keep_freed_memory()
    threads = set_threads(world.local_size, cpus_per_task=world.cpus_per_task)
    agree(world, config_hash(config), what="the config")
    agree(world, sha256_file(setup.store.path / MANIFEST), what="the store (store.json)")
    agree(world, code_hash(), what="the code of mmsada_hpc and mmsada_kernels")
    start = claim(config.run.dir, world, start=slurm_start_id())
    with watching(config, world, screen, start=start) as watch:
        _announce(screen, setup, threads)
        return _train(setup, screen, stop, watch, make_loop)


def _train(
    setup: Setup, screen: Screen, stop: StopFlag, watch: Watch, make_loop: Callable[..., TrainLoop]
) -> dict[str, Any]:
    config, is_main, start = setup.config, setup.world.rank == 0, watch.heart.now.start
    checkpoints = Checkpoints(
        config.run.dir,
        keep=config.checkpoint.keep,
        named=config.eval.checkpoints,
        config_hash=config_hash(config),
        warn=screen.print,
        background=config.checkpoint.background,
        owner=holds_claim(config.run.dir, start),
    )
    finished = say_to_all((_finished_result(config) or {}) if is_main else None)
    state = _load(setup, checkpoints)
    if finished and state.position == last_position(config):
        screen.print(f"{config.run.dir} is finished already; `mmsada report {config.run.dir}` shows it")
        return finished
    if state.model:
        screen.print(f"going on from step {state.position.step} of stage {state.position.stage}")
    hosts = gather(setup.world, setup.world.host)
    if is_main:
        write_atomically(config.run.dir / "config.yaml", dump_config(config).encode())
        _write_start(setup, start)
    with (
        contextlib.closing(checkpoints),
        MetricsLog(config.run.dir, tensorboard=config.observe.tensorboard, enabled=is_main) as metrics,
        Ledger(
            config.run.dir,
            start=start,
            world_size=setup.world.size,
            hosts=hosts,
            enabled=is_main,
            begun=psutil.Process().create_time(),
            flush_seconds=3 * config.watch.heartbeat_seconds,
        ) as ledger,
    ):
        ledger.lost(_drop_later_rows(metrics, config, state))
        loop = make_loop(
            setup, screen=screen, metrics=metrics, ledger=ledger, checkpoints=checkpoints, stop=stop, watch=watch
        )
        try:
            result = _train_and_score(setup, loop, state)
        except Stopped:
            ledger.close("stopped")
            raise
        checkpoints.wait()
        ledger.close("finished")
    result["seconds"] = say_to_all(_seconds_in_all(config.run.dir) if is_main else None)
    if is_main:
        write_json(config.run.dir / RESULT, plain(result))
    screen.print("\n" + result_table(result))
    return result


def _train_and_score(setup: Setup, loop: TrainLoop, state: TrainState) -> dict[str, Any]:
    config = setup.config
    try:
        if config.observe.features and not state.model:
            _store_features(setup, loop, state, "before")
        trained = loop.run(state)
        with loop.ledger.spend("evaluate"):
            evaluations = {name: loop.score(trained.engine, name, last_position(config)) for name in config.eval.sets}
            if config.observe.features:
                _store_features(setup, loop, None, "after", trained)
    except Interrupted as interrupted:
        loop.checkpoints.close()
        raise Stopped("in an evaluation", interrupted.number) from None
    trained.engine.close()
    return _result(setup, trained, evaluations)


def _load(setup: Setup, checkpoints: Checkpoints) -> TrainState:
    """The newest whole checkpoint, chosen by rank 0 for all; the start of the run where there is none."""
    found = checkpoints.newest_whole() if setup.world.rank == 0 else None
    own_name = "" if found is None else found.path.name
    name = say_to_all(own_name if setup.world.rank == 0 else None)
    if not name:
        return TrainState(Position(), {}, {})
    return checkpoints.load(checkpoints.folder / name) if found is None else found.state


def _drop_later_rows(metrics: MetricsLog, config: Config, state: TrainState) -> list[dict[str, Any]]:
    """Take the rows out of the log that are about to be made again; returns them."""
    if not state.model:
        return metrics.truncate_after(-1)
    before = stage_schedule(config.train, 1).steps if state.position.stage == 2 else 0
    return metrics.truncate_after(before + state.position.step, evaluations_too=state.position == last_position(config))


def _write_start(setup: Setup, start: str) -> None:
    extra = {
        "start": start,
        "device": str(setup.device),
        "world_size": setup.world.size,
        "batch": setup.layout.describe(),
        "code": code_hash(),
    }
    write_record(setup.config.run.dir, extra=extra)


def _refuse_cancelled(config: Config) -> None:
    """A job that was queued before a person cancelled the run must not begin it again."""
    job = slurm_job_id()
    if job is not None and (config.run.dir / CANCELLED_FILE).exists():
        raise UserError(
            f"{config.run.dir} was cancelled, so job {job} does nothing; `submit.py resume {config.run.dir}` goes on"
        )


def _seconds_in_all(run_dir: Path) -> float:
    """Of every start, without the waiting between them."""
    spent = read_goodput(run_dir)
    return 0.0 if spent is None else round(spent.total_s - spent.restart_s, 1)


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
    screen.print(f"{NAMES[config.train.optimizer]}{', Nesterov' * config.train.nesterov}")
    for stage in (1, 2):
        screen.print(f"stage {stage}: {describe_stage(config.train, stage)}")
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
    sides = ("source", "target")
    parts = [score_set(setup, engine, f"{side}/test", loop.screen, check=loop.leave_if_told) for side in sides]
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


def _result(setup: Setup, trained: Trained, evaluations: dict[str, dict[str, Any]]) -> dict[str, Any]:
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
        "steps": total_steps(config.train),
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
