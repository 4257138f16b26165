"""`python -m tests.cluster up|down|status|env|link`."""

import argparse
import sys
import time

from tests.cluster import life, links
from tests.cluster.cluster import Cluster
from tests.cluster.links import Link, parse_link
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
    link = commands.add_parser("link", help="make every node's link slow and far, or as it was")
    link.add_argument("--rate", metavar="RATE", help="each way, such as 200mbit or 2gbit")
    link.add_argument("--delay", metavar="TIME", help="one way from node to node, such as 1ms or 500us")
    link.add_argument("--clear", action="store_true", help="no limits")
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
        elif arguments.command == "link":
            print(_link(arguments.rate, arguments.delay, is_clear=arguments.clear))
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


def _link(rate: str | None, delay: str | None, *, is_clear: bool) -> str:
    link = parse_link(rate, delay)
    if is_clear == (link != Link()):
        raise ClusterError("link: --clear, or --rate and --delay or one of them")
    cluster = Cluster.open()
    links.shape(cluster, link)
    return f"every node's link: {link}"


sys.exit(main())
