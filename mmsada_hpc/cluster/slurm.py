"""From a profile to a script and sbatch: in submitit's words, or as a plain script that needs no submitit."""

import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths

from mmsada_hpc.cluster.code import CODE
from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.cluster.requeue import ASKED
from mmsada_hpc.cluster.squeue import SlurmSilentError, slurm
from mmsada_hpc.errors import UserError

# submitit's own, where a profile sets none.
_MAX_NUM_TIMEOUT = 3
# A controller that is busy lets sbatch wait; one that is away must not let a person wait for ever.
_SBATCH_S = 120.0


# Before anything is loaded, every node must see the run folder: submitit would look for its pickle for a minute, and
# then say only where it looked.
_SHARED = (
    'srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 bash -c \\',
    f'  \'[ -e "${CODE}" ] || {{ echo "error: $SLURMD_NODENAME does not see ${CODE}: the run folder must be on a file '
    "system that all nodes share\" >&2; exit 1; }' || exit 1",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the script of a job is made from."""

    profile: Profile
    name: str
    folder: Path
    """For scripts, submitit's pickles and each rank's output; on a file system that the nodes share."""
    code: Path | None = None
    """The snapshot to import every package from; None = what is installed for the Python that runs."""
    tasks: int | None = None
    """Tasks of an array; None = one job."""
    parallel: int = 256
    """Tasks of an array that may run at once."""


@dataclass(frozen=True)
class Queued:
    """A job, or a task of an array, that sbatch took."""

    job_id: str
    stdout: Path
    """What rank 0 prints."""
    stderr: Path


def sbatch_options(job: Job) -> dict[str, Any]:
    """The profile in the words of submitit's Slurm executor."""
    profile = job.profile
    srun_args = ["--kill-on-bad-exit=1", *profile.container, *profile.srun_args]
    if profile.cpus_per_task is not None:
        # Since Slurm 22.05 srun no longer takes it from sbatch: without these a rank would get one core.
        srun_args = [f"--cpus-per-task={profile.cpus_per_task}", *srun_args]
    return {
        "job_name": job.name,
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
        "dependency": profile.dependency,
        "exclusive": True if profile.exclusive else None,
        "wckey": profile.wckey,
        "signal_delay_s": profile.signal_delay_s,
        "setup": _setup(job) or None,
        "srun_args": srun_args,
        "additional_parameters": {"requeue" if profile.requeue else "no-requeue": True}
        | {key: value for key, value in profile.sbatch.items() if value is not False},
        "array_parallelism": job.parallel,
    }


def _setup(job: Job) -> list[str]:
    """Shell lines before srun; the snapshot comes last, as a set-up line may change PYTHONPATH."""
    # sbatch passes on what it is called from: a task of an array would give its own ids to a job it submits.
    profile, lines = job.profile, [] if job.tasks else ["unset ${!SLURM_ARRAY_@}"]
    lines.append(f"export {ASKED}={int(profile.requeue)}")
    if profile.cpus_per_task is not None:
        lines.append(f"export SRUN_CPUS_PER_TASK={profile.cpus_per_task}")
    lines += [f"module load {module}" for module in profile.modules]
    lines += profile.setup
    if profile.interface is not None:
        lines += [f"export {variable}={profile.interface}" for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")]
    if job.code is not None:
        folder = shlex.quote(str(job.code))
        # `python -m` would look into the working folder first, which may be the checkout.
        lines += [
            "export PYTHONSAFEPATH=1",
            f"export {CODE}={folder}",
            f"export PYTHONPATH=${CODE}${{PYTHONPATH:+:$PYTHONPATH}}",
            *_SHARED,
        ]
    return lines


def sbatch_text(job: Job) -> str:
    """The script that `submit_slurm` hands to sbatch; needs no Slurm."""
    return _text(job, f"{_python(job)} -u -m submitit.core._submit {shlex.quote(str(job.folder))}")


def plain_text(job: Job, words: Sequence[str], *, before: Sequence[str] = ()) -> str:
    """A script for sbatch that starts `python WORDS` on every rank, with no submitit and no pickle.

    Args:
        before: shell lines that run once, on the first node.
    """
    text = _text(job, f"{_python(job)} -u {shlex.join(words)}")
    return text.replace("# command\nexport SUBMITIT_EXECUTOR=slurm\n", "\n".join([*before, "", "# command", ""]))


def submit_slurm(functions: Sequence[Callable[[], Any]], job: Job) -> list[Queued]:
    """Queue picklable functions, each on every rank of a job: one as a job, more as the tasks of one array.

    Raises:
        UserError: no Slurm on this host, or sbatch refused; says why.
    """
    need_slurm()
    job = replace(job, tasks=len(functions) if len(functions) > 1 else None)
    refuse_odd_path(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    pickles = [_pickle(function, job) for function in functions]
    script = job.folder / f".submission_file_{uuid.uuid4().hex}.sh"
    script.write_text(sbatch_text(job))
    script.chmod(0o600)  # set-up lines may hold keys
    try:
        job_id = _sbatch(script)
    except UserError:
        for path in (script, *pickles):
            path.unlink(missing_ok=True)
        raise
    script.rename(JobPaths(job.folder, job_id).submission_file)
    queued = []
    for index, pickle in enumerate(pickles):
        paths = JobPaths(job.folder, job_id if job.tasks is None else f"{job_id}_{index}")
        pickle.rename(paths.submitted_pickle)  # the job waits a minute for it
        queued.append(Queued(str(paths.job_id), paths.stdout, paths.stderr))
    return queued


def refuse_odd_path(folder: Path) -> None:
    """UserError where Slurm (% and backslash) or PYTHONPATH (:) would read a path as something else."""
    for sign in "%\\:\n":
        if sign in str(folder):
            raise UserError(f"run.dir={folder.parent}: {sign!r} in a path means something to Slurm; choose another")


def need_slurm() -> None:
    """UserError on a host without Slurm."""
    missing = [command for command in ("sbatch", "srun") if shutil.which(command) is None]
    if missing:
        raise UserError(
            f"{missing[0]} not found: this host has no Slurm; submit from a login node, or run here with"
            " --cluster local (--dry-run shows the script anywhere)"
        )


def _pickle(function: Callable[[], Any], job: Job) -> Path:
    path: Path = job.folder / f"{uuid.uuid4().hex}.pkl"
    submission, profile = DelayedSubmission(function), job.profile
    limit = _MAX_NUM_TIMEOUT if profile.max_num_timeout is None else profile.max_num_timeout
    submission.set_timeout(profile.minutes, limit)
    submission.dump(path)
    return path


def _sbatch(script: Path) -> str:
    try:
        said = slurm("sbatch", str(script), patience_s=_SBATCH_S)
    except SlurmSilentError as error:
        raise UserError(f"sbatch refused the job: {str(error).removeprefix('sbatch: ')}") from error
    match = re.search(r"job (\d+)", said)
    if match is None:
        raise UserError(f"sbatch did not say which job it queued: {' '.join(said.split())!r}")
    return match[1]


def _python(job: Job) -> str:
    return job.profile.python or shlex.quote(sys.executable)


def _text(job: Job, command: str) -> str:
    executor = _AnywhereExecutor(job.folder, python=job.profile.python)
    executor.update_parameters(**sbatch_options(job))
    if job.tasks is not None:
        executor.parameters["map_count"] = job.tasks
    return executor._make_submission_file_text(command, "")


class _AnywhereExecutor(submitit.SlurmExecutor):
    """Writes scripts on a host without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2
