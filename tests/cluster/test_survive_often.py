"""What befalls a job on a cluster, many times: twenty preemptions, every fault three times. Takes half an hour."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.runs import WATCH, Run, assert_same_run, launcher, preempt, profile, submit, until
from tests.train.test_law1 import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SETTINGS = ("train.micro_batch=2", *WATCH, "eval.every=40", "checkpoint.every=30")
STEPS = ("train.stage1.steps=120", "train.stage2.steps=120")
# Kinds of preemption of four runs, 20 in all; a run with a limit of one minute meets it again and again.
PREEMPTED = {
    "by USR2": ("usr2",) * 6,
    "by a partition": ("partition",) * 6,
    "by both": ("usr2", "partition", "usr2", "partition", "usr2"),
}
NUM_LIMITS = 3
ONE_MINUTE = ("train.stage1.steps=240", "train.stage2.steps=60")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("often")


@pytest.fixture(autouse=True)
def _healed(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.heal()
    cluster.drain_jobs()


def queue(cluster: Cluster, store: Store, run_dir: Path, *more: str, flags: tuple[str, ...] = ()) -> Run:
    """A run on two nodes with two ranks each."""
    words = tiny_run(store, run_dir, *SETTINGS, *(more or STEPS))
    where = profile(run_dir.parent, nodes=2, tasks=2)
    return submit(cluster, words, "--cluster", where, *flags, run_dir=run_dir)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tiny_store: Store, folder: Path) -> Run:
    run = queue(cluster, tiny_store, folder / "undisturbed")
    run.wait_result()
    return run


@pytest.mark.parametrize("name", PREEMPTED)
def test_preempted_at_random_steps_a_run_ends_as_if_it_had_not_been(
    cluster: Cluster, tiny_store: Store, folder: Path, undisturbed: Run, name: str
) -> None:
    run = queue(cluster, tiny_store, folder / name.replace(" ", "_"))
    dice = random.Random(name)
    for number, kind in enumerate(PREEMPTED[name], start=1):
        run.wait_start(number)
        run.wait_step(run.step + dice.randint(1, 12))
        if kind == "usr2":
            run.signal("USR2")
        else:
            preempt(cluster, folder)
    run.wait_result(timeout=300)
    assert len(run.starts) == 1 + len(PREEMPTED[name])
    assert_same_run(run, undisturbed)


def test_a_time_limit_is_survived_as_often_as_it_comes(cluster: Cluster, tiny_store: Store, folder: Path) -> None:
    whole = queue(cluster, tiny_store, folder / "one_minute_undisturbed", *ONE_MINUTE)
    whole.wait_result(timeout=400)
    run = queue(cluster, tiny_store, folder / "one_minute", *ONE_MINUTE, flags=("--time", "1"))
    run.wait_result(timeout=600)
    assert len(run.starts) >= 1 + NUM_LIMITS
    assert run.said().count("stopped by SIGUSR2") == len(run.starts) - 1
    assert_same_run(run, whole)


Fault = Callable[[Cluster, Run], None]


def kill_a_rank(cluster: Cluster, run: Run) -> None:
    os.kill(run.pids()[3], signal.SIGKILL)


def stop_rank_0(cluster: Cluster, run: Run) -> None:
    os.kill(run.pids()[0], signal.SIGSTOP)


def cut_off_a_node(cluster: Cluster, run: Run) -> None:
    cluster.cut_off(cluster.nodes[1])


def kill_a_slurmd(cluster: Cluster, run: Run) -> None:
    cluster.kill_slurmd(cluster.nodes[1])


# Each with the seconds within which nothing of the job may run any more, and what must be said.
FAULTS: dict[str, tuple[Fault, float, str]] = {
    "a rank is killed": (kill_a_rank, 30, "rank 3 on {n2}"),
    "rank 0 hangs": (stop_rank_0, 60, "no sign of life from rank 0 on {n1}"),
    "a node is cut off": (cut_off_a_node, 90, "{n1} gets no answer from {n2}: the network is cut"),
    "a slurmd dies": (kill_a_slurmd, 90, "stopped by SIGTERM"),
}


@pytest.mark.parametrize("time_number", range(3))
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_the_job_within_its_bound_and_the_run_goes_on(
    cluster: Cluster, tiny_store: Store, folder: Path, undisturbed: Run, name: str, time_number: int
) -> None:
    inject, bound_s, told = FAULTS[name]
    run = queue(cluster, tiny_store, folder / f"{name.replace(' ', '_')}_{time_number}")
    run.wait_step(35 + 7 * time_number)
    pids, begin = run.pids(), time.monotonic()
    inject(cluster, run)
    until(lambda: not any(map(is_alive, pids.values())), timeout=bound_s, what="the end of every rank")
    took, done = time.monotonic() - begin, run.step
    cluster.heal()
    expected = told.format(n1=cluster.nodes[0], n2=cluster.nodes[1])
    said = run.said()
    assert expected in said, said[-3000:]
    run.go_on()
    run.wait_result(timeout=300)
    assert_same_run(run, undisturbed)
    begins = run.first_steps()
    note(
        folder,
        name,
        took_s=round(took, 1),
        lost_steps=done - begins[-1],
        restarted="by Slurm" if run.was_requeued else "by resume",
    )
    assert done - begins[-1] <= 30, "no more is lost than the work since the last checkpoint"


@pytest.mark.parametrize("time_number", range(3))
def test_a_full_disk_ends_the_job_and_the_run_goes_on_when_there_is_room(
    cluster: Cluster, tiny_store: Store, undisturbed: Run, folder: Path, time_number: int
) -> None:
    with cluster.small_disk(120) as disk:
        run = queue(cluster, tiny_store, disk / "run")
        run.wait_step(35)
        filler, begin = disk / "filler", time.monotonic()
        fill(filler)
        run.wait_gone(timeout=120)
        took, done = time.monotonic() - begin, run.step
        assert "No space left on device" in run.said()
        filler.unlink()
        run.go_on()
        run.wait_result(timeout=300)
        assert_same_run(run, undisturbed)
        note(
            folder,
            "the disk is full",
            took_s=round(took, 1),
            lost_steps=done - run.first_steps()[-1],
            restarted="by resume",
        )


@pytest.mark.parametrize("damage", ["flipped", "cut short", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    cluster: Cluster, tiny_store: Store, undisturbed: Run, folder: Path, damage: str
) -> None:
    run = queue(cluster, tiny_store, folder / f"damaged_{damage.replace(' ', '_')}", "checkpoint.keep=3", *STEPS)
    run.wait_step(95)
    launcher(cluster, "cancel", run.dir)
    run.wait_gone()
    newest = sorted((run.dir / "checkpoints").glob("stage*"))[-1]
    state = newest / "state.pt"
    if damage == "flipped":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    elif damage == "cut short":
        os.truncate(state, state.stat().st_size // 2)
    else:
        (newest / "manifest.json").unlink()
    done = run.step
    run.go_on()
    run.wait_result(timeout=300)
    assert f"{newest} is damaged" in run.said()
    assert_same_run(run, undisturbed)
    note(folder, f"checkpoint {damage}", lost_steps=done - run.first_steps()[-1], restarted="by resume")


def test_four_ranks_go_on_as_two_and_as_one(
    cluster: Cluster, tiny_store: Store, undisturbed: Run, folder: Path
) -> None:
    run = queue(cluster, tiny_store, folder / "elastic")
    for flags in (("--nodes", "1"), ("--nodes", "1", "--tasks-per-node", "1")):
        run.wait_start(len(run.starts) or 1)
        run.wait_step(run.step + 20)
        launcher(cluster, "cancel", run.dir)
        run.wait_gone()
        launcher(cluster, "resume", run.dir, *flags)
        run.wait_start(len(run.starts) + 1)
    result = run.wait_result(timeout=600)
    assert [start["world_size"] for start in run.starts] == [4, 2, 1]
    assert result["steps"] == 240
    first, second = run.first_steps()[1:]
    for step in (first, second):
        print(step, run.rows("train")[step]["loss"], undisturbed.rows("train")[step]["loss"])
    ours, theirs = run.rows("train")[first]["loss"], undisturbed.rows("train")[first]["loss"]
    assert ours == pytest.approx(theirs, rel=1e-6)


def is_alive(pid: int) -> bool:
    """A process that runs or is stopped; one that only waits to be collected is gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def fill(path: Path) -> None:
    """Until there is no room left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def note(folder: Path, fault: str, **figures: object) -> None:
    """A row of the table of faults; `pytest -rP` shows it."""
    print(json.dumps({"fault": fault, **figures}))
    with (folder.parent / "faults.jsonl").open("a") as file:
        file.write(json.dumps({"fault": fault, **figures}) + "\n")
