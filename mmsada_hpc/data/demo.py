"""`mmsada demo-data`: the toy kitchens as real encoded video with a table of labels, ready for `mmsada prepare`."""

import argparse
import csv
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data import pool
from mmsada_hpc.data.demo_kitchens import KITCHENS, VERBS, Difficulty
from mmsada_hpc.data.demo_render import ClipKey, render_clip
from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.progress import Progress
from mmsada_hpc.data.summary import describe_store
from mmsada_hpc.errors import UserError

_MARK = "mmsada-demo-data"
_VERSION = 1  # of the drawing and of the encoder's settings
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0", "g": "30", "lag-in-frames": "0"}
_README = """This folder is SYNTHETIC: toy kitchens rendered by `mmsada demo-data`, no real video.

Each clip is one of 8 verbs ({verbs}) in one of the kitchens {kitchens}. The verbs differ in motion;
the kitchens differ in light, worktop, camera, tempo and clutter. labels.csv lists every clip.
demo.json says from which settings the folder was rendered; the same settings give the same clips again.
"""


@dataclass(frozen=True)
class DemoOptions:
    """What to render: `train` and `test` clips for each verb and kitchen.

    A clip has `frames` frames of `height` x `width` pixels at `fps` frames a second.
    """

    out: Path
    kitchens: tuple[str, ...] = ("K1", "K2")
    train: int = 24
    test: int = 10
    seed: int = 0
    height: int = 96
    width: int = 96
    frames: int = 48
    fps: int = 30
    workers: int = 0  # 0 = one per usable core

    def recipe(self) -> dict[str, Any]:
        """Everything that the clips depend on, as plain values."""
        asked = dataclasses.asdict(self)
        del asked["out"], asked["workers"]
        styles = {name: dataclasses.asdict(KITCHENS[name]) for name in self.kitchens}
        made_of = {
            "version": _VERSION,
            "numpy": np.__version__,
            "dials": dataclasses.asdict(Difficulty()),
            "styles": styles,
        }
        plain: dict[str, Any] = json.loads(json.dumps({"made_by": _MARK, **asked, **made_of}))
        return plain


def render_demo(options: DemoOptions) -> Path:
    """Render the clips and return the path of labels.csv, which is written last.

    A folder that already holds exactly these clips is left as it is; one that holds other demo data is rendered anew.

    Raises:
        UserError: an impossible option, or `out` is a folder that this command did not make.
    """
    _check(options)
    labels = options.out / "labels.csv"
    if _holds(options) and labels.is_file():
        return labels
    keys = clip_keys(options)
    try:
        _clear(options)
        with Progress("rendering (synthetic)", total=len(keys), unit="clip") as progress:
            workers = options.workers or len(os.sched_getaffinity(0))
            pool.run(partial(_render_file, options), keys, workers=workers, progress=progress)
        _write_labels(labels, keys)
    except OSError as error:
        raise UserError(f"{error.filename or options.out}: cannot be written ({error.strerror or error})") from error
    return labels


def clip_keys(options: DemoOptions) -> list[ClipKey]:
    """Every clip of the data set, in the order of labels.csv."""
    counts = (("train", options.train), ("test", options.test))
    return [
        ClipKey(kitchen, split, verb, index)
        for kitchen in options.kitchens
        for split, count in counts
        for verb in VERBS
        for index in range(count)
    ]


def clip_file(key: ClipKey) -> str:
    """Path of a clip inside the folder."""
    return f"{key.kitchen}/{key.split}/{key.verb}_{key.index:03d}.mp4"


def encode(path: Path, clip: NDArray[np.uint8], *, fps: int) -> None:
    """Write (frames, height, width, 3) uint8 RGB as VP9 in mp4; the file appears whole or not at all."""
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(fps), options=_VP9)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    unfinished.replace(path)


def _render_file(options: DemoOptions, key: ClipKey) -> None:
    clip = render_clip(
        options.seed, key, height=options.height, width=options.width, frames=options.frames, fps=options.fps
    )
    encode(options.out / clip_file(key), clip, fps=options.fps)
    pool.advance(1)


