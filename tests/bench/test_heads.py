"""`mmsada bench heads` through its command: what its rows are compared with, and what is refused."""

import json
from pathlib import Path

import pytest

from mmsada_hpc.cli import main


def test_fused_heads_are_compared_with_plain_pytorch_and_a_step(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert main(["bench", "heads", "--quick", "--repeats", "1", "--device", "cpu", "--json", str(path)]) == 0
    rows = {row["name"]: row for row in map(json.loads, path.read_text().splitlines())}
    eager, fused = rows["eager fp32 N=32"], rows["fused fp32 N=32"]
    assert fused["baseline"] == eager["name"]
    assert fused["ratio"] == pytest.approx(eager["value"] / fused["value"])
    assert fused["details"]["threads"] >= 1
    share = rows["share of a step, fused fp32 N=32"]
    assert share["baseline"] == "share of a step, eager fp32 N=32"
    assert share["value"] == pytest.approx(100 * fused["value"] / (share["details"]["step_ms"] * 32 / 2))
    assert "GEMMs fp32 N=32" in rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heads", "--device", "gpu"], "--device gpu: no device"),
        (["heads", "--device", "meta"], "--device meta: use cpu or cuda"),
        (["heads", "--device", "cuda:99"], "--device cuda:99: torch"),
        (["heads", "--clips", "8", "0"], "--clips 0"),
        (["step", "--device", "gpu"], "--device gpu: no device"),
        (["step", "--device", "cuda:99"], "--device cuda:99: torch"),
        (["step", "--frames", "0"], "--frames 0"),
        (["step", "--size", "0"], "--size 0"),
        (["step", "--width", "0"], "--width 0"),
        (["step", "--width", "nan"], "--width nan"),
        (["step", "--size", "4", "--parts"], "--parts"),
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
