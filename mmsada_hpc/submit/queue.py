"""Hand runs to Slurm: the run folder is made ready, the code copied, the job queued and written down."""

import contextlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from submitit.core.utils import JobPaths

from mmsada_hpc.cluster.environment import write_environment
from mmsada_hpc.cluster.job_record import CANCELLED_FILE, JOBS_FILE, JobRecord, add_job
from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.cluster.queue import active_jobs, only_submitter
from mmsada_hpc.cluster.slurm import Job, Queued, need_slurm, plain_text, submit_slurm
from mmsada_hpc.cluster.snapshot import take_snapshot
from mmsada_hpc.cluster.squeue import Entry
from mmsada_hpc.config import Config
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.submit.job import TrainJob
from mmsada_hpc.submit.run_folder import (
    CONFIG_FILE,
    is_cancelled,
    is_finished,
    refuse_other_run,
    renew_config,
    write_config,
)

# Folders that other hosts do not see, or that are emptied at the next boot.
_LOCAL_TYPES = {"tmpfs", "ramfs", "overlay", "devtmpfs"}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a person asked for, the same for every run of a grid."""

    profile: Profile
    code: Path | None = None
    """An earlier snapshot to use; None = take one."""
    chain: int = 1
    """Jobs that follow each other."""
    parallel: int = 256
    """Tasks of an array at once."""
    resume: bool = False
    """The run is there already, perhaps cancelled: its config stays as it is, the number of ranks apart."""


def folder_of(run_dir: Path) -> Path:
    """For a job's script, pickles and output."""
    return run_dir / "submitit"


def job_of(config: Config, profile: Profile, *, code: Path | None) -> Job:
    """What the script of one run is made from."""
    run_dir = config.run.dir
    return Job(profile=profile, name=f"mmsada-{run_dir.name}", folder=folder_of(run_dir), code=code)


def queue_run(config: Config, order: Order) -> list[Queued]:
    """Queue one run, as one job or as the links of a chain; none where it is finished already.

    Args:
        config: resolved.

    Raises:
        UserError: the run is in the queue already, was cancelled, or the folder holds another one; Slurm refuses.
    """
    need_slurm()
    run_dir = config.run.dir
    with only_submitter([run_dir]):
        if (obstacle := obstacles([config], resume=order.resume)[0]) is not None:
            if obstacle.is_finished:
                return []
            raise UserError(obstacle.why)
        code = order.code or take_snapshot(run_dir / "code")
        make_ready(config, order)
        with _uncancelled(run_dir):
            return _queue_links(config, order, code)


def _queue_links(config: Config, order: Order, code: Path) -> list[Queued]:
    queued: list[Queued] = []
    for _ in range(order.chain):
        profile = order.profile
        if queued:
            first = [profile.dependency] if profile.dependency else []
            # after the link before, however it ended: the last one to be needed finds the run finished
            profile = profile.model_copy(update={"dependency": ",".join([*first, f"afterany:{queued[-1].job_id}"])})
        (link,) = submit_slurm([TrainJob(config.run.dir / CONFIG_FILE)], job_of(config, profile, code=code))
        # A link does not requeue itself; a later resume of the run, as one job, does.
        usual = order.profile if order.chain == 1 else order.profile.model_copy(update={"requeue": True})
        add_job(config.run.dir, _record(link, usual, code=code, run_dir=config.run.dir))
        queued.append(link)
    return queued


def queue_array(configs: Sequence[Config], order: Order, *, name: str, folder: Path) -> list[Queued]:
    """Queue runs as the tasks of one array; the folders are held by the caller, who has looked for what forbids it.

    Args:
        folder: of the grid, which holds the one snapshot and the logs.
    """
    code = order.code or take_snapshot(folder / "code")
    for config in configs:
        make_ready(config, order)
    job = Job(profile=order.profile, name=name, folder=folder_of(folder), code=code, parallel=order.parallel)
    queued = submit_slurm([TrainJob(config.run.dir / CONFIG_FILE) for config in configs], job)
    for config, task in zip(configs, queued, strict=True):
        add_job(config.run.dir, _record(task, order.profile, code=code, run_dir=config.run.dir))
    return queued


@dataclass(frozen=True)
class Obstacle:
    """Why a run is not to be queued."""

    why: str
    is_finished: bool = False
    """There is nothing wrong then."""


def obstacles(configs: Sequence[Config], *, resume: bool = False) -> list[Obstacle | None]:
    """Of each run what forbids to queue it; the folders are held by the caller. Slurm is asked once.

    Args:
        resume: a cancelled run may go on.

    Raises:
        UserError: a folder holds a run with other settings, or Slurm does not answer.
    """
    active = active_jobs(config.run.dir for config in configs)
    return [_obstacle(config, active.get(config.run.dir), resume=resume) for config in configs]


