"""The same command on N nodes through srun, inside an allocation or through the queue."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.doctor.network import VARIABLES
from mmsada_hpc.doctor.report import Line, fill
from mmsada_hpc.doctor.show import Findings
from mmsada_hpc.errors import UserError

_NAME = "mmsada-doctor"
_END_S = 15.0
# srun's, when --immediate has run out: for an allocation, for a step.
_QUEUE_WORDS = ("mmediate", "Connection timed out", "nodes are busy", "Unable to create step")
# Of the profile's extra sbatch options, those that srun has not, or that would take the output away.
_SBATCH_ONLY = ("requeue", "no-requeue", "output", "error", "open-mode", "signal", "array", "mail-type", "mail-user")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What srun is to do.

    Args:
        words: of `mmsada doctor`, without those about nodes.
        profile: how to ask the queue; None = inside the allocation we are in.
        wait_s: for the nodes.
        run_s: for all checks, once they are there.
    """

    nodes: int
    words: Sequence[str]
    profile: Profile | None
    wait_s: float
    run_s: float


def is_in_allocation(env: Mapping[str, str]) -> bool:
    """In a job's batch script or in salloc's shell, not in a step of srun's."""
    return "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env


def srun_words(launch: Launch) -> list[str]:
    """The command line."""
    words = ["srun", f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1"]
    words += [f"--job-name={_NAME}", "--kill-on-bad-exit=0", f"--immediate={launch.wait_s:.0f}"]
    inner = [sys.executable, "-m", "mmsada_hpc.cli", "doctor", *launch.words]
    if launch.profile is None:
        return [*words, "--overlap", *inner]
    profile = launch.profile
    words += [f"--time={max(1, round((launch.run_s + 60) / 60))}", *_asked(profile)]
    words += [*profile.container, *profile.srun_args]
    interface = [f"export {variable}={profile.interface}" for variable in VARIABLES if profile.interface]
    python = profile.python or shlex.quote(sys.executable)
    modules = [f"module load {module}" for module in profile.modules]
    script = "\n".join([*modules, *profile.setup, *interface, f"exec {python} {shlex.join(inner[1:])}"])
    return [*words, "bash", "-c", script]


def _asked(profile: Profile) -> list[str]:
    """What the profile asks Slurm for, except nodes, tasks and time: those are the doctor's own."""
    options: dict[str, str | int | float | bool | None] = {
        "cpus-per-task": profile.cpus_per_task,
        "gpus-per-node": profile.gpus_per_node or None,
        "mem": None if profile.mem_gb is None else f"{round(profile.mem_gb * 1024)}MB",
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclusive": profile.exclusive,
        "wckey": profile.wckey,
        **{key: value for key, value in profile.sbatch.items() if key not in _SBATCH_ONLY},
    }
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    return [f"--{key}{'' if value is True else f'={value}'}" for key, value in given.items()]


def run_on_nodes(launch: Launch) -> Findings:
    """Start it, wait, and read what the nodes say.

    Raises:
        UserError: no srun here.
    """
    if shutil.which("srun") is None:
        raise UserError("srun not found: this host has no Slurm; leave --nodes out to look at this host")
    bound_s = launch.wait_s + launch.run_s
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            srun_words(launch), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=bound_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        out.seek(0)
        err.seek(0)
        return read(out.read(), err.read(), code=code, launch=launch, bound_s=bound_s)


def read(out: str, err: str, *, code: int | None, launch: Launch, bound_s: float) -> Findings:
    """What the ranks printed; a failure of srun's own is a line too."""
    found = [Findings.from_json(json.loads(line)) for line in out.splitlines() if line.startswith('{"ok"')]
    hosts = {host: lines for one in found for host, lines in one.hosts.items()}
    told = together([line for one in found for line in one.between])
    if len(hosts) < launch.nodes:
        told.append(_missing(err, code, launch, hosts=len(hosts), bound_s=bound_s))
    return Findings(dict(sorted(hosts.items())) or {os.uname().nodename: []}, told)


def together(lines: Sequence[Line]) -> list[Line]:
    """What several ranks say alike, once, with the names of all."""
    alike: dict[tuple[str, str, str, str], list[Line]] = defaultdict(list)
    for line in lines:
        alike[line.name, line.level, line.what, line.remedy].append(line)
    joined = []
    for same in alike.values():
        seen = {key: [line.seen[key] for line in same] for key in same[0].seen}
        joined.append(same[0] if len(same) == 1 else replace(same[0], what=fill(same[0].what, seen), seen={}))
    return joined


def _missing(err: str, code: int | None, launch: Launch, *, hosts: int, bound_s: float) -> Line:
    said = [line for line in err.splitlines() if line.strip() and "queued and waiting" not in line]
    own = [line for line in said if not line.startswith("srun:")]
    last = " ".join((own or said)[-1].split()) if said else f"exit code {code}"
    if any(words in err for words in _QUEUE_WORDS):
        what = f"no {launch.nodes} nodes within {launch.wait_s:.0f} s ({last})"
        return Line("srun", "fail", what, "the queue is long: --wait gives it longer, --partition names another")
    if code is None:
        what = f"no end within {bound_s:.0f} s, {hosts} of {launch.nodes} nodes had answered"
        return Line("srun", "fail", what, "look at the nodes by sinfo -R; try fewer --nodes to find the one that hangs")
    what = f"{hosts} of {launch.nodes} nodes answered ({last[:200]})"
    return Line("srun", "fail", what, "does the same Python, with this package, exist on the nodes (a shared disk)?")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """srun passes the signal on to its tasks, and gives its job back."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_S)
        return
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=_END_S)
