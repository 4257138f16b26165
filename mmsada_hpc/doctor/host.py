"""Cores: what this process may use, against what Slurm gave it (D33)."""

import os
from collections.abc import Mapping

from mmsada_hpc.cluster.host import affinity_warning, cores
from mmsada_hpc.doctor.report import Ask, Line

_EXPORT = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before srun, or srun --cpus-per-task=N; `mmsada submit` does"


def check(ask: Ask) -> list[Line]:
    """The one line of `judge`."""
    return [judge(cores(), os.environ)]


def judge(seen: int, env: Mapping[str, str]) -> Line:
    """`seen` cores in the affinity mask, under these variables."""
    is_task = "SLURM_STEP_ID" in env
    given = env.get("SLURM_CPUS_PER_TASK", "") if is_task else ""
    promised = int(given) if given.isdigit() else None
    text = f"{seen} core{'' if seen == 1 else 's'} for this process"
    if promised is not None and affinity_warning(promised, available=seen):
        text += f" but Slurm's --cpus-per-task is {promised}: decoding would starve"
        return Line("cores", "fail" if seen == 1 else "warn", text, _EXPORT)
    if promised is not None:
        text += f", Slurm gave it {promised}"
    if seen == 1:
        remedy = _EXPORT if is_task else "training wants two or more: one for the step, the others decode"
        return Line("cores", "warn", text, remedy)
    threads = env.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) < seen // 2 + 1:
        return Line(
            "cores",
            "warn",
            f"{text}, of which OMP_NUM_THREADS={threads} leaves torch {threads}",
            "unset OMP_NUM_THREADS (torchrun sets it to 1): each rank then takes its share of the cores",
        )
    return Line("cores", "ok", text)
