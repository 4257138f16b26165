"""From a profile to sbatch, through submitit."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.errors import UserError


def sbatch_options(profile: Profile, *, name: str) -> dict[str, Any]:
    """The profile in the words of submitit's Slurm executor."""
    srun_args = list(profile.srun_args)
    setup = list(profile.setup)
    if profile.cpus_per_task is not None:
        # Since Slurm 22.05 srun no longer takes it from sbatch: without these a rank would get one core.
        srun_args = [f"--cpus-per-task={profile.cpus_per_task}", *srun_args]
        setup = [f"export SRUN_CPUS_PER_TASK={profile.cpus_per_task}", *setup]
    if profile.interface is not None:
        setup += [f"export {variable}={profile.interface}" for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")]
    return {
        "job_name": name,
        "time": profile.minutes,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks_per_node,
        "cpus_per_task": profile.cpus_per_task,
        "gpus_per_node": profile.gpus_per_node,
        "mem": None if profile.mem_gb is None else f"{round(profile.mem_gb * 1024)}MB",
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclusive": True if profile.exclusive else None,
        "wckey": profile.wckey,
        "signal_delay_s": profile.signal_delay_s,
        "setup": setup or None,
        "srun_args": srun_args or None,
        "additional_parameters": dict(profile.sbatch) or None,
    }


def sbatch_text(profile: Profile, *, name: str, folder: Path) -> str:
    """The script that `submit_slurm` would hand to sbatch; needs no Slurm."""
    executor = _AnywhereExecutor(folder, python=profile.python)
    executor.update_parameters(**sbatch_options(profile, name=name))
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit_slurm(function: Callable[[], Any], profile: Profile, *, name: str, folder: Path) -> "submitit.Job[Any]":
    """Queue a picklable function on every rank of a job.

    Args:
        folder: for submitit's script, pickles and each rank's output; on a file system that the nodes share.

    Raises:
        UserError: no Slurm on this host, or sbatch refused; says why.
    """
    missing = [command for command in ("sbatch", "srun") if shutil.which(command) is None]
    if missing:
        raise UserError(
            f"{missing[0]} not found: this host has no Slurm; submit from a login node, or run here with"
            " --cluster local (--dry-run shows the script anywhere)"
        )
    limit = {} if profile.max_num_timeout is None else {"max_num_timeout": profile.max_num_timeout}
    executor = submitit.SlurmExecutor(folder, python=profile.python, **limit)
    executor.update_parameters(**sbatch_options(profile, name=name))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            return executor.submit(function)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from error


class _AnywhereExecutor(submitit.SlurmExecutor):
    """Writes scripts on a host without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2
