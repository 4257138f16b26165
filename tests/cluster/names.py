"""What belongs to this checkout's cluster is known by its name, so that it can be cleared away with no record of it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NAME_VARIABLE = "MMSADA_CLUSTER_NAME"
"""Environment: stands in for the checkout's path, for a second cluster beside this checkout's own."""
MAX_NODES = 4


@dataclass(frozen=True)
class Names:
    """Every name and place of one cluster."""

    hash: str

    @classmethod
    def here(cls) -> "Names":
        text = os.environ.get(NAME_VARIABLE) or str(CHECKOUT)
        return cls(hashlib.sha256(text.encode()).hexdigest()[:6])

    @property
    def prefix(self) -> str:
        """What the names of hosts (and of their network namespaces, which are the same) begin with."""
        return f"mm-{self.hash}-"

    @property
    def controller(self) -> str:
        return f"{self.prefix}ctl"

    def node(self, number: int) -> str:
        """Host name of node 1, 2, ..."""
        return f"{self.prefix}n{number}"

    def nodes(self, count: int) -> list[str]:
        return [self.node(i) for i in range(1, count + 1)]

    @property
    def link_prefix(self) -> str:
        """What the names of links in the root namespace begin with; the kernel allows 15 characters in all."""
        return f"mm{self.hash}"

    @property
    def bridge(self) -> str:
        return f"{self.link_prefix}br"

    def link(self, host: str) -> str:
        """The host's end in the root namespace; the other end is `eth0` in the host's."""
        return self.link_prefix + host.removeprefix(self.prefix)

    @property
    def state(self) -> Path:
        """Folder of configuration, logs and spool files; exists while the cluster does."""
        return Path("/run") / f"mmsada-slurm-{self.hash}"

    @property
    def slurm_conf(self) -> Path:
        return self.state / "slurm.conf"

    @property
    def private_folder(self) -> Path:
        """Same path on every node, but a disk of each node's own."""
        return self.state / "local"

    @property
    def disks(self) -> Path:
        """What is mounted below it every node sees."""
        return self.state / "disks"

    @property
    def users(self) -> Path:
        """Test sessions hold a shared lock on it."""
        return self.state / "users"
