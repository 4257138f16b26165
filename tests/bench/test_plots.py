"""`bench plot` draws each benchmark."""

from pathlib import Path

import pytest
from PIL import Image

from mmsada_hpc.bench.compare import Measured
from mmsada_hpc.bench.plots import panels_of
from mmsada_hpc.bench.rows import Report, Row, row
from mmsada_hpc.cli import main


def measured(*rows: Row, rank: int = 0) -> list[Measured]:
    return [Measured(one, {"rank": rank}) for one in rows]


def heads(size: int) -> list[Row]:
    eager = row("heads", f"eager bf16 N={size}", [2.0, 2.1, 2.2], "ms", better="lower")
    return [eager, row("heads", f"fused bf16 N={size}", [1.0, 1.1, 1.2], "ms", better="lower", baseline=eager)]


def test_measurements_at_three_sizes_are_curves() -> None:
    (panel,) = panels_of(measured(*(one for size in (8, 32, 128) for one in heads(size))))
    assert [(curve.label, list(curve.xs), curve.is_plain) for curve in panel.curves] == [
        ("eager bf16", [8, 32, 128], True),
        ("fused bf16", [8, 32, 128], False),
    ]


def test_what_is_compared_shares_a_panel_named_by_the_words_they_end_in() -> None:
    (panel,) = panels_of(measured(*heads(32)))
    assert panel.title == "bf16 N=32"
    assert [(bar.label, bar.is_plain) for bar in panel.bars] == [("eager", True), ("fused", False)]


def test_ranks_are_told_apart() -> None:
    wait = row("e2e", "data wait, 8x64x64", [1.0], "ms", better="lower")
    (panel,) = panels_of(measured(wait) + measured(wait, rank=1))
    assert [bar.label for bar in panel.bars] == ["data wait", "data wait, rank 1"]
    assert panel.title == "8x64x64"


def test_a_message_is_drawn_as_time_and_as_bandwidth() -> None:
    rows = [
        row("comm", f"gloo {size}", [4.0, 2.0, 1.0], "ms", better="lower", details=details)
        for size in (1 << 20, 1 << 22, 1 << 24)
        for details in [{"bytes": size, "way": "gloo", "team": "2 ranks on 1 node", "busbw_GB_s": 8.0}]
    ]
    time, bandwidth = panels_of(measured(*rows))
    assert list(time.curves[0].xs) == list(bandwidth.curves[0].xs) == [1, 4, 16]
    first = bandwidth.curves[0].rows[0]
    assert (first.value, first.min, first.max, first.better) == (8.0, 4.0, 16.0, "higher")


def test_every_benchmark_gets_a_png_and_an_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    report = Report(json_to=path)
    for one in [*heads(8), row("step", "overhead, x", [-1.0, 0.5], "%", better="lower")]:
        report.add(one)
    report.write()
    capsys.readouterr()
    assert main(["bench", "plot", str(path), "--out", str(tmp_path / "new")]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["heads.png", "heads.svg", "step.png", "step.svg"]
    with Image.open(tmp_path / "new/heads.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert ">fused</text>" in (tmp_path / "new/heads.svg").read_text(), "words stay words in the SVG"
