"""A training step fed by the loader beside the same step on clips in memory, by turns in one process: what the loader
costs where it shares the cores with the step.
"""

import argparse
import time
from collections.abc import Callable

from mmsada_hpc.bench.e2e_loop import Stopwatch
from mmsada_hpc.bench.e2e_overhead import BareLoop
from mmsada_hpc.bench.rows import SHOWN, Report, row
from mmsada_hpc.cluster.host import set_threads
from mmsada_hpc.config import config_hash
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import moment
from mmsada_hpc.train.setup import Setup

_STEPS, _QUICK_STEPS = 6, 2
_RESIDENT = 2
_IDLE_SECONDS = 0.2
_LONGEST_SECONDS = 20.0


def bench_step(setup: Setup, shape: str, args: argparse.Namespace, report: Report) -> None:
    """Steps of the config's model and precision. Fed steps are timed once what was made ahead is used up, so that each
    of them pays for decoding one batch.
    """
    set_threads(1)
    module = setup.new_module()
    loader = setup.train_loader(1, 0, features=module.network.feature_sizes)
    bare = BareLoop(module, setup.config.train)
    factors = module.method.factors(moment(setup.config.train, 1, 0))

    def step(batch: Batch) -> None:
        bare.update([batch], factors, lr=0.0, watched=Stopwatch(setup.device))

    resident = [loader.next() for _ in range(_RESIDENT)]
    step(resident[0])
    steps, ahead = (_QUICK_STEPS if args.quick else _STEPS), setup.config.data.prefetch + 1
    found: dict[str, list[tuple[float, float]]] = {"in memory": [], "fed": []}
    for _ in range(args.repeats):
        _settle()
        found["in memory"].append(_timed(lambda i: step(resident[i % _RESIDENT]), steps))
        for _ in range(ahead):
            step(loader.next())
        found["fed"].append(_timed(lambda i: step(loader.next()), steps))
    report.config_hash = config_hash(setup.config)
    config = setup.config
    size = f"{shape}, width {config.model.width:g} {config.train.precision}"
    _add_rows(size, found, report)


def _add_rows(size: str, found: dict[str, list[tuple[float, float]]], report: Report) -> None:
    ms, cpu = ({k: [1000 * one[i] for one in v] for k, v in found.items()} for i in (0, 1))
    plain = row("loader", f"step on clips in memory, {size}", ms["in memory"], "ms", better="lower")
    report.add(plain)
    report.add(row("loader", f"step fed by the loader, {size}", ms["fed"], "ms", better="lower", baseline=plain))
    over = [100 * (fed / kept - 1) for fed, kept in zip(ms["fed"], ms["in memory"], strict=True)]
    report.add(row("loader", f"fed over in memory, {size}", over, "%", better="lower"))
    decoding = [fed - kept for fed, kept in zip(cpu["fed"], cpu["in memory"], strict=True)]
    details = {SHOWN: "all cores together"}
    report.add(row("loader", f"decoding CPU of a step, {size}", decoding, "ms", better="lower", details=details))


def _timed(action: Callable[[int], object], times: int) -> tuple[float, float]:
    """Wall and CPU seconds of one call, the mean."""
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(times):
        action(i)
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def _settle() -> None:
    """Wait until the loader's threads rest."""
    begun, before = time.monotonic(), -1.0
    while (now := time.process_time()) - before > 0.02 and time.monotonic() - begun < _LONGEST_SECONDS:
        before = now
        time.sleep(_IDLE_SECONDS)
