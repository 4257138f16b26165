"""The cluster as tests see it: Slurm's clients, bounded, and the things that befall a cluster."""

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import daemons, network
from tests.cluster.names import Names
from tests.cluster.processes import ClusterError, command_name, run, wait_until

IDLE_S = 60.0
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    Args:
        holders: by host name, the process that holds the host's namespaces.
    """

    names: Names
    size_nodes: int
    cpus: int
    subnet: str
    holders: Mapping[str, int]

    @classmethod
    def open(cls, names: Names | None = None) -> "Cluster":
        """The cluster of this checkout, as `up` left it.

        Raises:
            ClusterError: it is not up.
        """
        names = names or Names.here()
        try:
            record = json.loads((names.state / "state.json").read_text())
        except FileNotFoundError:
            raise ClusterError("the test cluster is not up; bring it up by: python -m tests.cluster up") from None
        holders = {host: pid for host, (pid, _) in record["holders"].items()}
        return cls(names, record["nodes"], record["cpus"], record["subnet"], holders)

    @property
    def nodes(self) -> list[str]:
        """Host names of the compute nodes, which are their names in Slurm."""
        return self.names.nodes(self.size_nodes)

    @property
    def env(self) -> dict[str, str]:
        """Environment in which Slurm's clients talk to this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return kept | {"SLURM_CONF": str(self.names.slurm_conf)}

    @property
    def private_folder(self) -> Path:
        """A folder that every node has, at this path, on a disk (256 MB, in memory) of its own."""
        return self.names.private_folder

    def address(self, node: str) -> str:
        return network.address(self.names, node, self.subnet)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout: float = 60.0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Standard output of a command that is run here (not on a node) in `self.env`, with `env` over it.

        Raises:
            ClusterError: an error code, or no end within `timeout` seconds; holds what it printed.
        """
        return run(command, timeout=timeout, cwd=cwd, env=self.env | dict(env or {}))

    def exec(self, node: str, command: Sequence[str | Path], *, timeout: float = 60.0) -> str:
        """Standard output of a command run on a node: its network, host name, private folder."""
        return run(daemons.inside(self.holders[node], command), timeout=timeout, env=self.env)

    def sbatch(self, *words: str | Path, timeout: float = 60.0) -> str:
        """The id of the job that `sbatch *words` queues."""
        return self.run(["sbatch", "--parsable", *words], timeout=timeout).strip()

    def state(self, job_id: str | int) -> str | None:
        """The job's state in one word (`PENDING`, `RUNNING`, ...); None once Slurm has forgotten it."""
        try:
            lines = self.run(["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}"]).split()
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise
            return None
        return lines[0] if lines else None

    def show_job(self, job_id: str | int) -> dict[str, str]:
        """`scontrol show job`, by name of the field; empty once Slurm has forgotten the job."""
        try:
            text = self.run(["scontrol", "--oneliner", "show", "job", str(job_id)])
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise
            return {}
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for(self, job_id: str | int, states: Collection[str], timeout: float = 60.0) -> str:
        """Wait until the job is in one of `states`; gives that state.

        Raises:
            ClusterError: not within `timeout` seconds, or the job has ended in another state; tells about it.
        """
        seen: list[str] = []

        def there() -> bool:
            seen[:] = [self.state(job_id) or "GONE"]
            if seen[0] not in states and (seen[0] in _ENDED or seen[0] == "GONE"):
                raise ClusterError(f"job {job_id} has ended as {seen[0]}")
            return seen[0] in states

        try:
            wait_until(there, timeout=timeout, what=f"job {job_id} seen as wanted", every=0.2)
        except ClusterError as error:
            raise ClusterError(f"{error}; wanted {', '.join(states)}\n{self._about(job_id)}") from None
        return seen[0]

    def _about(self, job_id: str | int) -> str:
        """What Slurm says, and the end of what the job printed."""
        job = self.show_job(job_id)
        lines = [
            f"{key}={job[key]}" for key in ("JobState", "Reason", "ExitCode", "Restarts", "NodeList") if key in job
        ]
        output = Path(job.get("StdOut", "/dev/null"))
        if output.is_file():
            lines += [str(output), *output.read_text(errors="replace").splitlines()[-20:]]
        return "\n".join(lines)

    def drain_jobs(self, timeout: float = 60.0) -> None:
        """Cancel every job and wait until the nodes are rid of them."""
        queue = ["squeue", "--noheader", "--format=%A"]

        def empty() -> bool:
            jobs = sorted(set(self.run(queue).split()))
            if jobs:
                with contextlib.suppress(ClusterError):  # one that ended meanwhile
                    self.run(["scancel", *jobs])
            return not jobs

        wait_until(empty, timeout=timeout, what="the end of all jobs", every=0.5)

    def cut_off(self, node: str) -> None:
        """The node's link goes down: what runs there goes on, unheard."""
        run(["ip", "link", "set", self.names.link(node), "down"])

    def reconnect(self, node: str) -> None:
        run(["ip", "link", "set", self.names.link(node), "up"])

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL to the node's slurmd; its jobs' processes stay."""
        daemons.kill_slurmd(node)

    def start_slurmd(self, node: str) -> None:
        daemons.start_slurmd(self.names, node, self.holders[node])

    def pids(self, node: str) -> list[int]:
        """Processes on the node, without the one that holds its namespaces."""
        return [pid for pid in network.pids(node) if pid != self.holders[node]]

    @contextlib.contextmanager
    def small_disk(self, megabytes: int) -> Iterator[Path]:
        """A folder on a disk of that size (in memory), seen here and by every node, gone afterwards."""
        number = 1
        while (folder := self.names.disks / f"disk{number}").exists():
            number += 1
        folder.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", folder.name, folder])
        try:
            yield folder
        finally:
            run(["umount", "--lazy", folder])
            folder.rmdir()

    def node_states(self) -> dict[str, str]:
        """Each node's state in Slurm's long words, such as `idle`, `mixed`, `down*`."""
        lines = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"]).splitlines()
        return dict(line.split() for line in lines)

    def heal(self, timeout: float = IDLE_S) -> None:
        """Undo what befell the nodes (links, limits, slurmd, down or drained in Slurm); wait until all can take jobs.

        Raises:
            ClusterError: a node does not come back; gives its state.
        """
        from tests.cluster import links  # which needs this class

        links.clear(self)
        for node in self.nodes:
            self.reconnect(node)
            if "slurmd" not in map(command_name, self.pids(node)):
                self.start_slurmd(node)

        def able() -> bool:
            try:
                states = self.node_states()
            except ClusterError:  # slurmctld is not listening yet
                return False
            for node in [node for node, state in states.items() if state.startswith(("down", "drain"))]:
                with contextlib.suppress(ClusterError):  # it came back by itself
                    self.run(["scontrol", "update", f"nodename={node}", "state=resume"])
            able_nodes = [
                node for node, state in states.items() if state in ("idle", "mixed", "allocated", "completing")
            ]
            return sorted(able_nodes) == sorted(self.nodes)

        wait_until(able, timeout=timeout, what="all nodes able to take jobs", every=0.2)
