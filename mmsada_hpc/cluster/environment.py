"""environment.json: what the submitting shell had set, of the variables that change how a run behaves."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mmsada_hpc.observe.record import write_json

ENVIRONMENT_FILE = "environment.json"
_PREFIXES = ("SLURM", "SBATCH", "SRUN", "CUDA", "NCCL", "GLOO", "OMP", "MMSADA", "DS_", "TORCH", "PYTHON", "MKL", "KMP")
_NAMES = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOADEDMODULES", "VIRTUAL_ENV", "CONDA_PREFIX")
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|JWT", re.IGNORECASE)


def relevant_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """By name; never one whose name sounds like a secret."""
    env = os.environ if environ is None else environ
    wanted = {name: value for name, value in env.items() if name.startswith(_PREFIXES) or name in _NAMES}
    return {name: value for name, value in sorted(wanted.items()) if not _SECRET.search(name)}


def write_environment(run_dir: Path) -> None:
    """Of the newest submission."""
    write_json(run_dir / ENVIRONMENT_FILE, relevant_variables())
