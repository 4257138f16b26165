"""`mmsada inspect`: what a store holds, whether it is undamaged, and a sheet to look at."""

import argparse
import sys
from pathlib import Path

from mmsada_hpc.data.progress import Progress
from mmsada_hpc.data.sheet import write_sheet
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.summary import counts_of, table_of_counts
from mmsada_hpc.errors import UserError


def describe(store: Store) -> str:
    """Counts per domain, split and class, frames, sizes and the flow convention, as text."""
    m = store.manifest
    megabytes = sum(entry.bytes for entry in (*m.shards, *m.tables)) / 1e6
    form = "JPEG frames" if m.rgb_form == "jpeg" else "short-GOP VP9 video"
    lines = [
        f"{store.path} ({m.kind})",
        f"  segments    {len(store.segments)} in {len(store.videos)} videos",
        f"  frames      {m.frames['rgb']} RGB and {m.frames['flow'] // 2} flow pairs of {m.height}x{m.width} at "
        f"{m.fps:g} frames/s",
        f"  RGB         {form}",
        f"  flow        {m.flow.method}: file t is the motion from frame {m.flow.stride}t to "
        f"{m.flow.stride}(t+{m.flow.dilation}), "
        f"clipped to {m.flow.bound:g} pixels, still = 128",
        f"  size        {megabytes:.1f} MB in {len(m.shards)} shards",
        f"  made by     {m.command or 'mmsada prepare'}",
        table_of_counts(counts_of(store), m.classes),
    ]
    return "\n".join([*lines, *(f"  skipped {one['item']}: {one['why']}" for one in m.skipped)])


def verify(store: Store) -> None:
    """Recompute every checksum; UserError naming the damaged files."""
    files = [entry.file for entry in (*store.manifest.tables, *store.manifest.shards)]
    with Progress("verifying", total=len(files), unit="file") as progress:
        problems = store.verify(lambda file: progress.to(files.index(file)))
        progress.to(len(files))
    if problems:
        raise UserError(f"{'; '.join(problems)}; copy the files again or prepare the store again with --force")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada inspect`."""
    parser.add_argument("store", type=Path, metavar="STORE", help="folder made by `mmsada prepare`")
    parser.add_argument(
        "--verify", action="store_true", help=("recompute the checksum of every file (reads the whole store)")
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help=("write a contact sheet: RGB above, flow as colours below")
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=3,
        metavar="N",
        help=("clips per class and domain on the sheet (default %(default)s)"),
    )


def run(args: argparse.Namespace) -> int:
    """Print what the store holds; write the sheet and verify where asked to."""
    if args.clips < 1:
        raise UserError("--clips must be at least 1")
    store = Store.open(args.store)
    print(describe(store))
    if args.sheet is not None:
        write_sheet(store, args.sheet, clips=args.clips)
        print(f"  sheet       {args.sheet}")
    sys.stdout.flush()
    if args.verify:
        verify(store)
        print("  verified    every file is what it was when it was written")
    return 0
