"""Which state a run is in, by what Slurm and its files say."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsada_hpc.cluster.squeue import Entry
from mmsada_hpc.jobs.facts import read_facts
from mmsada_hpc.jobs.find import Found
from mmsada_hpc.jobs.queue import Queue
from mmsada_hpc.jobs.state import Standing, stand
from tests.jobs.fake import FakeRun

SILENT = Queue(silent="squeue: no answer within 10 s")


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


def says(*entries: Entry) -> Queue:
    return Queue({entry.job_id: entry for entry in entries})


def standing(run: FakeRun, queue: Queue | None = None) -> Standing:
    return stand(read_facts(Found(run.path, "run")), queue or Queue())


def gone(job: str = "12") -> Queue:
    return says(Entry(job, "GONE"))


def test_a_pending_job_waits_for_the_reason_that_slurm_gives(run: FakeRun) -> None:
    run.job("12")
    assert standing(run, says(Entry("12", "PENDING", reason="Resources"))) == Standing("waiting", "Resources", "12")
    assert standing(run, says(Entry("12", "PENDING", reason="None"))).note == ""


def test_a_pending_job_that_had_begun_is_requeued(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "end")
    assert standing(run, says(Entry("12", "PENDING", reason="BeginTime"))) == Standing("requeued", "BeginTime", "12")
    assert standing(run, says(Entry("12", "REQUEUED"))).state == "requeued"


def test_a_running_job_is_starting_until_its_ranks_beat(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "end", ago=90)
    queue = says(Entry("12", "RUNNING", "mn[1-2]"))
    assert standing(run, queue) == Standing("running", "starting", "12")
    run.start("12.1-bb").beat("12.1-bb", 0, "step").beat("12.1-bb", 1, "agree")
    assert standing(run, queue) == Standing("running", "", "12")


def test_a_rank_that_is_silent_in_a_running_job_is_named(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "step").beat("12.0-aa", 1, "step", ago=200)
    found = standing(run, says(Entry("12", "RUNNING")))
    assert found.state == "running"
    assert found.note == "no sign of life from rank 1 on mn2 for 3:20"


def test_a_completing_job_is_saving(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "save")
    assert standing(run, says(Entry("12", "COMPLETING"))).state == "saving"
    run.cancelled()
    assert standing(run, says(Entry("12", "COMPLETING"))) == Standing("saving", "cancelled", "12")


def test_of_a_chain_the_job_that_runs_counts(run: FakeRun) -> None:
    run.job("12").job("13").job("14").start("12.0-aa").beat("12.0-aa", 0, "step")
    waits = [Entry(job, "PENDING", reason="Dependency") for job in ("13", "14")]
    assert standing(run, says(Entry("12", "RUNNING"), *waits)) == Standing("running", "2 more queued", "12")
    assert standing(run, says(Entry("12", "COMPLETED"), *waits)).job_id == "13"


def test_a_result_is_the_end_also_while_the_job_goes(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "end").result()
    assert standing(run, says(Entry("12", "COMPLETED"))).state == "finished"
    assert standing(run, gone()).state == "finished"
    assert standing(run, says(Entry("12", "COMPLETING"))).state == "finished"
    assert standing(run, SILENT).state == "finished"


def test_a_cancelled_run_is_told_by_its_marker_by_slurm_and_by_its_last_word(run: FakeRun, tmp_path: Path) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "end", ago=100)
    assert standing(run, says(Entry("12", "CANCELLED"))).state == "cancelled"
    assert standing(run, gone()).state == "stopped"
    run.cancelled()
    assert standing(run, gone()).state == "cancelled"
    other = FakeRun(tmp_path / "other").start("12.0-aa").beat("12.0-aa", 0, "end", ago=100)
    word = "not requeued: job 12 is COMPLETING, so it was cancelled; `submit.py resume x` goes on"
    other.job("12", err=f"stopped by SIGTERM after step 3 of stage 1; saved\n{word}\n")
    assert standing(other, gone()) == Standing("cancelled", word, "12")


def test_the_first_rank_that_failed_says_why(run: FakeRun) -> None:
    run.job("12").start("12.0-aa")
    run.beat("12.0-aa", 0, "lost", why="no sign of life from rank 1 on mn2").beat("12.0-aa", 1, "failed", why="CUDA\nx")
    assert standing(run, says(Entry("12", "FAILED"))) == Standing("failed", "rank 1 on mn2: CUDA", "12")


def test_a_job_that_failed_before_the_run_began_gives_the_error_it_printed(run: FakeRun) -> None:
    trace = "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'yaml'\n"
    run.job("12", err=f"submitit WARNING (x) - Bypassing signal\n{trace}srun: error: mn1: task 0: Exited with code 1\n")
    found = standing(run, says(Entry("12", "FAILED", reason="NonZeroExitCode")))
    assert found == Standing("failed", "ModuleNotFoundError: No module named 'yaml'", "12")


def test_an_error_that_only_submitit_has_kept_is_found_without_running_the_pickle(run: FakeRun) -> None:
    run.job("12", out="x")
    result = run.path / "submitit" / "12_0_result.pkl"
    trace = "Traceback\nmmsada_hpc.errors.UserError: data.store is not set\n"
    result.write_bytes(pickle.dumps(("error", trace)))
    assert standing(run, gone()) == Standing("failed", "data.store is not set", "12")
    result.write_bytes(pickle.dumps(("error", signal.SIGTERM)))  # names a class, which is not looked up
    assert standing(run, gone()).note == "job 12 is gone without a result"


def test_an_old_error_is_not_the_reason_of_a_later_end(run: FakeRun) -> None:
    run.job("12", err="error: disk full\njob 12 goes back to the queue, and on from there\n")
    assert "disk full" not in standing(run, says(Entry("12", "NODE_FAIL"))).note
    assert standing(run, says(Entry("12", "NODE_FAIL"))) == Standing("failed", "a node failed", "12")


def test_a_run_that_saved_and_was_not_to_go_on_is_stopped(run: FakeRun) -> None:
    run.job("12", err="stopped by SIGUSR2\nnot requeued, as MMSADA_REQUEUE=0: the next job of the run goes on\n")
    run.start("12.0-aa").beat("12.0-aa", 0, "end", ago=60)
    found = standing(run, says(Entry("12", "FAILED")))
    assert (found.state, found.note.partition(":")[0]) == ("stopped", "not requeued, as MMSADA_REQUEUE=0")


def test_a_run_whose_job_is_gone_and_whose_ranks_said_nothing_is_stale(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "step", ago=500)
    assert standing(run, gone()) == Standing("stale", "died without a word: nothing from rank 0 on mn1 for 8:20", "12")


def test_where_slurm_is_silent_the_files_say_what_they_can(run: FakeRun) -> None:
    run.job("12")
    assert standing(run, SILENT) == Standing("unknown", "job 12 has left no sign yet", "12")
    run.start("12.0-aa").beat("12.0-aa", 0, "step")
    assert standing(run, SILENT).state == "running"
    run.beat("12.0-aa", 0, "step", ago=500)
    assert standing(run, SILENT).state == "stale"


def test_beats_of_a_job_that_this_slurm_does_not_know_are_of_another_cluster(run: FakeRun) -> None:
    run.job("12").start("12.0-aa").beat("12.0-aa", 0, "step")
    assert standing(run, gone()) == Standing("running", "Slurm here does not know job 12", "12")
    assert standing(run, says(Entry("12", "FAILED"))).state == "failed"


def test_a_job_that_a_person_queued_by_hand_is_asked_about(run: FakeRun) -> None:
    run.start("77_3.2-aa").beat("77_3.2-aa", 0, "step")
    assert read_facts(Found(run.path, "run")).job_ids == ("77_3",)
    assert standing(run, says(Entry("77_3", "RUNNING"))) == Standing("running", "", "77_3")


def test_a_run_that_went_on_outside_slurm_is_not_judged_by_its_old_job(run: FakeRun) -> None:
    run.job("12", err="error: disk full\n", ago=5000).start("12.0-aa", ago=4000).start("local-bb", ago=100)
    run.beat("local-bb", 0, "step", host="elsewhere")
    assert standing(run, says(Entry("12", "FAILED"))) == Standing("running", "", None)
    run.beat("local-bb", 0, "end", host="elsewhere")
    assert standing(run, says(Entry("12", "FAILED"))) == Standing("stopped", "", None)


RANK = "import os, sys, time; f = os.open(sys.argv[1], 577); os.dup2(f, 1); os.dup2(f, 2); time.sleep(60)"


@pytest.fixture
def rank(run: FakeRun) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes where rank 0's goes."""
    process = subprocess.Popen([sys.executable, "-c", RANK, run.path / "run.log"])
    while not (run.path / "run.log").exists() or os.readlink(f"/proc/{process.pid}/fd/2") != f"{run.path}/run.log":
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_a_rank_of_this_host_is_alive_as_long_as_its_process_is(run: FakeRun, rank: subprocess.Popen[bytes]) -> None:
    run.start("local-aa", ranks=1).beat("local-aa", 0, "step", host=socket.gethostname(), pid=rank.pid, ago=500)
    assert standing(run).state == "running", "its thread that beats may be late"
    run.beat("local-aa", 0, "step", host=socket.gethostname(), pid=os.getpid())
    assert standing(run).state == "stale", "another process has its number now"
    rank.kill()
    rank.wait()
    run.beat("local-aa", 0, "step", host=socket.gethostname(), pid=rank.pid)
    assert standing(run).state == "stale"


def test_a_run_of_before_there_were_heartbeats_is_stopped(run: FakeRun) -> None:
    run.start("", ranks=1).steps(20)
    assert standing(run) == Standing("stopped", "", None)
