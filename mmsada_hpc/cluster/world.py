"""Who am I: the one place that reads what torchrun, mpiexec, Slurm or submitit say about rank and world size."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from mmsada_hpc.errors import UserError

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral ports (32768 and up), so that no outgoing connection holds the port drawn for a job.
_FIRST_PORT, _NUM_PORTS = 12_000, 20_000


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among `size`."""

    rank: int
    size: int
    local_rank: int
    """Rank among the processes of this host."""
    local_size: int
    """Processes on this host."""
    host: str
    launcher: str
    """torchrun, environment (RANK and WORLD_SIZE set by something else), mpiexec, submitit, slurm or alone."""
    master_addr: str | None = None
    """Host of rank 0; None = agreed in `join`."""
    master_port: int | None = None
    """Free port on that host; None = agreed in `join`."""
    cpus_per_task: int | None = None
    """Cores that Slurm gave to each process; None where nobody says."""

    @property
    def is_one_host(self) -> bool:
        """Whether every rank is on this host."""
        return self.local_size == self.size


@dataclass(frozen=True)
class _Launcher:
    """The variables in which one launcher says who we are."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str


_FIELDS = ("rank", "size", "local_rank", "local_size")
_TORCHRUN = _Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_HYDRA = _Launcher("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_OPEN_MPI = _Launcher(
    "mpiexec",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
_SUBMITIT = _Launcher(
    "submitit", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NTASKS"
)


def find_world(environ: Mapping[str, str] | None = None, *, host: str | None = None) -> World:
    """Read the environment of this process; no network, no MPI, nothing is changed.

    Args:
        environ: variables to read; None = those of the process.
        host: name of this host; None = ask the system.

    Raises:
        UserError: a partial or contradictory environment; says what was seen.
    """
    env = os.environ if environ is None else environ
    here = host or socket.gethostname()
    # torchrun says most, and is started once a node by srun or mpiexec, whose ranks are then those of the nodes.
    if "TORCHELASTIC_RUN_ID" in env:
        return _from_torchrun(env, here)
    found = _from_launcher(env, here)
    if not any(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return found or _alone(env, here)
    given = _from_torchrun(env, here)
    if found is None:
        return given
    if (given.rank, given.size) != (found.rank, found.size):
        raise UserError(
            f"RANK={given.rank} WORLD_SIZE={given.size} contradict {found.launcher}, which says rank {found.rank} of"
            f" {found.size}: unset RANK and WORLD_SIZE, or start with one launcher"
        )
    return found


def _from_launcher(env: Mapping[str, str], host: str) -> World | None:
    # mpiexec inside a Slurm job starts its proxies with srun, whose SLURM_PROCID then counts nodes: MPI goes first.
    if _HYDRA.local_rank in env:
        return _from_variables(env, _HYDRA, host)
    if _OPEN_MPI.rank in env:
        return _from_variables(env, _OPEN_MPI, host)
    if env.get("SUBMITIT_EXECUTOR") == "local":
        return _from_submitit(env, host)
    if "SLURM_JOB_ID" in env:
        return _from_slurm(env, host)
    return None


def _from_torchrun(env: Mapping[str, str], host: str) -> World:
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in env]
    if missing:
        seen = " ".join(f"{name}={env[name]}" for name in needed if name in env)
        raise UserError(f"environment has {seen} but not {', '.join(missing)}: set all of them or none")
    name = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "environment"
    return _from_variables(env, replace(_TORCHRUN, name=name), host)


def _from_variables(env: Mapping[str, str], names: _Launcher, host: str) -> World:
    seen = {name: env[name] for name in (getattr(names, f) for f in _FIELDS) if name in env}
    missing = [getattr(names, f) for f in _FIELDS[:3] if getattr(names, f) not in env]
    if missing:
        raise UserError(
            f"{names.name}: environment has {_show(seen)} but not {', '.join(missing)}: start it again whole"
        )
    rank, size, local_rank = (_whole_number(env, getattr(names, f)) for f in _FIELDS[:3])
    # Launchers other than torchrun may leave the local size out: then this rank counts itself and those below it.
    local_size = _whole_number(env, names.local_size) if names.local_size in env else local_rank + 1
    if not (rank < size and local_rank < local_size <= size):
        raise UserError(f"{names.name}: contradictory environment: {_show(seen)}")
    addr, port = _stated_master(env)
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        host=host,
        launcher=names.name,
        master_addr=addr,
        master_port=port,
    )


def _from_submitit(env: Mapping[str, str], host: str) -> World:
    world = _from_variables(env, _SUBMITIT, host)
    addr, port = _stated_master(env)
    job = env.get("SUBMITIT_LOCAL_JOB_ID", "0")
    return _with_master(world, addr or LOOPBACK, port or port_of_job(job))


def _from_slurm(env: Mapping[str, str], host: str) -> World | None:
    """A task of a Slurm step, or None in a batch script or allocation of one task, which is alone."""
    if "SLURM_STEP_ID" not in env:
        tasks = env.get("SLURM_NTASKS", "1")
        if tasks != "1":
            raise UserError(
                f"Slurm job {env['SLURM_JOB_ID']} has SLURM_NTASKS={tasks} but this process was not started by srun:"
                " put `srun` before the command, or `env -u SLURM_NTASKS` to run alone"
            )
        return None
    world = _slurm_step(env, host)
    if "PMI_SIZE" in env and env["PMI_SIZE"] != str(world.size):
        raise UserError(
            f"Slurm says {world.size} tasks but PMI_SIZE={env['PMI_SIZE']}: start with srun or mpiexec, not both"
        )
    return world


def _slurm_step(env: Mapping[str, str], host: str) -> World:
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE")
    node = _whole_number(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
    counts = expand_tasks_per_node(per_node) if per_node else []
    known = {**env, "SLURM_LOCAL_SIZE": str(counts[node])} if node < len(counts) else env
    world = _from_variables(
        known, _Launcher("slurm", "SLURM_PROCID", size_name, "SLURM_LOCALID", "SLURM_LOCAL_SIZE"), host
    )
    addr, port = _stated_master(env)
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    first = expand_nodes(nodes)[0] if nodes and not world.is_one_host else LOOPBACK
    # The same on all ranks, another one for each step and each requeue of the job.
    key = "-".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    cpus = _whole_number(env, "SLURM_CPUS_PER_TASK") if "SLURM_CPUS_PER_TASK" in env else None
    return _with_master(world, addr or first, port or port_of_job(key), cpus_per_task=cpus)


def _alone(env: Mapping[str, str], host: str) -> World:
    addr, port = _stated_master(env)
    return World(
        rank=0,
        size=1,
        local_rank=0,
        local_size=1,
        host=host,
        launcher="alone",
        master_addr=addr or LOOPBACK,
        master_port=port,
    )


def _with_master(world: World, addr: str, port: int, *, cpus_per_task: int | None = None) -> World:
    return replace(world, master_addr=addr, master_port=port, cpus_per_task=cpus_per_task)


def _stated_master(env: Mapping[str, str]) -> tuple[str | None, int | None]:
    port = _whole_number(env, "MASTER_PORT") if "MASTER_PORT" in env else None
    return env.get("MASTER_ADDR"), port


def _whole_number(env: Mapping[str, str], name: str) -> int:
    if not re.fullmatch(r"\d{1,9}", env[name]):
        raise UserError(f"{name}={env[name]!r} in the environment is not a whole number")
    return int(env[name])


def _show(seen: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in seen.items()) or "nothing"


def port_of_job(key: str) -> int:
    """A port that every rank of a job computes alike from the job's id."""
    digest = 0
    for byte in key.encode():
        digest = (digest * 131 + byte) % 2**31
    return _FIRST_PORT + digest % _NUM_PORTS


def expand_nodes(nodes: str) -> list[str]:
    """Slurm's short form of a list of hosts: `gpu[1-2,05]-ib,login` -> gpu1-ib gpu2-ib gpu05-ib login."""
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        parts = re.split(r"\[([^\]]*)\]", item)
        choices = [_expand_ranges(part) if i % 2 else [part] for i, part in enumerate(parts)]
        hosts += ["".join(choice) for choice in product(*choices)]
    return hosts


def _expand_ranges(ranges: str) -> list[str]:
    numbers: list[str] = []
    for item in ranges.split(","):
        low, _, high = item.partition("-")
        numbers += [str(n).zfill(len(low)) for n in range(int(low), int(high or low) + 1)]
    return numbers


def expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's short form of counts: `2(x3),1` -> 2 2 2 1."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if match is None:
            raise UserError(f"SLURM_TASKS_PER_NODE={text!r} in the environment is not of the form 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
