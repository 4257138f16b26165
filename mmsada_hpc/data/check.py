"""`mmsada check-data`: everything that is wrong with a store, or with raw EPIC-KITCHENS frames, before anyone pays for
GPUs.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.data.check_epic import epic_videos
from mmsada_hpc.data.check_jobs import Checked, Video, check_videos
from mmsada_hpc.data.check_store import store_videos
from mmsada_hpc.data.manifest import FlowConvention, read_manifest
from mmsada_hpc.data.prepare import SEGMENTS_HELP, epic_segments
from mmsada_hpc.data.problems import Problem, csv_of, describe
from mmsada_hpc.data.shards import writing
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError


@dataclass(frozen=True)
class CheckOptions:
    """The options of `mmsada check-data`: either `store`, or `epic_frames` and `segments`; `workers` 0 = one per usable
    core, `sample` 0 = every frame.
    """

    store: Path | None = None
    epic_frames: Path | None = None
    segments: tuple[str, ...] = ()
    sample: int = 0
    workers: int = 0


def check(options: CheckOptions) -> Checked:
    """Look at everything and go on after each problem; UserError only where there is nothing to look at."""
    if options.sample < 0 or options.workers < 0:
        raise UserError("--sample and --workers must be at least 0")
    videos, problems = _videos(options)
    size = None
    if options.store is not None:
        manifest = read_manifest(options.store)
        size = (manifest.height, manifest.width)
    workers = options.workers or len(os.sched_getaffinity(0))
    found = check_videos(videos, size=size, sample=options.sample, workers=workers)
    return Checked([*problems, *found.problems], found.videos, found.counts, found.decoded)


def _videos(options: CheckOptions) -> tuple[list[Video], list[Problem]]:
    if options.store is not None and options.epic_frames is None and not options.segments:
        stored, problems = store_videos(options.store)
        return list(stored), problems
    if options.epic_frames is not None and options.segments and options.store is None:
        raw, problems = epic_videos(options.epic_frames, epic_segments(options.segments), FlowConvention("tvl1"))
        return list(raw), problems
    raise UserError("say what to check: STORE, or --epic-frames DIR --segments DOMAIN/SPLIT=FILE ...")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada check-data`."""
    parser.add_argument("store", type=Path, nargs="?", metavar="STORE", help="folder made by `mmsada prepare`")
    parser.add_argument("--epic-frames", type=Path, metavar="DIR", help="raw EPIC-KITCHENS frames, with --segments")
    parser.add_argument("--segments", nargs="+", default=[], metavar="DOMAIN/SPLIT=FILE", help=SEGMENTS_HELP)
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="decode N frames of each video and stream, evenly spread (default: all)",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per usable core)")
    parser.add_argument("--list", type=Path, metavar="FILE", help="write every problem to FILE, as csv")
    parser.epilog = "Exit code: 0 when there is no problem, 1 when there are some, 2 when nothing could be checked."


def run(args: argparse.Namespace) -> int:
    """Check, print the summary, write the list."""
    options = CheckOptions(args.store, args.epic_frames, tuple(args.segments), args.sample, args.workers)
    found = check(options)
    if args.list is not None:
        writing(args.list, lambda: write_atomically(args.list, csv_of(found.problems)))
    counts = ", ".join(f"{count} {channel}" for channel, count in found.counts.items())
    print(
        f"{args.store or args.epic_frames}: {found.videos} videos; frames: {counts or 'none'}; {found.decoded} decoded"
    )
    everything = f"all are in {args.list}" if args.list else "--list FILE writes all"
    print(describe(found.problems, everything=everything))
    return 1 if found.problems else 0
