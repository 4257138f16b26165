"""One loader in a process of its own, measured when it is told to: what `mmsada bench loader` compares.

`python -m mmsada_hpc.bench.loader_child SPEC` builds the loader and writes `{"ready": ...}`; each line on standard
input is a request, answered by one line. SPEC and requests are JSON of the classes here.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from mmsada_hpc.bench.loader_plain import PREFETCH, Decoder, plain_loader
from mmsada_hpc.bench.start import evict
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.config import load_config
from mmsada_hpc.data.loader import Loader
from mmsada_hpc.data.schedule import TrainSchedule
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.train.setup import Setup

WAYS = ("DALI", "DALI graph", "OpenCV", "PIL")
_MB = 1e6
_IDLE_SECONDS, _LONGEST_SECONDS = 0.2, 20.0


@dataclass(frozen=True)
class Spec:
    """What is measured. `rank` of `ranks` that share the host see their own clips."""

    way: str
    store: str
    overrides: tuple[str, ...]
    threads: int
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Request:
    """Time `batches`, after `forget` has put the shards out of the page cache; or, with `memory`, only watch it."""

    batches: int
    forget: bool = False
    memory: bool = False


@dataclass(frozen=True)
class Measured:
    """Of one request. CPU seconds are of this process and its workers, per batch made; memory likewise, in 1e6 bytes
    (`pss_mb` counts what processes share once). `rss_mb` of this process at the start, the middle and the end.
    """

    seconds: float
    batches: int
    cpu_s_per_batch: float
    read_mb: float
    pss_mb: float
    rss_mb: tuple[float, ...]


def bench_setup(store: str, overrides: tuple[str, ...]) -> Setup:
    """A run on the store's first two domains, unless `overrides` name others.

    Raises:
        UserError: the store has only one, or does not go with `overrides`.
    """
    opened = Store.open(store)
    if len(opened.manifest.domains) < 2:
        raise UserError(f"{store}: has only the domain {opened.manifest.domains[0]}; a source and a target are needed")
    source, target = opened.manifest.domains[:2]
    names = [f"data.store={store}", f"data.source=[{source}]", f"data.target=[{target}]"]
    setup = Setup(load_config(None, [*names, *overrides]), opened, find_world({}, host="alone"))
    setup.planner  # noqa: B018  # whether windows fit is found out here
    return setup


class Measurer:
    """A loader, and the means to measure it from rest to rest: nothing that was made ahead is counted as made."""

    def __init__(self, spec: Spec) -> None:
        torch.set_num_threads(spec.threads if spec.way.startswith("DALI") else 1)
        setup = bench_setup(spec.store, spec.overrides)
        # Ranks begin a thousand updates apart, so that none decodes what another has just read.
        schedule = TrainSchedule(setup.planner, setup.layout, 0, 1, 1000 * spec.rank)
        self._processes = [psutil.Process()]
        self._files = [setup.store.path / entry.file for entry in setup.store.manifest.shards]
        self._next, self._ahead = self._build(spec, setup, schedule)
        self._make(self._ahead + 1)
        self._processes += self._processes[0].children(recursive=True)

    def _build(self, spec: Spec, setup: Setup, schedule: TrainSchedule) -> tuple[Callable[[], object], int]:
        """What gives the next batch, and how many are made ahead."""
        settings = dataclasses.replace(setup.decoding, threads=spec.threads)
        if spec.way.startswith("DALI"):
            if spec.way == "DALI graph":
                settings = dataclasses.replace(settings, finish="graph")
            loader = Loader(setup.store, schedule, settings)
            return loader.next, settings.prefetch + 1
        decoder: Decoder = "PIL" if spec.way == "PIL" else "OpenCV"
        batches = iter(plain_loader(setup.store, schedule, settings, decoder, workers=spec.threads))
        return lambda: next(batches), PREFETCH * spec.threads

    def measure(self, request: Request) -> Measured:
        self._settle()
        if request.forget:
            evict(self._files)
        cpu, read = self._cpu(), self._read()
        rss = [self._rss()]
        self._make(0 if request.memory else self._ahead)
        begun = time.perf_counter()
        for _ in range(2):
            self._make(request.batches // 2)
            rss.append(self._rss())
        self._make(request.batches % 2)
        seconds = time.perf_counter() - begun
        self._settle()
        made = request.batches + (0 if request.memory else self._ahead)
        cpu_s, read_mb = (self._cpu() - cpu) / made, (self._read() - read) / _MB
        pss = sum(process.memory_full_info().pss for process in self._processes) / _MB  # slow, so it comes last
        return Measured(seconds, request.batches, cpu_s, read_mb, pss, tuple(rss))

    def _make(self, batches: int) -> None:
        for _ in range(batches):
            self._next()

    def _settle(self) -> None:
        """Wait until everything that is made ahead is made."""
        begun, before = time.monotonic(), -1.0
        while (now := self._cpu()) - before > 0.02 and time.monotonic() - begun < _LONGEST_SECONDS:
            before = now
            time.sleep(_IDLE_SECONDS)

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return sum(one.user + one.system for one in times)

    def _read(self) -> int:
        return sum(int(process.io_counters().read_bytes) for process in self._processes)

    def _rss(self) -> float:
        return float(self._processes[0].memory_info().rss / _MB)


def main(words: str) -> int:
    """Serve until standard input ends."""
    values = json.loads(words)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        measurer = Measurer(Spec(**{**values, "overrides": tuple(values["overrides"])}))
        answer({"ready": True})
        for line in sys.stdin:
            answer(asdict(measurer.measure(Request(**json.loads(line)))))
    except UserError as error:
        answer({"error": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
