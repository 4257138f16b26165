"""`submit.py bench [FLAGS] NAME [OPTIONS]`: a benchmark on every rank of a job, from a copy of the code."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmsada_hpc.cluster.profile import Profile, load_profile
from mmsada_hpc.cluster.slurm import Job, need_slurm, refuse_odd_path, sbatch_text, submit_slurm
from mmsada_hpc.cluster.snapshot import take_snapshot
from mmsada_hpc.errors import UserError
from mmsada_hpc.submit.command import add_profile_arguments, profile_flags

ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class BenchJob:
    """What submitit pickles, and every rank runs."""

    words: tuple[str, ...]
    """That follow `mmsada`."""

    def __call__(self) -> None:
        """Run the command as if it had been typed; a wrong input ends the rank with its exit code."""
        from mmsada_hpc.cli import main
        from mmsada_hpc.cluster.code import check_code

        check_code()
        sys.argv = ["mmsada", *self.words]  # as rows tell it
        if code := main(self.words):
            raise SystemExit(code)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `submit.py bench`; those of the benchmark come after its name."""
    parser.description = "Queue a benchmark of `mmsada bench` on every rank of a job."
    parser.add_argument("--cluster", default="slurm", metavar="NAME", help="profile in configs/cluster or a YAML file")
    add_profile_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for rows, output and code (default: in runs/bench)")
    parser.add_argument("--dry-run", action="store_true", help="print the script, and submit nothing")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="NAME [OPTIONS]", help="a benchmark and its options, last"
    )


def run(args: argparse.Namespace) -> int:
    """Queue it, and say where its rows will be; returns the exit status."""
    name, json_to = _checked(args.words)
    flags = {key: value for key, value in profile_flags(args).items() if value is not None}
    # A benchmark that was cut short is of no use half done: it is never requeued.
    profile = load_profile(args.cluster, flags | {"requeue": False})
    if profile.executor != "slurm":
        here = " ".join(["mpiexec -n N mmsada bench", *args.words])
        raise UserError(f"--cluster {args.cluster} is not a Slurm; here it is `{here}`")
    out: Path = (args.out or Path("runs/bench") / time.strftime(f"{name}-%Y%m%d-%H%M%S")).absolute()
    refuse_odd_path(out / "submitit")
    rows = str(out / ROWS_FILE) if json_to is None else json_to
    words = ["bench", *args.words, *(["--json", rows] if json_to is None else [])]
    job = Job(profile=profile, name=f"mmsada-bench-{name}", folder=out / "submitit")
    if args.dry_run:
        print(f"mmsada {' '.join(words)}\n\n{sbatch_text(job)}")
        return 0
    need_slurm()
    (queued,) = submit_slurm([BenchJob(tuple(words))], replace(job, code=take_snapshot(out / "code")))
    print(_told(queued.job_id, queued.stdout, rows, profile))
    return 0


def _told(job_id: str, stdout: Path, rows: str, profile: Profile) -> str:
    ranks = f"{profile.world_size} ranks on {profile.nodes} node{'s' * (profile.nodes > 1)}"
    return f"queued as job {job_id}: {ranks}\nits table: {stdout}\nits rows:  {rows}"


def _checked(words: Sequence[str]) -> tuple[str, str | None]:
    """The benchmark's name, and the file that its options name for rows, after they were read once: now rather than
    after hours in a queue.
    """
    from mmsada_hpc.bench import command

    names = [*command.BENCHES, "all"]
    if not words or words[0] not in names:
        raise UserError(f"{words[0] if words else 'no name'}: not a benchmark; one of {', '.join(names)}")
    parser = argparse.ArgumentParser(prog="mmsada bench")
    command.add_arguments(parser)
    json_to: str | None = parser.parse_args(words).json
    if json_to == "-":
        raise UserError("--json -: a job has no standard output to read; name a file")
    return words[0], json_to
