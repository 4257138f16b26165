"""`mmsada logs`: what a rank prints, to its end with `-f`."""

import argparse
import sys

from mmsada_hpc.errors import UserError
from mmsada_hpc.jobs.facts import Facts, read_facts
from mmsada_hpc.jobs.find import Found, find_run
from mmsada_hpc.jobs.follow import Follower
from mmsada_hpc.jobs.output import last_clean_lines, output_of
from mmsada_hpc.jobs.queue import ask
from mmsada_hpc.jobs.state import stand

_LINES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada logs`."""
    parser.add_argument("folder", metavar="RUN", help="folder of a run, or the end of its path")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends, also across requeues")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="of another rank: what its libraries print")
    parser.add_argument("--err", action="store_true", help="standard error of the rank in its Slurm job")
    parser.add_argument("-n", "--lines", type=int, default=_LINES, help=f"last lines ({_LINES}); 0 = all")


def run(args: argparse.Namespace) -> int:
    """Print, or follow.

    Returns:
        0; followed to the end, 0 only of a run that finished, 1 of one that did not; 130 after Ctrl-C.
    """
    if args.lines < 0:
        raise UserError("--lines must be 0 (all) or more")
    path = find_run(args.folder)
    run = Found(path, str(path))
    try:
        if args.follow:
            return Follower(run, rank=args.rank, errors=args.err, lines=args.lines).follow()
        return _show(read_facts(run), args)
    except KeyboardInterrupt:
        return 130


def _show(facts: Facts, args: argparse.Namespace) -> int:
    output = output_of(facts, rank=args.rank, errors=args.err)
    if output.path is None or not output.path.exists():
        standing = stand(facts, ask(facts.job_ids))
        note = f" ({standing.note})" if standing.note else ""
        print(f"{facts.path} is {standing.state}{note} and has printed nothing yet", file=sys.stderr)
        return 0
    print(f"== {output.what}: {output.path}", file=sys.stderr, flush=True)
    for line in last_clean_lines(output.path, args.lines):
        print(line)
    return 0
