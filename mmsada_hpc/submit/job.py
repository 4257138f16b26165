"""What submitit pickles: a path and nothing else, so that a job needs no more of its submitter than its run folder."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from submitit.helpers import DelayedSubmission

from mmsada_hpc.errors import UserError


@dataclass(frozen=True)
class TrainJob:
    """What every rank of a job runs.

    Pickles name it by `mmsada_hpc.submit.job.TrainJob`, and `resume` lets an older copy of the code load them: neither
    the module nor the fields may ever change.
    """

    config: Path
    """The resolved config in the run folder."""

    def __call__(self) -> dict[str, Any]:
        """Train, or go on with, the run; returns the content of result.json."""
        from mmsada_hpc.train.job import run_job

        sys.excepthook = _show_user_error
        return run_job(self.config)

    def checkpoint(self) -> DelayedSubmission:
        """The job after a time limit or a preemption: the same, as the run goes on from its own checkpoints."""
        return DelayedSubmission(self)


def _show_user_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In a rank's log a wrong input is one line, as it is on the screen."""
    if issubclass(kind, UserError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
