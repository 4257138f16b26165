"""`mmsada prepare`: build a store from a folder of labelled videos, or from EPIC-KITCHENS frames as released."""

import argparse
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmsada_hpc.data.build import Built, StorePlan, build, survey
from mmsada_hpc.data.epic import epic_sources
from mmsada_hpc.data.epic_tables import EPIC_VERBS, parse_tables, read_epic_tables
from mmsada_hpc.data.flow import METHODS
from mmsada_hpc.data.manifest import FlowConvention
from mmsada_hpc.data.segments import WHOLE_VIDEO, SegmentRow, read_labels
from mmsada_hpc.data.summary import describe_plan, describe_store
from mmsada_hpc.data.videos import VideoSettings, VideoSource
from mmsada_hpc.errors import UserError

SEGMENTS_HELP = (
    "segment tables: MM-SADA's pickle or csv (D1/train=D1_train.pkl), or EPIC_train_action_labels.csv, of which the "
    "domain's participant (D1 = P08, D2 = P01, D3 = P22; or P08/train=...) and verb_class 0 to 7 are taken"
)
# EPIC frames are packed as they are, so these say nothing there.
_VIDEOS_ONLY = ("classes", "size", "rgb", "jpeg_quality", "flow")


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `mmsada prepare`: either `videos` and `labels`, or `epic_frames` and `segments`.

    `size` is HEIGHTxWIDTH in pixels, `flow_bound` in pixels, `flow_stride` and `flow_dilation` in frames (spec 4.3);
    `workers` 0 = one per usable core.
    """

    out: Path
    videos: Path | None = None
    labels: Path | None = None
    epic_frames: Path | None = None
    segments: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    size: str = "256x456"
    rgb: str = "jpeg"
    jpeg_quality: int = 95
    flow: str = "dis"
    flow_stride: int = 2
    flow_dilation: int = 3
    flow_bound: float = 25.0
    workers: int = 0
    shard_mb: int = 256
    skip_bad: bool = False
    force: bool = False
    command: str = ""


def prepare(options: PrepareOptions) -> Built:
    """Build the store `options.out`; every mistake in options or inputs is a UserError, and then no store.json is
    left.
    """
    plan, workers = store_plan(options), _workers(options)
    return build(
        plan,
        options.out,
        workers=workers,
        shard_bytes=options.shard_mb << 20,
        skip_bad=options.skip_bad,
        force=options.force,
    )


def store_plan(options: PrepareOptions) -> StorePlan:
    """What the options ask for, tables read and checked; nothing is written."""
    if options.shard_mb < 1 or options.workers < 0 or not 1 <= options.jpeg_quality <= 100:
        raise UserError("--shard-mb must be at least 1, --workers at least 0, --jpeg-quality 1 to 100")
    if options.videos is not None and options.labels is not None and options.epic_frames is None:
        return _video_plan(options, options.videos, options.labels)
    if options.epic_frames is not None and options.segments and options.videos is None:
        return _epic_plan(options, options.epic_frames)
    raise UserError(
        "say what to prepare: --videos DIR --labels labels.csv, or --epic-frames DIR --segments DOMAIN/SPLIT=FILE ..."
    )


def _video_plan(options: PrepareOptions, folder: Path, labels: Path) -> StorePlan:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (--videos)")
    settings = _video_settings(options)
    rows, classes = read_labels(labels, classes=options.classes)
    sources = tuple(VideoSource(row.video, folder / row.file, settings) for row in rows)
    number = {name: i for i, name in enumerate(classes)}
    segments = tuple(
        SegmentRow(row.video, row.domain, row.split, row.video, 1, WHOLE_VIDEO, number[row.class_name]) for row in rows
    )
    contents = {"kind": "videos", **asdict(settings), "classes": list(classes), "shard_mb": options.shard_mb}
    return StorePlan("videos", classes, sources, segments, settings.flow, settings.rgb_form, contents, options.command)


def _video_settings(options: PrepareOptions) -> VideoSettings:
    size = re.fullmatch(r"(\d+)x(\d+)", options.size)
    if size is None or min(int(size[1]), int(size[2])) < 32:
        raise UserError(f"--size {options.size}: write HEIGHTxWIDTH in pixels, at least 32x32, for example 256x456")
    height, width = int(size[1]), int(size[2])
    if options.rgb == "video" and (height % 2 or width % 2):
        raise UserError(f"--size {options.size}: --rgb video needs even height and width")
    return VideoSettings(height, width, options.rgb, options.jpeg_quality, _flow(options, options.flow))


def _epic_plan(options: PrepareOptions, root: Path) -> StorePlan:
    for field in dataclasses.fields(PrepareOptions):
        if field.name in _VIDEOS_ONLY and getattr(options, field.name) != field.default:
            name = field.name.replace("_", "-")
            raise UserError(f"--{name} does not go with --epic-frames: EPIC's frames are packed byte for byte")
    flow = _flow(options, "tvl1")
    segments = epic_segments(options.segments)
    sources = epic_sources(root, segments, flow)
    contents = {"kind": "epic", "flow": asdict(flow), "shard_mb": options.shard_mb}
    return StorePlan("epic", EPIC_VERBS, sources, segments, flow, "jpeg", contents, options.command)


def epic_segments(specs: Sequence[str]) -> tuple[SegmentRow, ...]:
    """The segments of `--segments` options; where rows were chosen from a larger table, standard error says which."""
    tables = read_epic_tables(parse_tables(specs))
    for table in tables:
        if table.note:
            print(table.note, file=sys.stderr)
    return tuple(row for table in tables for row in table.rows)


def _flow(options: PrepareOptions, method: str) -> FlowConvention:
    if min(options.flow_stride, options.flow_dilation) < 1 or options.flow_bound <= 0:
        raise UserError("--flow-stride, --flow-dilation and --flow-bound must be positive")
    return FlowConvention(method, options.flow_bound, options.flow_stride, options.flow_dilation)


def _workers(options: PrepareOptions) -> int:
    return options.workers or len(os.sched_getaffinity(0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada prepare`."""
    default = {field.name: field.default for field in dataclasses.fields(PrepareOptions)}
    what = parser.add_argument_group("what to pack (one of the two)")
    what.add_argument("--videos", type=Path, metavar="DIR", help="folder of videos, with --labels")
    what.add_argument("--labels", type=Path, metavar="CSV", help="columns file, domain, split, class; one row a video")
    what.add_argument(
        "--epic-frames",
        type=Path,
        metavar="DIR",
        help="EPIC-KITCHENS frames (folders, tars or flat names), with --segments",
    )
    what.add_argument(
        "--segments",
        nargs="+",
        default=[],
        metavar="DOMAIN/SPLIT=FILE",
        help=SEGMENTS_HELP,
    )
    how = parser.add_argument_group("how videos are stored (EPIC frames are packed as they are)")
    how.add_argument(
        "--size",
        default=default["size"],
        metavar="HxW",
        help="every clip is scaled to cover it and cut (default %(default)s)",
    )
    how.add_argument(
        "--classes",
        default="",
        metavar="A,B,C",
        help="class names in label order (default: those in --labels, by alphabet)",
    )
    how.add_argument(
        "--rgb",
        choices=("jpeg", "video"),
        default=default["rgb"],
        help="JPEG frames, or one short-GOP VP9 file a video",
    )
    how.add_argument(
        "--jpeg-quality", type=int, default=default["jpeg_quality"], metavar="Q", help="default %(default)s"
    )
    how.add_argument(
        "--flow",
        choices=METHODS,
        default=default["flow"],
        help="optical flow method (default %(default)s; tvl1 is EPIC's and slow)",
    )
    how.add_argument(
        "--flow-stride",
        type=int,
        default=default["flow_stride"],
        metavar="N",
        help="RGB frames per flow file (default %(default)s)",
    )
    how.add_argument(
        "--flow-dilation",
        type=int,
        default=default["flow_dilation"],
        metavar="N",
        help="strides that one flow spans (default %(default)s)",
    )
    how.add_argument(
        "--flow-bound",
        type=float,
        default=default["flow_bound"],
        metavar="PX",
        help="largest motion kept, pixels (default %(default)s)",
    )
    run_ = parser.add_argument_group("the run")
    run_.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    run_.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per usable core)")
    run_.add_argument(
        "--shard-mb",
        type=int,
        default=default["shard_mb"],
        metavar="MB",
        help="size of a shard, about (default %(default)s)",
    )
    run_.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out videos that cannot be used, and list them, instead of stopping",
    )
    run_.add_argument("--force", action="store_true", help="make an existing store anew")
    run_.add_argument(
        "--dry-run", action="store_true", help="look at the input and list what would be packed; write nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare, or list what would be prepared, and print the summary."""
    values = {
        field.name: getattr(args, field.name) for field in dataclasses.fields(PrepareOptions) if field.name != "command"
    }
    values["segments"] = tuple(args.segments)
    values["classes"] = tuple(name.strip() for name in args.classes.split(",") if name.strip())
    options = PrepareOptions(**values, command=shlex.join(["mmsada", *sys.argv[1:]]))
    if args.dry_run:
        plan = store_plan(options)
        print(describe_plan(plan, survey(plan, workers=_workers(options), skip_bad=options.skip_bad)))
        return 0
    print(describe_store(prepare(options)))
    return 0
