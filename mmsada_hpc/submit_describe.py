"""What a dry run prints: the config, the numbers that follow from it and from the cluster, the script."""

from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.cluster.slurm import plain_text, sbatch_text
from mmsada_hpc.config import Config, dump_config
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.submit_queue import Order, folder_of, job_of, note_job, script_words

# Stands for what only the snapshot's content gives.
HASH = "HASH"


def describe(config: Config, order: Order, layout: BatchLayout, *, plain: bool) -> str:
    """All of it.

    Args:
        config: resolved.
        plain: of a script for plain sbatch.
    """
    profile = order.profile
    lines = ["# config", dump_config(config).rstrip(), "", "# job", *_job(profile, layout), ""]
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
    job = job_of(config, order.profile, code=order.code or config.run.dir / "code" / HASH)
    if plain:
        return plain_text(job, script_words(config), before=note_job(config.run.dir))
    return sbatch_text(job)


def _job(profile: Profile, layout: BatchLayout) -> list[str]:
    where = f"{profile.nodes} x {profile.tasks_per_node} (nodes x tasks per node)"
    return [
        f"world size     {layout.world_size} = {where}",
        f"micro batch    {layout.micro_batch} clips a rank",
        f"accumulation   {layout.accumulation} micro-batches an update",
        f"global batch   {layout.global_batch} clips an update, {layout.layout}, batch norm over {layout.group_size}",
        f"time limit     {profile.minutes} minutes",
    ]