def _check(options: DemoOptions) -> None:
    unknown = [name for name in options.kitchens if name not in KITCHENS]
    if unknown or len(set(options.kitchens)) != len(options.kitchens) or not options.kitchens:
        raise UserError(f"--domains {','.join(options.kitchens)}: choose different ones of {', '.join(KITCHENS)}")
    if options.train < 1 or options.test < 1 or options.workers < 0 or not 0 <= options.seed < 2**63:
        raise UserError("--train and --test must be at least 1, --workers and --seed at least 0")
    if (
        options.height % 2
        or options.width % 2
        or not 32 <= min(options.height, options.width) <= max(options.height, options.width) <= 1024
    ):
        raise UserError(f"--size {options.height}x{options.width}: height and width must be even, 32 to 1024")
    if options.frames < 16 or not 1 <= options.fps <= 240:
        raise UserError("--frames must be at least 16 and --fps 1 to 240")


def _holds(options: DemoOptions) -> bool:
    """Whether `out` was rendered from these options; UserError when it holds something that is not demo data."""
    out = options.out
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give --out a folder")
    try:
        recipe = json.loads((out / "demo.json").read_text())
    except (OSError, ValueError):
        recipe = None
    if isinstance(recipe, dict) and recipe.get("made_by") == _MARK:
        return bool(recipe == options.recipe())
    if any(out.iterdir()):
        raise UserError(
            f"{out}: holds other files and was not made by demo-data; choose an empty or new folder for --out"
        )
    return False


def _clear(options: DemoOptions) -> None:
    """Take away what an earlier rendering left (only what this command makes), then lay out the folder."""
    out = options.out
    (out / "labels.csv").unlink(missing_ok=True)
    for kitchen in KITCHENS:
        shutil.rmtree(out / kitchen, ignore_errors=True)
    for kitchen in options.kitchens:
        for split in ("train", "test"):
            (out / kitchen / split).mkdir(parents=True)
    (out / "demo.json").write_text(json.dumps(options.recipe(), indent=2) + "\n")
    (out / "README.txt").write_text(_README.format(verbs=", ".join(VERBS), kitchens=", ".join(options.kitchens)))


def _write_labels(path: Path, keys: Sequence[ClipKey]) -> None:
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "domain", "split", "class"])
        table.writerows([clip_file(key), key.kitchen, key.split, key.verb] for key in keys)
    unfinished.replace(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada demo-data`."""
    default = DemoOptions(Path())
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the videos and labels.csv")
    add(
        "--domains", default=",".join(default.kitchens), metavar="K1,K2,K3", help="which kitchens (default %(default)s)"
    )
    add(
        "--train",
        type=int,
        default=default.train,
        metavar="N",
        help="training clips a verb and kitchen (default %(default)s)",
    )
    add(
        "--test",
        type=int,
        default=default.test,
        metavar="N",
        help="test clips a verb and kitchen (default %(default)s)",
    )
    add("--seed", type=int, default=default.seed, help="other seeds give other clips (default %(default)s)")
    add("--size", default=f"{default.height}x{default.width}", metavar="HxW", help="pixels (default %(default)s)")
    add("--frames", type=int, default=default.frames, metavar="N", help="frames a clip (default %(default)s)")
    add("--fps", type=int, default=default.fps, help="frames a second (default %(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="processes (default: one per usable core)")
    add(
        "--store",
        type=Path,
        metavar="STORE",
        help="also prepare this store from the clips, with the verbs in EPIC's order",
    )
    add("--store-size", default="72x72", metavar="HxW", help="frame size of that store (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Render, say that it is synthetic, and prepare the store if one was asked for."""
    size = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if size is None:
        raise UserError(f"--size {args.size}: write HEIGHTxWIDTH in pixels, for example 96x96")
    options = DemoOptions(
        out=args.out,
        kitchens=tuple(name.strip() for name in args.domains.split(",") if name.strip()),
        train=args.train,
        test=args.test,
        seed=args.seed,
        height=int(size[1]),
        width=int(size[2]),
        frames=args.frames,
        fps=args.fps,
        workers=args.workers,
    )
    labels = render_demo(options)
    print(
        f"{len(clip_keys(options))} synthetic clips (toy kitchens, not real video) in {options.out}; labels in {labels}"
    )
    if args.store is not None:
        into = PrepareOptions(
            args.store, options.out, labels, classes=VERBS, size=args.store_size, workers=args.workers
        )
        print(describe_store(prepare(into)))
    return 0
