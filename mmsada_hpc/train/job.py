"""What every rank of a job runs, whoever started it: submitit's pickle, a plain script's srun, mpiexec or torchrun.

`python -m mmsada_hpc.train.job RUN/config.yaml`
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsada_hpc.errors import UserError
from mmsada_hpc.train.stop import StopFlag, Stopped

# Slurm ends a requeued job at once, and kills what is left after KillWait (30 s as it comes).
_ENDED_WITHIN_S = 120.0


def run_job(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, or go on with, the run of a config; told to stop, save and do what the cluster wants (law 6).

    Args:
        path: YAML of the run.
        overrides: `key=value`, over the YAML.

    Returns:
        The content of result.json.

    Raises:
        UserError: a wrong setting or input.
        Stopped: told to stop; saved, and not to be run again by itself.
        SystemExit: told to stop, and queued again: Slurm is about to end this process.
    """
    with StopFlag().listening() as stop:  # before torch is loaded, as a signal may come at any time
        from mmsada_hpc.cluster.code import check_code
        from mmsada_hpc.config import load_config
        from mmsada_hpc.train.run import train

        check_code()
        config = load_config(path, overrides)
        try:
            return train(config, stop=stop)
        except Stopped as stopped:
            _end_or_requeue(stopped, stop, config.run.dir)
            raise


def _end_or_requeue(stopped: Stopped, stop: StopFlag, run_dir: Path) -> None:
    """Returns where the job is not to be run again; otherwise waits for Slurm to end this rank.

    Rank 0 decides for all, so that nobody leaves while the others still wait.
    """
    from mmsada_hpc.cluster.host import end_process
    from mmsada_hpc.cluster.join import say_to_all
    from mmsada_hpc.cluster.requeue import decide, wait_to_be_ended
    from mmsada_hpc.cluster.world import find_world

    is_main = find_world().rank == 0
    decision = say_to_all(decide(run_dir, by_person=stopped.number is signal.SIGINT) if is_main else None)
    if is_main:
        print(f"{stopped}\n{decision.why}", file=sys.stderr, flush=True)
    if not decision.requeue:
        return
    told_before = stop.counts[signal.SIGTERM]
    if is_main:
        _requeue(stopped, stop)
    wait_to_be_ended(lambda: stop.counts[signal.SIGTERM] > told_before, patience_s=_ENDED_WITHIN_S)
    end_process(1)  # not 0, which could count as the job's end; and no clean-up, which could wait for other ranks


def _requeue(stopped: Stopped, stop: StopFlag) -> None:
    from submitit.core.utils import UncompletedJobError

    from mmsada_hpc.cluster.requeue import requeue
    from mmsada_hpc.cluster.squeue import SlurmSilentError

    former = stop.former_handler(signal.SIGUSR2)
    try:
        # A time limit is submitit's to count; a preemption (SIGTERM) is not one, whenever it comes.
        requeue(
            None if former is None or stopped.number is not signal.SIGUSR2 else lambda: former(signal.SIGUSR2, None)
        )
    except (SlurmSilentError, UncompletedJobError) as error:
        raise UserError(f"Slurm did not requeue the job ({error}); `submit.py resume` goes on from there") from None


def main(argv: Sequence[str] | None = None) -> int:
    """A user's mistake is one line and exit code 2; a stop has the exit code of its signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print("usage: python -m mmsada_hpc.train.job CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    try:
        run_job(Path(words[0]), words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
