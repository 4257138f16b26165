"""Slurm's clients as small scripts, for what lies between a person and sbatch; the real ones are in tests/cluster."""

from dataclasses import dataclass
from pathlib import Path

import pytest

SBATCH = """#!/bin/bash
id=$(( 100 + $(ls {folder}/given | wc -l) ))
cp "$1" {folder}/given/$id
echo Submitted batch job $id
"""
SQUEUE = """#!/bin/bash
cat {folder}/squeue.txt
"""


@dataclass(frozen=True)
class FakeSlurm:
    """What sbatch was given, and what squeue is to say."""

    folder: Path

    @property
    def scripts(self) -> dict[str, str]:
        """Job id -> the script that sbatch got."""
        return {path.name: path.read_text() for path in sorted((self.folder / "given").iterdir())}

    def say(self, **states: str) -> None:
        """States by `job<id>`; ids that are left out are forgotten."""
        lines = [f"{job.removeprefix('job')}|{state}||None" for job, state in states.items()]
        (self.folder / "squeue.txt").write_text("\n".join([*lines, ""]))

    def refuse(self, why: str) -> None:
        """From now on sbatch fails."""
        (self.folder / "bin/sbatch").write_text(f'#!/bin/bash\necho "{why}" >&2\nexit 1\n')


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put sbatch, srun and squeue in front of the PATH; every job is unknown to squeue at first."""
    (folder / "bin").mkdir(parents=True)
    (folder / "given").mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "srun": "#!/bin/bash\nexit 1\n"}.items():
        (folder / "bin" / name).write_text(text.format(folder=folder))
        (folder / "bin" / name).chmod(0o755)
    fake = FakeSlurm(folder)
    fake.say()
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")
    return fake
