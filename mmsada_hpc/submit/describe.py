"""What a dry run prints: the config, the numbers that follow from it and from the cluster, the script."""

from mmsada_hpc.cluster.local import visible_gpus
from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.cluster.slurm import plain_text, sbatch_text
from mmsada_hpc.cluster.snapshot import snapshot_name
from mmsada_hpc.config import Config, dump_config
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.observe.record import read_json
from mmsada_hpc.observe.wording import duration
from mmsada_hpc.schedule import describe_stage, total_steps
from mmsada_hpc.submit.estimate import Ramp, cost_of, former_speed, memory_of, ramp_of
from mmsada_hpc.submit.queue import Order, folder_of, job_of, note_job, script_words
from mmsada_hpc.train.optimizers import NAMES

_CLASSES = 8  # EPIC's verbs, where there is no store to ask


def describe(config: Config, order: Order, layout: BatchLayout, *, plain: bool) -> str:
    """All of it.

    Args:
        config: resolved.
        plain: of a script for plain sbatch.
    """
    profile = order.profile
    lines = ["# config", dump_config(config).rstrip(), "", "# job", *_job(order, layout), ""]
    lines += ["# training", *_training(config, layout), "", "# estimate", *_estimate(config, profile, layout), ""]
    if profile.executor == "slurm":
        lines += ["# sbatch script", script_text(config, order, plain=plain).rstrip()]
    else:
        lines += [
            f"# no script: {profile.executor} starts {layout.world_size} processes on this host, logs in "
            f"{folder_of(config.run.dir)}"
        ]
    return "\n".join(lines)


def script_text(config: Config, order: Order, *, plain: bool) -> str:
    """What sbatch would get, the hash of the snapshot apart."""
    job = job_of(config, order.profile, code=order.code or config.run.dir / "code" / snapshot_name())
    if plain:
        return plain_text(job, script_words(config), before=note_job(config.run.dir))
    return sbatch_text(job)


def _job(order: Order, layout: BatchLayout) -> list[str]:
    profile = order.profile
    where = f"{profile.nodes} x {profile.tasks_per_node} (nodes x tasks per node)"
    chain = f" x {order.chain} jobs, one after another" if order.chain > 1 else ""
    return [
        f"world size     {layout.world_size} = {where}",
        f"micro batch    {layout.micro_batch} clips a rank",
        f"accumulation   {layout.accumulation} micro-batches an update",
        f"global batch   {layout.global_batch} clips an update, {layout.layout}, batch norm over {layout.group_size}",
        f"time limit     {profile.minutes} minutes{chain}",
    ]


def _training(config: Config, layout: BatchLayout) -> list[str]:
    train, batch = config.train, layout.global_batch
    total = total_steps(train)
    ramp = ramp_of(config, num_classes=_num_classes(config)[0])
    return [
        *(f"stage {stage}        {describe_stage(train, stage)}" for stage in (1, 2)),
        f"in all         {total:,} updates, {total * batch:,} clips, {NAMES[train.optimizer]}",
        f"GRL ramp       {_ramp(ramp, batch, config.method.name)}",
    ]


def _ramp(ramp: Ramp | None, batch: int, method: str) -> str:
    if ramp is None:
        return f"none: {method} reverses no gradient"
    reached = ", ".join(f"{part} % at {step * batch:,}" for part, step in ramp.updates.items())
    return f"to {ramp.last:.3g} over stage 2; {reached} clips of it"


def _estimate(config: Config, profile: Profile, layout: BatchLayout) -> list[str]:
    num_classes, origin = _num_classes(config)
    cost = cost_of(config, num_classes=num_classes)
    memory = memory_of(config, cost, layout)
    clips = total_steps(config.train) * layout.global_batch
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "momentum and squares" if config.train.optimizer in ("lamb", "adamw") else "momentum": memory.momentum,
        f"activations of {layout.micro_batch} clips": memory.activations,
    }
    listed = " + ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return [
        f"parameters     {cost.parameters / 1e6:.2f} M{origin}",
        f"compute        {cost.flops / 1e9:.3g} GFLOP a clip, forward and backward; {cost.flops * clips:.3g} FLOP in "
        f"training",
        f"memory         {_bytes(memory.total)} a rank = {listed}",
        f"time           {_time(config, profile, layout, clips)}",
        "               counted on the networks without data; libraries, workspaces and the loader come on top",
    ]


def _time(config: Config, profile: Profile, layout: BatchLayout, clips: int) -> str:
    has_gpus = bool(profile.gpus_per_node) if profile.executor == "slurm" else bool(visible_gpus())
    device = "cpu" if config.train.device == "cpu" or not has_gpus else "cuda"
    speed = former_speed(config, layout, device=device)
    if speed is None:
        return f"not known: no finished run of this shape on {layout.world_size} ranks ({device}) in runs/"
    runs = f"{speed.runs} finished run{'s' * (speed.runs > 1)} of this shape"
    return (
        f"{duration(clips / speed.clips_per_s)} of training at {speed.clips_per_s:.1f} clips/s, the median of {runs} "
        f"({speed.example}), if the hosts are alike"
    )


def _num_classes(config: Config) -> tuple[int, str]:
    """And what to say of it."""
    store = config.data.store
    classes = read_json(store / MANIFEST).get("classes") if store is not None else None
    return (len(classes), "") if classes else (_CLASSES, f" with {_CLASSES} classes, as there is no store to ask")


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
