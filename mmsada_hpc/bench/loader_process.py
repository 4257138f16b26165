"""Loaders in processes of their own, from the side that asks: start, measure together, end."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmsada_hpc.bench.loader_child import Measured, Request, Spec
from mmsada_hpc.errors import UserError

_START_SECONDS, _BATCH_SECONDS = 300.0, 60.0


@dataclass(frozen=True)
class LoaderProcess:
    """One such process, ready."""

    spec: Spec
    process: "subprocess.Popen[str]"

    def ask(self, request: Request) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says why it is gone
            self.process.stdin.write(json.dumps(asdict(request)) + "\n")
            self.process.stdin.flush()

    def answer(self, *, seconds: float) -> dict[str, Any]:
        """Its next line; UserError when it fails or takes longer than `seconds`."""
        assert self.process.stdout is not None
        alarm = threading.Timer(seconds, self.process.kill)
        alarm.start()
        line = self.process.stdout.readline()
        alarm.cancel()
        values: dict[str, Any] = json.loads(line) if line else {}
        if not values or "error" in values:
            why = values.get("error", f"ended without an answer (status {self.process.poll()}, limit {seconds:.0f} s)")
            raise UserError(f"bench loader: {self.spec.way}: {why}")
        return values


@contextlib.contextmanager
def loader_processes(specs: Sequence[Spec]) -> Iterator[list[LoaderProcess]]:
    """Start all of them, one after another, so that starting is no race."""
    with contextlib.ExitStack() as stack:
        found = []
        for spec in specs:
            process = stack.enter_context(_started(spec))
            found.append(LoaderProcess(spec, process))
            found[-1].answer(seconds=_START_SECONDS)
        yield found


@contextlib.contextmanager
def _started(spec: Spec) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "mmsada_hpc.bench.loader_child", json.dumps(asdict(spec))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def measure(processes: Sequence[LoaderProcess], request: Request) -> list[Measured]:
    """All of them at the same time."""
    for one in processes:
        one.ask(request)
    answers = [one.answer(seconds=_START_SECONDS + _BATCH_SECONDS * request.batches) for one in processes]
    return [Measured(**{**values, "rss_mb": tuple(values["rss_mb"])}) for values in answers]
