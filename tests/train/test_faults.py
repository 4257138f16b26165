"""A rank that dies or hangs: the others end within a bound and say which rank, on which host, and where it was."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mmsada_hpc.cluster.heartbeat import Beat, read_beats
from mmsada_hpc.data.store import Store
from mmsada_hpc.observe.goodput import read_goodput
from tests.train.ranks import free_port
from tests.train.test_law1 import rows, tiny_run

LONG = ("train.stage1.steps=500", "train.stage2.steps=0", "eval.every=0", "checkpoint.every=2")
WATCH = ("watch.step_seconds=4", "watch.heartbeat_seconds=0.5")


class Ranks:
    """Two ranks that nobody looks after, as they would be on two hosts."""

    def __init__(self, words: tuple[str, ...], run_dir: Path) -> None:
        self.run_dir = run_dir
        port = str(free_port())
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "mmsada_hpc.cli", "train", *words],
                env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(2)
        ]
        self.wait_for(lambda: any(row["step"] >= 3 for row in rows(run_dir)) if self.has_begun else False)

    @property
    def has_begun(self) -> bool:
        return (self.run_dir / "metrics.jsonl").exists()

    def wait_for(self, is_so: Callable[[], bool], *, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, [p.poll() for p in self.processes]
            time.sleep(0.05)

    def end_of(self, rank: int, *, within: float) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self.processes[rank].communicate(timeout=within)
        return self.processes[rank].returncode, errors


@pytest.fixture
def ranks(tiny_store: Store, tmp_path: Path) -> Iterator[Ranks]:
    started = Ranks(tiny_run(tiny_store, tmp_path / "run", *LONG, *WATCH), tmp_path / "run")
    yield started
    for process in started.processes:
        process.kill()
        process.communicate()


def test_a_killed_rank_is_named_and_the_run_goes_on_from_its_checkpoint(
    ranks: Ranks, tiny_store: Store, tmp_path: Path
) -> None:
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    code, said = ranks.end_of(0, within=20)
    assert code != 0
    assert re.search(rf"rank 0 on {socket.gethostname()} lost contact .*no sign of life from rank 1 on ", said), said
    assert "submit.py resume" in said
    done = max(row["global_step"] for row in rows(tmp_path / "run"))
    kept = sorted((tmp_path / "run/checkpoints").glob("stage*"))[-1]
    assert done - int(kept.name[-8:]) <= 3, "no more is lost than the work since the last checkpoint"


def test_a_rank_that_hangs_is_named_with_the_stacks_of_the_others(ranks: Ranks, tmp_path: Path) -> None:
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    code, said = ranks.end_of(0, within=30)
    assert code != 0
    assert "no sign of life from rank 1" in said
    log = (tmp_path / "run/run.log").read_text()
    assert "has waited for 4 s" in log
    assert re.search(r'File ".*mmsada_hpc/train/loop.py", line \d+ in _update', log), "where it waits"


def test_a_rank_that_is_slow_is_waited_for_and_known_by_its_score(ranks: Ranks, tmp_path: Path) -> None:
    pid = ranks.processes[1].pid
    for _ in range(16):  # for most of the time it is not there
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    assert [p.poll() for p in ranks.processes] == [None, None]
    before = max(row["step"] for row in rows(tmp_path / "run"))
    ranks.wait_for(lambda: max(row["step"] for row in rows(tmp_path / "run")) > before)
    for process in ranks.processes:
        process.send_signal(signal.SIGTERM)
    for rank in (0, 1):
        ranks.end_of(rank, within=30)
    account = read_goodput(tmp_path / "run")
    assert account is not None
    assert [s.rank for s in account.stragglers] == [0, 1]
    assert account.stragglers[1].score > 1.2 * account.stragglers[0].score


def test_heartbeats_say_where_each_rank_is(ranks: Ranks, tmp_path: Path) -> None:
    first = read_beats(tmp_path / "run")
    assert [beat.rank for beat in first] == [0, 1]
    assert [beat.pid for beat in first] == [p.pid for p in ranks.processes]
    time.sleep(1.5)

    def moves(before: Beat, after: Beat) -> bool:
        return after.count > before.count and (after.stage, after.step) > (before.stage, before.step)

    assert all(moves(a, b) for a, b in zip(first, read_beats(tmp_path / "run"), strict=True))


def test_a_start_that_was_taken_over_writes_no_more(ranks: Ranks, tmp_path: Path) -> None:
    """As a node that was cut off, and whose job runs elsewhere by now."""
    claim = tmp_path / "run/claim.json"
    claim.write_text('{"start": "other.1", "host": "mn9"}')
    code, said = ranks.end_of(0, within=30)
    assert code != 0
    assert "taken over by another start of this run (other.1 on mn9)" in said
    assert ranks.end_of(1, within=30)[0] != 0


def test_a_warning_signal_to_every_process_leaves_the_readers_alive_and_saves(
    tiny_store: Store, tmp_path: Path
) -> None:
    """Slurm may signal every process of a job, the decoders' readers too (D34)."""
    run = Ranks(tiny_run(tiny_store, tmp_path / "run", *LONG, *WATCH, "data.readers=1"), tmp_path / "run")
    everything = [p for rank in run.processes for p in psutil.Process(rank.pid).children(recursive=True)]
    assert len(everything) >= 4, "a reader a stream and rank, at least"
    for process in (*everything, *(psutil.Process(rank.pid) for rank in run.processes)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR2)
    ends = [run.end_of(rank, within=60) for rank in (0, 1)]
    assert [code for code, _ in ends] == [128 + signal.SIGUSR2] * 2
    saved = sorted((tmp_path / "run/checkpoints").glob("stage*"))[-1]
    assert int(saved.name[-8:]) == max(row["step"] for row in rows(tmp_path / "run"))
