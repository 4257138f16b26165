"""`python -m tests.cluster up|down|status|env`."""

import argparse
import sys
import time

from tests.cluster import life
from tests.cluster.cluster import Cluster
from tests.cluster.names import MAX_NODES, Names
from tests.cluster.processes import ClusterError
from tests.cluster.slurm_conf import Size


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Slurm on this one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring it up; fine when it is up")
    up.add_argument("--nodes", type=int, help=f"1 to {MAX_NODES}; 2 unless told")
    up.add_argument("--cpus", type=int, help="that each node claims to have; 8 unless told")
    commands.add_parser("down", help="end its processes and remove all of it; fine when there is none")
    commands.add_parser("status", help="nodes and jobs")
    commands.add_parser("env", help="print the line that makes Slurm's clients talk to it")
    commands.add_parser("guard")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            print(_up(arguments.nodes, arguments.cpus))
        elif arguments.command == "down":
            life.down()
            print("down")
        elif arguments.command == "status":
            print(life.status())
        elif arguments.command == "env":
            print(f"export SLURM_CONF={Cluster.open().names.slurm_conf}")
        else:
            life.guard(Names.here())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _up(nodes: int | None, cpus: int | None) -> str:
    began = time.monotonic()
    usual = Size()
    size = None if nodes is None and cpus is None else Size(nodes or usual.nodes, cpus or usual.cpus)
    _, fresh = life.up(size)
    first = f"brought up in {time.monotonic() - began:.1f} s" if fresh else "it was up already"
    return f"{first}\n{life.status()}\ntear it down by: python -m tests.cluster down"


sys.exit(main())
