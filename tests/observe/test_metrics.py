"""metrics.jsonl holds whole rows only, whatever happened to the process that wrote them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.metrics import MetricsLog, read_metrics


def _train(step: int, **more: object) -> dict[str, object]:
    return {"kind": "train", "stage": 1, "step": step, "global_step": step, "loss": 1.0 / step, **more}


def test_rows_come_back_as_written_with_a_time(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", tensorboard=False, enabled=True) as log:
        log.write(_train(1))
        log.write(_train(2, time=5.0))
    rows = read_metrics(tmp_path / "run")
    assert [row["global_step"] for row in rows] == [1, 2]
    assert rows[0]["time"] > 1e9
    assert rows[1]["time"] == 5.0


def test_a_row_is_readable_while_the_log_is_open(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        log.write(_train(1))
        assert len(read_metrics(tmp_path)) == 1


def test_values_that_json_cannot_hold_become_null_and_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        log.write(
            _train(1, loss=math.nan, lr=np.float32(0.5), recall=[math.inf, np.int64(3)], top1=np.float64(math.nan))
        )

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert (row["loss"], row["lr"], row["recall"], row["top1"]) == (None, 0.5, [None, 3], None)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", tensorboard=True, enabled=False) as log:
        log.write(_train(1))
        log.truncate_after(0)
    assert not (tmp_path / "run").exists()


def test_resuming_replaces_the_rows_of_later_steps(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        log.write({"kind": "note", "global_step": 9, "text": "stays"})
        for step in (1, 2, 3):
            log.write(_train(step))
        log.write({"kind": "eval", "set": "target/test", "global_step": 3, "top1": 50.0})
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        log.truncate_after(2)
        log.write(_train(3, loss=7.0))
    rows = read_metrics(tmp_path)
    assert [(row["kind"], row["global_step"]) for row in rows] == [
        ("note", 9),
        ("train", 1),
        ("train", 2),
        ("train", 3),
    ]
    assert rows[-1]["loss"] == 7.0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_row_starts_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(_train(1)) + '\n{"kind": "train", "glob')
    assert [row["global_step"] for row in read_metrics(tmp_path)] == [1]
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        log.write(_train(2))
    assert [row["global_step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_whole_last_row_that_only_lacks_its_newline_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(_train(1)))
    with MetricsLog(tmp_path, tensorboard=False, enabled=True) as log:
        log.write(_train(2))
    assert [row["global_step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_damaged_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(_train(1))}\n{{{{\n{json.dumps(_train(3))}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        read_metrics(tmp_path)


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path} has no metrics\.jsonl"):
        read_metrics(tmp_path)


def test_tensorboard_gets_the_scalars_under_their_stage(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, tensorboard=True, enabled=True) as log:
        log.truncate_after(0)
        log.write(_train(1, loss=2.5, lr=None))
        log.write({"kind": "eval", "stage": 2, "set": "target/test", "step": 1, "global_step": 8, "top1": 40.0})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["stage1/loss", "stage2/target/test/top1"]
    assert [(event.step, event.value) for event in events.Scalars("stage2/target/test/top1")] == [(8, 40.0)]
