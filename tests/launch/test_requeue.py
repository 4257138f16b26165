"""After a stop: who is run again, and who never (law 6). The real Slurm's side is in tests/cluster."""

from pathlib import Path

import pytest

from mmsada_hpc.cluster.job_record import CANCELLED_FILE, JobRecord, add_job, read_jobs
from mmsada_hpc.cluster.requeue import decide, slurm_job_id, slurm_start_id, wait_to_be_ended

IN_JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "MMSADA_REQUEUE": "1"}


def test_outside_slurm_a_stop_is_the_end(tmp_path: Path) -> None:
    assert not decide(tmp_path, by_person=False, environ={}).requeue


def test_ctrl_c_in_a_job_is_the_end(tmp_path: Path) -> None:
    assert not decide(tmp_path, by_person=True, environ=IN_JOB).requeue


def test_a_cancelled_run_is_not_requeued_whatever_slurm_says(tmp_path: Path) -> None:
    (tmp_path / CANCELLED_FILE).touch()
    decision = decide(tmp_path, by_person=False, environ=IN_JOB)
    assert not decision.requeue and "was cancelled" in decision.why and "resume" in decision.why


@pytest.mark.parametrize(("state", "marks"), [("RUNNING||None", False), ("COMPLETING||None", True)])
def test_a_link_of_a_chain_is_not_requeued_and_a_cancelled_one_stops_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, marks: bool
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/bash\necho '7|{state}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    decision = decide(tmp_path, by_person=False, environ={**IN_JOB, "MMSADA_REQUEUE": "0"})
    assert not decision.requeue
    assert (tmp_path / CANCELLED_FILE).exists() == marks
    assert ("the next job of the run goes on" in decision.why) != marks


def test_ranks_that_were_started_inside_somebodys_job_leave_that_job_alone(tmp_path: Path) -> None:
    inside = {**IN_JOB, "SUBMITIT_EXECUTOR": "local"}
    assert slurm_start_id(inside) == "local"
    assert not decide(tmp_path, by_person=False, environ=inside).requeue


def test_a_slurm_that_does_not_answer_is_told_and_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    decision = decide(tmp_path, by_person=False, environ=IN_JOB)
    assert not decision.requeue and "squeue not found" in decision.why


def test_a_job_is_named_as_slurm_writes_it() -> None:
    assert slurm_job_id({}) is None
    assert slurm_start_id({}) == "local"
    assert slurm_start_id(IN_JOB) == "7.2"
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    assert slurm_start_id(array) == "7_1.0"


def test_waiting_to_be_ended_has_an_end() -> None:
    asked: list[bool] = []

    def told(answer: bool) -> bool:
        asked.append(answer)
        return answer

    wait_to_be_ended(lambda: told(False), patience_s=0.25)
    assert len(asked) > 1, "it looks again and again, and then gives up"
    asked.clear()
    wait_to_be_ended(lambda: told(True), patience_s=1000)
    assert asked == [True], "told, it leaves at once"


def test_jobs_of_a_run_are_kept_in_order_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    jobs = [
        JobRecord(
            job_id=name,
            submitted=1.0,
            nodes=1,
            tasks_per_node=2,
            minutes=5,
            stdout="out",
            stderr="err",
            code="",
            command="submit.py",
        )
        for name in ("1", "2_3")
    ]
    for job in jobs:
        add_job(tmp_path, job)
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"job_id": "3"')
    assert read_jobs(tmp_path) == jobs
