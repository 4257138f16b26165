"""The ledger accounts for all of a run's time, over starts, stops and kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsada_hpc.observe.goodput import PARTS, Goodput, Ledger, read_goodput, straggler_scores
from mmsada_hpc.observe.metrics import MetricsLog, read_metrics

FOREVER = 1e6


@dataclass
class History:
    """A run under a clock that is moved by hand, and the truth about it in seconds."""

    folder: Path
    now: float = 1000.0
    step: int = 0
    saved: int = 0
    first: float = 0.0
    last_seen: float = 0.0
    waited: float = 0.0
    rows: list[tuple[int, str, float, float]] = field(default_factory=list)
    """Step, kind, seconds and wait of the work that was kept so far."""
    lost_s: float = 0.0
    lost_steps: int = 0

    def clock(self) -> float:
        return self.now

    @contextmanager
    def start(self, *, killed: bool = False, ended: str = "stopped", world_size: int = 2) -> Iterator[Attempt]:
        """One start that goes on from the last checkpoint; killed without a word, or closed."""
        if self.last_seen:
            self.waited += self.now - self.last_seen
        self.first = self.first or self.now
        self.last_seen = self.now
        hosts = [f"node{rank}" for rank in range(world_size)]
        with MetricsLog(self.folder, tensorboard=False, enabled=True) as log:
            ledger = Ledger(
                self.folder,
                start="local",
                world_size=world_size,
                hosts=hosts,
                enabled=True,
                flush_seconds=FOREVER,
                clock=self.clock,
            )
            whole = self.saved or -1
            ledger.lost(log.truncate_after(whole))
            lost = [row for row in self.rows if row[0] > whole]
            self.rows = [row for row in self.rows if row[0] <= whole]
            self.lost_s += sum(row[2] for row in lost)
            self.lost_steps += sum(row[1] == "train" for row in lost)
            self.step = self.saved
            yield Attempt(self, ledger, log, [1.0] * world_size)
            if killed:
                as_it_was = (self.folder / "goodput.jsonl").read_bytes()
                ledger.close("killed")
                (self.folder / "goodput.jsonl").write_bytes(as_it_was)
            else:
                ledger.close(ended)
                self.last_seen = self.now

    def read(self) -> Goodput:
        found = read_goodput(self.folder)
        assert found is not None
        return found


@dataclass
class Attempt:
    """What happens within one start."""

    run: History
    ledger: Ledger
    log: MetricsLog
    own_s: list[float]

    def idle(self, seconds: float) -> None:
        self.run.now += seconds

    def update(self, seconds: float, *, wait: float = 0.0, flushed_at: float | None = None) -> None:
        self.run.step += 1
        if flushed_at is not None:
            self.run.now += flushed_at * seconds
            self.flush()
            self.run.now -= flushed_at * seconds
        self.run.now += seconds
        row = {"kind": "train", "global_step": self.run.step, "step_s": seconds, "data_wait_s": wait}
        self.log.write({**row, "time": self.run.now})
        self.ledger.step(row, self.own_s)
        self.run.rows.append((self.run.step, "train", seconds, wait))
        self.run.last_seen = self.run.now

    def evaluate(self, seconds: float, *, flushed_at: float | None = None) -> None:
        with self.ledger.spend("evaluate"):
            if flushed_at is not None:
                self.run.now += flushed_at * seconds
                self.flush()
                self.run.now -= flushed_at * seconds
            self.run.now += seconds
            row = {"kind": "eval", "set": "target/test", "global_step": self.run.step, "seconds": seconds}
            self.log.write({**row, "time": self.run.now})
        self.run.rows.append((self.run.step, "eval", seconds, 0.0))
        self.run.last_seen = self.run.now

    def save(self, seconds: float) -> None:
        with self.ledger.spend("checkpoint"):
            self.run.now += seconds
        self.run.saved = self.run.step

    def flush(self) -> None:
        self.ledger.flush()
        self.run.last_seen = max(self.run.last_seen, self.run.now)


def parts_of(goodput: Goodput) -> dict[str, float]:
    return {name: getattr(goodput, name) for name in PARTS}


def test_every_second_of_a_quiet_run_has_a_name(tmp_path: Path) -> None:
    run = History(tmp_path)
    with run.start(ended="finished") as attempt:
        attempt.idle(20)
        attempt.evaluate(5)
        for _ in range(4):
            attempt.update(10, wait=1)
        attempt.save(3)
        attempt.idle(2)
    found = run.read()
    assert parts_of(found) == pytest.approx(
        {
            "useful_s": 36, "data_wait_s": 4, "evaluate_s": 5, "checkpoint_s": 3, "start_s": 20, "restart_s": 0,
            "lost_s": 0, "other_s": 2,
        }
    )  # fmt: skip
    assert [found.total_s, found.goodput, found.starts, found.lost_steps] == pytest.approx([70, 36 / 70, 1, 0])


def test_a_killed_start_loses_the_work_since_its_checkpoint_and_the_wait_for_the_next_is_named(tmp_path: Path) -> None:
    run = History(tmp_path)
    with run.start(killed=True) as attempt:
        attempt.idle(20)
        attempt.update(10, wait=1)
        attempt.save(2)
        attempt.flush()
        attempt.update(10, wait=3)
        attempt.evaluate(4)
        attempt.idle(8)  # nobody can know of these: no row, no flush
    run.now += 100
    with run.start(ended="finished") as attempt:
        attempt.idle(15)
        attempt.update(10, wait=1)
    found = run.read()
    assert parts_of(found) == pytest.approx(
        {
            "useful_s": 18, "data_wait_s": 2, "evaluate_s": 0, "checkpoint_s": 2, "start_s": 35, "restart_s": 108,
            "lost_s": 14, "other_s": 0,
        }
    )  # fmt: skip
    assert found.lost_steps == 1
    first, second = found.history
    assert [first.ended, second.ended] == [None, "finished"]
    assert [first.steps, first.lost_steps, first.lost_s] == pytest.approx([2, 1, 14])
    assert [second.steps, second.lost_steps, second.restart_s] == pytest.approx([1, 0, 108])


TENTHS = st.integers(0, 400).map(lambda tenths: tenths / 10)
MOMENT = st.none() | st.integers(0, 9).map(lambda tenths: tenths / 10)
DEED = st.one_of(
    st.tuples(st.just("update"), TENTHS, st.integers(0, 10).map(lambda tenths: tenths / 10), MOMENT),
    st.tuples(st.just("evaluate"), TENTHS, st.just(0.0), MOMENT),
    st.tuples(st.sampled_from(["save", "idle", "flush"]), TENTHS, st.just(0.0), st.none()),
)
START = st.tuples(st.lists(DEED, max_size=12), st.sampled_from(["killed", "stopped", "failed"]), TENTHS, TENTHS)


@settings(max_examples=50, deadline=None)
@given(starts=st.lists(START, min_size=1, max_size=5))
def test_the_parts_add_up_to_the_time_from_the_first_begin_to_the_last_sign(
    starts: list[tuple[list[tuple[str, float, float, float | None]], str, float, float]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = History(tmp_path_factory.mktemp("run"))
    for deeds, ending, setup_s, gap_s in starts:
        with run.start(killed=ending == "killed", ended=ending) as attempt:
            attempt.idle(0.1 + setup_s)
            for name, seconds, share, moment in deeds:
                if name == "update":
                    attempt.update(seconds, wait=share * seconds, flushed_at=moment)
                elif name == "evaluate":
                    attempt.evaluate(seconds, flushed_at=moment)
                elif name == "flush":
                    attempt.flush()
                else:
                    getattr(attempt, name)(seconds)
        run.now += 0.1 + gap_s
    found, slack = run.read(), pytest.approx
    parts = parts_of(found)
    assert sum(parts.values()) == slack(found.total_s)
    assert min(parts.values()) >= 0
    assert found.total_s == slack(run.last_seen - run.first, abs=0.01)
    assert found.restart_s == slack(run.waited, abs=0.01)
    kept = [row for row in run.rows if row[1] == "train"]
    assert found.data_wait_s == slack(sum(row[3] for row in kept), abs=0.01)
    assert found.useful_s == slack(sum(row[2] - row[3] for row in kept), abs=0.01)
    assert [found.lost_steps, found.lost_s] == slack([run.lost_steps, run.lost_s], abs=0.01)
    assert sum(part.total_s + part.restart_s for part in found.history) == slack(found.total_s)
    assert found.goodput == slack(found.useful_s / found.total_s if found.total_s else 0.0)


def test_what_has_not_been_flushed_is_found_again_before_it_is_dropped(tmp_path: Path) -> None:
    run = History(tmp_path)
    with run.start(killed=True) as attempt:
        attempt.idle(1)
        for _ in range(5):
            attempt.update(2)
    with run.start(killed=True) as attempt:
        attempt.idle(1)
    found = run.read()
    assert [found.lost_steps, found.lost_s, found.useful_s] == pytest.approx([5, 10, 0])


def test_a_start_that_still_runs_is_shown_up_to_its_latest_step(tmp_path: Path) -> None:
    run = History(tmp_path)
    with run.start() as attempt:
        attempt.idle(5)
        attempt.update(2)
        attempt.update(3)
        live = run.read()
        assert (live.useful_s, live.start_s, live.total_s) == pytest.approx((5, 5, 10))
        assert live.history[0].ended is None


def test_a_long_evaluation_is_named_while_it_goes_on(tmp_path: Path) -> None:
    run = History(tmp_path)
    with run.start() as attempt:
        attempt.update(1)
        with attempt.ledger.spend("evaluate"):
            attempt.idle(40)
            attempt.flush()
            assert run.read().evaluate_s == pytest.approx(40)
            with attempt.ledger.spend("checkpoint"):
                attempt.idle(2)
            attempt.idle(1)
    assert (run.read().evaluate_s, run.read().checkpoint_s) == pytest.approx((41, 2))


def test_work_from_before_there_was_a_ledger_is_in_no_sum(tmp_path: Path) -> None:
    run = History(tmp_path)
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        for step in range(1, 6):
            log.write({"kind": "train", "global_step": step, "step_s": 100.0, "data_wait_s": 0.0, "time": 500.0 + step})
    with run.start() as attempt:
        attempt.idle(1)
        attempt.update(4)
    found = run.read()
    assert (found.total_s, found.useful_s, found.lost_s, found.lost_steps) == pytest.approx((5, 4, 0, 0))


def test_two_starts_of_one_process_follow_each_other(tmp_path: Path) -> None:
    begun = time.time() - 50
    for _ in range(2):
        with Ledger(tmp_path, start="local", world_size=1, hosts=["a"], enabled=True, begun=begun) as ledger:
            ledger.step({"step_s": 0.001, "data_wait_s": 0.0, "global_step": 1}, [0.001])
    found = read_goodput(tmp_path)
    assert found is not None
    assert found.starts == 2
    assert 50 <= found.total_s < 60
    assert found.history[0].start_s >= 49
    assert found.history[1].start_s < 5


KILLED = """
import sys, time
from pathlib import Path
from mmsada_hpc.observe.goodput import Ledger
from mmsada_hpc.observe.metrics import MetricsLog
folder = Path(sys.argv[1])
log = MetricsLog(folder, tensorboard=False, enabled=True)
ledger = Ledger(folder, start="7.0", world_size=1, hosts=["a"], enabled=True, flush_seconds=0.2)
ledger.lost([])
with ledger.spend("checkpoint"):
    time.sleep(0.3)
