"""`bench curves` says how far apart the losses of runs are that should be alike."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmsada_hpc.cli import main


def write_run(folder: Path, losses: Sequence[float], *, stage_1: int) -> Path:
    """A run folder with a row for every update, and an evaluation that is none."""
    folder.mkdir()
    rows: list[dict[str, object]] = [
        {"kind": "train", "stage": 1 if step <= stage_1 else 2, "step": step, "loss": loss, "loss_ce": loss / 2}
        for step, loss in enumerate(losses, start=1)
    ]
    lines = [json.dumps(row) + "\n" for row in [*rows, {"kind": "eval", "stage": 2, "top1": 50.0}]]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_a_constant_distance_is_found_whatever_the_smoothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "fp32", [2.0] * 10 + [1.0] * 10, stage_1=10)
    other = write_run(tmp_path / "bf16", [2.1] * 10 + [1.1] * 8, stage_1=10)
    picture = tmp_path / "new/curves.png"
    assert main(["bench", "curves", str(one), str(other), "--window", "5", "--out", str(picture)]) == 0
    total, classification = capsys.readouterr().out.splitlines()[:2]
    assert "bf16 against fp32, total loss: 0.1000 apart in the mean over 18 updates" in total
    assert "classification loss: 0.0500" in classification
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_noise_that_smoothing_takes_away_is_no_distance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    up_and_down = [1.0 + 0.5 * (-1) ** step for step in range(40)]
    one = write_run(tmp_path / "a", [1.0] * 40, stage_1=40)
    other = write_run(tmp_path / "b", up_and_down, stage_1=40)
    for window, expected in (("1", 0.5), ("21", 0.03)):
        assert main(["bench", "curves", str(one), str(other), "--window", window]) == 0
        found = float(capsys.readouterr().out.split("total loss: ")[1].split()[0])
        assert found == pytest.approx(expected, abs=0.01)


def test_what_cannot_be_compared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_run(tmp_path / "a", [1.0] * 4, stage_1=4), write_run(tmp_path / "b", [1.0] * 4, stage_1=2)
    (tmp_path / "empty").mkdir()
    cases: list[tuple[list[object], str]] = [
        ([one], "two or more runs"),
        ([one, other], "change the stage at different updates"),
        ([one, tmp_path / "empty"], "has no metrics.jsonl"),
        ([one, one, "--window", "0"], "--window"),
        ([one, one, "--out", tmp_path / "x.pdf"], ".png or .svg"),
    ]
    for words, message in cases:
        assert main(["bench", "curves", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
