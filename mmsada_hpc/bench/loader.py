"""`mmsada bench loader`: clips/s and CPU time of our loader beside plain PyTorch DataLoaders, on the same windows of
the same files with the same cores.

Every loader lives in a process of its own (`loader_child`) and all take turns, from rest to rest, so that none is
measured on what it or another made ahead.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsada_hpc.bench.e2e_run import toy_store
from mmsada_hpc.bench.loader_child import WAYS, Measured, Measurer, Request, Spec, bench_setup
from mmsada_hpc.bench.loader_process import loader_processes, measure
from mmsada_hpc.bench.loader_step import bench_step
from mmsada_hpc.bench.rows import SHOWN, Report, Row, row
from mmsada_hpc.cluster.host import num_threads
from mmsada_hpc.cluster.join import say_to_all
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.config import load_config
from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.pipeline import StreamSource
from mmsada_hpc.data.schedule import TrainSchedule
from mmsada_hpc.errors import UserError
from mmsada_hpc.train.setup import Setup

HELP = (
    "Clips/s, MB/s, decodes/s and CPU time per clip of the loader, beside a plain PyTorch DataLoader with PIL and with "
    "OpenCV that gives the same clips from the same files with as many cores. Without --store on toy kitchens that are "
    "rendered here. --cold, --ranks, --batches and --with-step add measurements."
)
_BATCH, _BATCHES, _QUICK_BATCHES, _SMALLEST_BATCH = 16, 8, 4, 8
_QUICK = ("data.crop=64", "data.num_frames=8")
_LABELS = {
    "DALI": "DALI",
    "DALI graph": "DALI, all in its graph",
    "OpenCV": "OpenCV DataLoader",
    "PIL": "PIL DataLoader",
}
_PLAIN_FIRST = ("PIL", "OpenCV", "DALI graph", "DALI")


@dataclass(frozen=True)
class Task:
    """One store at one size."""

    store: str
    overrides: tuple[str, ...]
    batch: int
    threads: int
    """Of all ranks that share the host."""

    @property
    def setup(self) -> Setup:
        return bench_setup(self.store, self.overrides)

    def shape(self) -> str:
        """What a row's name says."""
        setup = self.setup
        manifest, data = setup.store.manifest, setup.config.data
        size = f"{manifest.rgb_form} {manifest.height}x{manifest.width} to {data.num_frames}x{data.crop}"
        return f"{size}, N={self.batch}, {self.threads} core{'s' * (self.threads > 1)}"

    def spec(self, way: str, *, rank: int = 0, ranks: int = 1) -> Spec:
        return Spec(way, self.store, self.overrides, max(1, self.threads // ranks), rank, ranks)


def per_clip(setup: Setup, *, batches: int = 4) -> tuple[float, float]:
    """Encoded megabytes and decoded images of a clip, the mean over the first micro-batches."""
    schedule, store = TrainSchedule(setup.planner, setup.layout, 0, 1, 0), setup.store
    total, clips = 0, 0
    for stream in STREAMS:
        source = StreamSource(store, stream, schedule, setup.decoding)
        for iteration in range(batches):
            views = source.views(iteration)
            clips += len(views.centre_N)
            if stream == "rgb" and store.manifest.rgb_form == "video":
                total += sum(len(store.read_video(source.video_of(views, clip))) for clip in range(len(views.centre_N)))
            else:
                total += sum(len(jpeg) for clip in range(len(views.centre_N)) for jpeg in source.encoded(views, clip))
    return total / (clips / len(STREAMS)) / 1e6, 3 * setup.config.data.num_frames


def rows_of(
    shape: str, found: Mapping[str, Sequence[Sequence[Measured]]], *, batch: int, encoded: tuple[float, float]
) -> list[Row]:
    """Clips/s of all ranks together and CPU time per clip of each way, against PIL where it is there.

    Args:
        found: per way and repeat, what each rank measured.
        encoded: `per_clip`.
    """
    rows: list[Row] = []
    first: tuple[Row, Row] | None = None
    for way in (way for way in _PLAIN_FIRST if way in found):
        repeats = found[way]
        rates = [sum(batch * one.batches / one.seconds for one in ranks) for ranks in repeats]
        cpu = [1000 * float(np.mean([one.cpu_s_per_batch for one in ranks])) / batch for ranks in repeats]
        base = first or (None, None)
        rate = row(
            "loader",
            f"{_LABELS[way]}, {shape}",
            rates,
            "clips/s",
            better="higher",
            baseline=base[0],
            details=_details(repeats, encoded, float(np.median(rates))),
        )
        time = row("loader", f"CPU, {_LABELS[way]}, {shape}", cpu, "ms/clip", better="lower", baseline=base[1])
        first = first or (rate, time)
        rows += [rate, time]
    return rows


def _details(repeats: Sequence[Sequence[Measured]], encoded: tuple[float, float], clips_per_s: float) -> dict[str, Any]:
    mb_per_s, decodes_per_s = (round(clips_per_s * one, 1) for one in encoded)
    return {
        SHOWN: f"{mb_per_s:,.0f} MB/s, {decodes_per_s:,.0f} decodes/s",
        "mb_per_s": mb_per_s,
        "decodes_per_s": decodes_per_s,
        "read_mb": [round(sum(one.read_mb for one in ranks), 3) for ranks in repeats],
        "pss_mb_per_rank": round(float(np.median([one.pss_mb for ranks in repeats for one in ranks])), 1),
        "batches": repeats[0][0].batches,
        "ranks": len(repeats[0]),
    }


def bench_ways(task: Task, args: argparse.Namespace, report: Report, *, ranks: int, forget: bool) -> None:
    """All ways by turns."""
    shape = task.shape() + (f", {ranks} ranks" if ranks > 1 else "") + (", cold" if forget else "")
    request = Request(args.batches_per_repeat, forget=forget)
    specs = [task.spec(way, rank=rank, ranks=ranks) for way in args.way for rank in range(ranks)]
    found: dict[str, list[list[Measured]]] = {way: [] for way in args.way}
    with loader_processes(specs) as processes:
        for _ in range(args.repeats):
            for way in args.way:
                found[way].append(measure([p for p in processes if p.spec.way == way], request))
    for one in rows_of(shape, found, batch=task.batch, encoded=per_clip(task.setup)):
        report.add(one)


def bench_memory(task: Task, batches: int, report: Report) -> None:
    """Memory of a rank's loader over many small batches: it must not grow (D9)."""
    spec = task.spec("DALI")
    with loader_processes([spec]) as processes:
        (found,) = measure(processes, Request(batches, memory=True))
    begin, middle, end = found.rss_mb
    details = {"start_mb": round(begin, 1), "middle_mb": round(middle, 1), "seconds": round(found.seconds, 1)}
    details[SHOWN] = f"{begin:.0f} at the start, {middle:.0f} in the middle"  # type: ignore[assignment]
    name = f"memory after {batches} batches, {task.shape()}"
    report.add(row("loader", name, [end], "MB", better="lower", details=details))
    growth = row("loader", f"growth, {name}", [end - middle], "MB", better="lower")
    report.add(growth)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench loader`."""
    add = parser.add_argument
    add("--store", type=Path, action="append", metavar="STORE", help="may be given again (default: toy kitchens)")
    add("--way", action="append", choices=WAYS, metavar="WAY", help=f"may be given again (default {', '.join(WAYS)})")
    add("--batch", type=int, metavar="N", help=f"clips of a micro-batch, even (default {_BATCH})")
    add("--batches-per-repeat", type=int, metavar="N", help=f"default {_BATCHES}, quick {_QUICK_BATCHES}")
    add("--cold", action="store_true", help="once more with the shards out of the page cache before each repeat")
    add("--ranks", type=int, action="append", metavar="N", help="once more with N ranks that share the cores")
    add("--batches", type=int, default=0, metavar="N", help="memory over N batches of 8 clips, e.g. 10000")
    add("--with-step", action="store_true", help="the training step fed by the loader, beside one on clips in memory")
    add("--stores", type=Path, default=Path("stores"), metavar="DIR", help="of the toy kitchens (default %(default)s)")
    add("overrides", nargs="*", default=[], metavar="key=value", help="dotted keys of the config, e.g. data.crop=112")


def run(args: argparse.Namespace, report: Report) -> None:
    """Measure every store that was named."""
    args.way, args.ranks = args.way or list(WAYS), args.ranks or []
    args.batches_per_repeat = args.batches_per_repeat or (_QUICK_BATCHES if args.quick else _BATCHES)
    batch = args.batch or (_SMALLEST_BATCH if args.quick else _BATCH)
    if batch < _SMALLEST_BATCH or batch % 2:
        raise UserError(f"--batch {batch}: an even number of {_SMALLEST_BATCH} or more")
    if min(args.batches_per_repeat, *args.ranks, args.batches + 1) < 1:
        raise UserError("--batches-per-repeat, --ranks and --batches must be 1 or more")
    own = [*(_QUICK if args.quick else ()), *args.overrides]
    stores = args.store or [_toy_kitchens(own, args.stores)]
    for store in stores:
        _bench_store(_task(str(store.resolve()), own, batch), args, report)


def _toy_kitchens(own: Sequence[str], stores: Path) -> Path:
    """Rendered once, by rank 0; the others wait for it."""
    store = toy_store(load_config(None, own), stores) if find_world().rank == 0 else None
    return say_to_all(store)


def _task(store: str, own: Sequence[str], batch: int) -> Task:
    world = find_world()
    threads = num_threads(world.local_size, cpus_per_task=world.cpus_per_task)
    sizes = (f"train.global_batch={batch}", f"train.micro_batch={batch}", f"model.batch_norm.group_size={batch // 2}")
    task = Task(store, (*sizes, *own), batch, threads)
    decoding = task.setup.decoding
    return dataclasses.replace(task, threads=task.setup.config.data.threads or min(threads, decoding.threads))


def _bench_store(task: Task, args: argparse.Namespace, report: Report) -> None:
    bench_ways(task, args, report, ranks=1, forget=False)
    if args.cold:
        bench_ways(task, args, report, ranks=1, forget=True)
    for ranks in args.ranks:
        bench_ways(task, args, report, ranks=ranks, forget=False)
    if args.batches:
        own = task.overrides[3:]
        bench_memory(_task(task.store, own, _SMALLEST_BATCH), args.batches, report)
    if args.profile:
        measurer = Measurer(task.spec("DALI"))
        report.profile(lambda: measurer.measure(Request(args.batches_per_repeat)), name=task.setup.store.path.name)
    if args.with_step:
        bench_step(task.setup, task.shape(), args, report)