def _obstacle(config: Config, job: Entry | None, *, resume: bool) -> Obstacle | None:
    run_dir = config.run.dir
    refuse_other_run(config)
    if is_finished(run_dir):
        return Obstacle(f"{run_dir} is finished already; `mmsada report {run_dir}` shows it", is_finished=True)
    if job is not None:
        return Obstacle(
            f"{run_dir} has job {job.job_id} ({job.state}) already; `submit.py cancel {run_dir}` before another one"
        )
    if is_cancelled(run_dir) and not resume:
        return Obstacle(f"{run_dir} was cancelled; `submit.py resume {run_dir}` goes on")
    return None


def write_script(config: Config, order: Order, file: Path) -> None:
    """Write a script that plain `sbatch FILE` runs, and make the run folder ready for it.

    The job writes itself down when it begins, so that status, logs and cancel know it.

    Raises:
        UserError: as `queue_run`; the file cannot be written.
    """
    run_dir = config.run.dir
    with only_submitter([run_dir]):
        if (obstacle := obstacles([config])[0]) is not None:
            raise UserError(obstacle.why)
        code = order.code or take_snapshot(run_dir / "code")
        make_ready(config, order)
        job = job_of(config, order.profile, code=code)
        job.folder.mkdir(exist_ok=True)
        paths = JobPaths(job.folder, "%j")
        record = _record(Queued("%j", paths.stdout, paths.stderr), order.profile, code=code, run_dir=run_dir)
        write_atomically(_template(run_dir), (json.dumps(asdict(record)) + "\n").encode())
        text = plain_text(job, script_words(config), before=note_job(run_dir))
        try:
            write_atomically(file, text.encode())
        except OSError as error:
            raise UserError(f"--write-script {file}: {error.strerror}") from None


def script_words(config: Config) -> list[str]:
    """What the ranks of a plain script run."""
    return ["-m", "mmsada_hpc.train.job", str(config.run.dir / CONFIG_FILE)]


def note_job(run_dir: Path) -> list[str]:
    """Shell lines that add the job to jobs.jsonl, at its first start."""
    note = f"sed s/%j/$SLURM_JOB_ID/g {shlex.quote(str(_template(run_dir)))} >> {shlex.quote(str(run_dir / JOBS_FILE))}"
    return ["# for status, logs and cancel", f'[ "${{SLURM_RESTART_COUNT:-0}}" != 0 ] || {note}']


def _template(run_dir: Path) -> Path:
    """A line for jobs.jsonl, the job's id left open."""
    return folder_of(run_dir) / "script_job.json"


def storage_warning(run_dir: Path) -> str | None:
    """One line where the run folder looks as if other hosts did not see it, else None."""
    folder = run_dir.absolute()
    temporary = next((t for t in (Path("/tmp"), Path(tempfile.gettempdir())) if folder.is_relative_to(t)), None)
    kind = _file_system(folder)
    if temporary is None and kind not in _LOCAL_TYPES:
        return None
    where = f"in {temporary}" if temporary else f"on {kind}"
    return f"run.dir={run_dir} lies {where}, which other hosts may not see: choose a folder that all nodes share"


def _file_system(folder: Path) -> str:
    """Type of the file system that a folder, which may not be there yet, would lie on."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    mounts = [p for p in psutil.disk_partitions(all=True) if existing.resolve().is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else ""


def make_ready(config: Config, order: Order) -> Path:
    """Write what jobs and people read of a run before its first start; returns the config's file."""
    path = renew_config(config) if order.resume else write_config(config)
    write_environment(path.parent)
    return path


@contextlib.contextmanager
def _uncancelled(run_dir: Path) -> Iterator[None]:
    """Take a person's mark away; it comes back where nothing is queued after all."""
    mark = run_dir / CANCELLED_FILE
    said = mark.read_bytes() if mark.exists() else None
    mark.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if said is not None:
            mark.write_bytes(said)
        raise


def _record(job: Queued, profile: Profile, *, code: Path, run_dir: Path) -> JobRecord:
    return JobRecord(
        job_id=job.job_id,
        submitted=round(time.time(), 3),
        nodes=profile.nodes,
        tasks_per_node=profile.tasks_per_node,
        minutes=profile.minutes,
        stdout=str(job.stdout),
        stderr=str(job.stderr),
        code=os.path.relpath(code, run_dir),
        command=shlex.join(sys.argv),
        profile=profile.model_dump(mode="json"),
    )
