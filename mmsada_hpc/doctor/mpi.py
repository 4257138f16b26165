"""MPI: mpi4py and the mpiexec that is found belong together when two processes add up a number."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mmsada_hpc.doctor.report import Ask, Line

# Processes of one world print once, through their rank 0; in one write, as mpiexec mixes what several print.
_SUM = """
import os
from mpi4py import MPI
comm = MPI.COMM_WORLD
total = comm.allreduce(comm.Get_rank() + 1)
library = " ".join(MPI.Get_library_version().split(chr(10))[0].strip(chr(0)).split())
if comm.Get_rank() == 0:
    os.write(1, f"[found {comm.Get_size()} {total} {library}]\\n".encode())
"""
_ANSWER = re.compile(r"\[found (\d+) (\d+) ([^\]]*)\]")
# What another launcher says about this process must not reach the two.
_FOREIGN = (
    "SLURM",
    "PMI",
    "PMIX",
    "MPI",
    "OMPI",
    "PRTE",
    "SUBMITIT",
    "HYDRA",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
)
_ENVIRONMENT = {
    "HYDRA_LAUNCHER": "fork",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMP_NUM_THREADS": "1",
}
_REMEDY = "on a cluster load its MPI (module load) and `pip install --no-binary mpi4py mpi4py`; elsewhere the extra mpi"


def check(ask: Ask) -> list[Line]:
    """One line."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        return [Line("mpi", "warn", "no mpiexec found: `mpiexec -n N mmsada ...` cannot be used, srun can", _REMEDY)]
    words = [str(mpiexec), "-n", "2", sys.executable, "-c", _SUM]
    try:
        patience = max(1.0, ask.patience_s - 5)
        done = subprocess.run(words, env=_environment(), capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        what = f"{mpiexec} -n 2 did not end within {patience:.0f} s"
        return [Line("mpi", "fail", what, f"is a firewall between a host and itself? {_REMEDY}")]
    return [judge(str(mpiexec), done.returncode, done.stdout, done.stderr)]


def judge(mpiexec: str, code: int, out: str, err: str) -> Line:
    """What the two processes printed."""
    answers = _ANSWER.findall(out)
    if code or not answers:
        lines = [" ".join(line.split()) for line in err.splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else f"exit code {code}")
        return Line("mpi", "fail", f"two processes of {mpiexec} failed: {why[:200]}", _REMEDY)
    size, total, library = answers[0]
    if size != "2":
        what = f"{mpiexec} started 2 processes and each saw {size}: mpi4py's MPI ({library}) is another"
        return Line("mpi", "fail", what, _REMEDY)
    if total != "3":
        return Line("mpi", "fail", f"1 + 2 is {total} over {mpiexec} ({library})", _REMEDY)
    return Line("mpi", "ok", f"two processes of {mpiexec} add up ({library})")


def find_mpiexec() -> Path | None:
    """The one beside this Python, else the first on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = shutil.which("mpiexec")
    return beside if beside.exists() else Path(found) if found else None


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)} | _ENVIRONMENT
