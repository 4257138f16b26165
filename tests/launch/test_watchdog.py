"""Who is to blame, by the heartbeats."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from mmsada_hpc.cluster.heartbeat import Beat, Heart, beat_path, read_beats
from mmsada_hpc.cluster.reach import without_answer
from mmsada_hpc.cluster.watchdog import blame
from mmsada_hpc.cluster.world import find_world

WAITS = Beat(0, "mn1", 10, "7.0", 3, 0.0, "agree", 1, 57)


def write(run_dir: Path, *beats: Beat) -> None:
    for beat in beats:
        path = beat_path(run_dir, beat.rank)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(beat)))


def test_a_rank_whose_heart_stands_still_is_named_first(tmp_path: Path) -> None:
    world = find_world({}, host="mn1")
    heart = Heart(tmp_path, world, start="7.0", seconds=0.05)
    heart.say("agree", stage=1, step=57)
    write(tmp_path, replace(WAITS, rank=1, host="mn2", pid=20, phase="step", step=56))
    said = blame(tmp_path, start="7.0", seconds=0.3, here="mn1")
    heart.close("end")
    assert said.startswith("no sign of life from rank 1 on mn2 (process 20, computing after step 56 of stage 1)"), said
    assert "1 other waits (waiting for the others after step 57 of stage 1)" in said


def test_a_rank_that_failed_is_named_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, WAITS, replace(WAITS, rank=1, host="mn2", phase="failed", why="disk full"))
    assert blame(tmp_path, start="7.0", seconds=0, here="mn1") == "rank 1 on mn2 failed: disk full"


def test_ranks_of_a_former_start_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, replace(WAITS, phase="end"), replace(WAITS, rank=1, start="7.1", phase="end"))
    assert blame(tmp_path, start="7.1", seconds=0, here="mn1") == "all hosts answer; all 1 ranks are alive, has ended"


def test_a_host_that_refuses_a_connection_has_answered() -> None:
    assert without_answer(["127.0.0.1"]) == []


def test_where_all_wait_alike_the_network_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path, replace(WAITS, phase="end"), replace(WAITS, rank=1, host="mn2.invalid", phase="end"))
    said = blame(tmp_path, start="7.0", seconds=0, here="mn1")
    assert said == "mn1 gets no answer from mn2.invalid: the network is cut; all 2 ranks are alive, has ended"


def test_a_beat_is_readable_at_any_time_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, WAITS)
    beat_path(tmp_path, 1).write_text("{")
    assert read_beats(tmp_path) == [WAITS]