for step in range(1, 10_000):
    time.sleep(0.02)
    row = {"kind": "train", "global_step": step, "step_s": 0.02, "data_wait_s": 0.005}
    log.write(row)
    ledger.step(row, [0.01])
    print(step, flush=True)
"""


def test_a_kill_takes_no_step_and_at_most_the_latest_flush_interval_of_the_rest(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 40:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    found, rows = read_goodput(tmp_path), read_metrics(tmp_path)
    assert found is not None
    assert len(rows) >= 40
    assert found.history[0].steps == len(rows)
    assert found.useful_s == pytest.approx(0.015 * len(rows), rel=1e-3)
    assert 0.3 <= found.checkpoint_s < 0.5
    assert found.history[0].ended is None
    for line in (tmp_path / "goodput.jsonl").read_text().splitlines():
        json.loads(line)


FULL = """
import resource, sys
from pathlib import Path
from mmsada_hpc.observe.goodput import Ledger
folder = Path(sys.argv[1])
ledger = Ledger(folder, start="7.0", world_size=1, hosts=["a"], enabled=True, flush_seconds=1000)
size = (folder / "goodput.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, -1))
for step in range(3):
    ledger.step({"step_s": 0.5, "data_wait_s": 0.0, "global_step": step}, [0.5])
    ledger.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
ledger.close("finished")
"""


def test_a_disk_without_room_is_told_once_and_a_torn_line_hurts_no_other(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("goodput.jsonl: cannot be written (File too large); the run goes on") == 1
    assert len(done.stderr.splitlines()) == 1
    lines = (tmp_path / "goodput.jsonl").read_text().splitlines()
    assert len(lines) == 3
    with pytest.raises(ValueError, match=r"Unterminated|delimiter|value"):
        json.loads(lines[1])
    found = read_goodput(tmp_path)
    assert found is not None
    assert (found.history[0].ended, found.history[0].steps) == ("finished", 3)


@pytest.mark.parametrize(
    "line", ["7", "{}", '{"start": "1", "begun": "x", "seen": 2}', '{"start": 1', '{"begun": NaN}']
)
def test_lines_that_are_no_rows_are_left_out(tmp_path: Path, line: str) -> None:
    row = '{"start": "1.0", "begun": 10, "seen": 14, "ended": "finished", "steps": 1, "useful_s": 3, "later": 1}'
    (tmp_path / "goodput.jsonl").write_text(f"{line}\n{row}\n{line}")
    found = read_goodput(tmp_path)
    assert found is not None
    assert (found.starts, found.useful_s, found.other_s) == (1, 3, 1)


def test_a_run_without_a_ledger_has_no_goodput(tmp_path: Path) -> None:
    assert read_goodput(tmp_path) is None
    (tmp_path / "goodput.jsonl").write_text("torn")
    assert read_goodput(tmp_path) is None


def test_other_ranks_note_nothing_and_start_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with Ledger(tmp_path / "run", start="1.0", world_size=2, hosts=["a", "b"], enabled=False) as ledger:
        ledger.lost([])
        with ledger.spend("evaluate"):
            ledger.step({"step_s": 1.0}, [1.0, 1.0])
        assert threading.active_count() == before
    assert not (tmp_path / "run").exists()


def test_an_error_ends_the_start_as_failed_and_an_earlier_word_stands(tmp_path: Path) -> None:
    for word in ("failed", "stopped", "finished"):
        ledger = Ledger(tmp_path / word, start="1.0", world_size=1, hosts=["a"], enabled=True)
        with contextlib.suppress(ZeroDivisionError), ledger:
            if word == "stopped":
                ledger.close(word)
            if word != "finished":
                raise ZeroDivisionError
        found = read_goodput(tmp_path / word)
        assert found is not None
        assert found.history[0].ended == word


def test_the_account_is_written_by_itself_as_time_goes_by(tmp_path: Path) -> None:
    with Ledger(tmp_path, start="1.0", world_size=1, hosts=["a"], enabled=True, flush_seconds=0.02) as ledger:
        ledger.step({"step_s": 0.5, "global_step": 1}, [0.5])
        end = time.monotonic() + 10
        while '"steps": 1' not in (tmp_path / "goodput.jsonl").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        assert '"steps": 1' in (tmp_path / "goodput.jsonl").read_text()


def test_a_straggler_is_scored_against_the_median_rank() -> None:
    assert straggler_scores([1.0, 1.0, 1.0, 3.0]) == [1.0, 1.0, 1.0, 3.0]
    assert straggler_scores([2.0, 4.0, 8.0]) == [0.5, 1.0, 2.0]
    assert straggler_scores([1.0, 3.0]) == [0.5, 1.5]
    assert straggler_scores([0.0, 0.0]) == [1.0, 1.0]
    assert straggler_scores([5.0]) == [1.0]
    assert straggler_scores([]) == []


def test_stragglers_show_the_latest_steps_and_the_whole_start_beside(tmp_path: Path) -> None:
    run = History(tmp_path)
    with run.start(world_size=3) as attempt:
        for _ in range(100):
            attempt.update(1)
        attempt.own_s[1] = 4.0
        for _ in range(50):
            attempt.update(1)
    found = run.read()
    assert [(s.rank, s.host, s.own_s, s.score) for s in found.stragglers] == [
        (0, "node0", 1.0, 1.0),
        (1, "node1", 4.0, 4.0),
        (2, "node2", 1.0, 1.0),
    ]
    assert found.whole_start[1].own_s == 2.0


def test_a_run_may_go_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    run = History(tmp_path)
    for size in (4, 2):
        with run.start(world_size=size) as attempt:
            attempt.update(1)
            attempt.save(0.1)
    assert [part.ranks for part in run.read().history] == [4, 2]
    assert len(run.read().stragglers) == 2
