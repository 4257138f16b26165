"""Rows of benchmarks: what is measured, how it is shown, and what is kept."""

import json
import math
import sys
from pathlib import Path

import pytest

from mmsada_hpc.bench.rows import SHOWN, Report, Row, describe, interleaved, row, row_from
from mmsada_hpc.cli import main
from mmsada_hpc.errors import UserError


def ms(name: str, *values: float, baseline: Row | None = None) -> Row:
    return row("step", name, values, "ms", better="lower", baseline=baseline)


def test_a_row_holds_the_median_and_the_range() -> None:
    found = ms("naive N=8", 30.0, 10.0, 11.0)
    assert (found.value, found.min, found.max, found.repeats) == (11.0, 10.0, 30.0, 3)
    assert (found.baseline, found.ratio) == ("", None)


def test_a_ratio_above_one_is_better_whichever_way_is_better() -> None:
    assert ms("ours N=8", 5.0, baseline=ms("naive N=8", 10.0)).ratio == 2.0
    slow = row("loader", "PIL", [40.0], "clips/s", better="higher")
    assert row("loader", "DALI", [120.0], "clips/s", better="higher", baseline=slow).ratio == 3.0


def test_rows_of_different_units_do_not_compare() -> None:
    with pytest.raises(AssertionError, match="do not compare"):
        row("step", "ours", [1.0], "s", better="lower", baseline=ms("naive", 1.0))


def test_a_baseline_of_zero_gives_no_ratio() -> None:
    zero = row("step", "none", [0.0], "MB", better="higher")
    assert row("step", "ours", [1.0], "MB", better="higher", baseline=zero).ratio is None


def test_ways_are_measured_in_turn() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved({"a": lambda: way("a"), "b": lambda: way("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_the_table_names_of_the_baseline_only_what_differs() -> None:
    line = describe(ms("fused bf16 N=32", 1.0, 1.1, 0.9, baseline=ms("eager bf16 N=32", 3.0)))
    assert line.split() == ["fused", "bf16", "N=32", "1.00", "ms", "0.900", "-", "1.10", "3.00x", "eager"]


def test_a_few_words_of_the_details_are_shown() -> None:
    found = row("comm", "gloo", [1.0], "ms", better="lower", details={SHOWN: "busbw 2 GB/s", "bytes": 8})
    assert describe(found).endswith("busbw 2 GB/s")
    assert "bytes" not in describe(found)


def test_rows_are_appended_with_what_is_needed_to_judge_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    for value in (1.0, 2.0):
        report = Report(json_to=path)
        report.config_hash = "abc"
        report.add(ms("ours N=8", value))
        assert str(value) in path.read_text().splitlines()[-1], "a process that is alone writes each row at once"
        report.write()  # each row is written once
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["value"] for one in rows] == [1.0, 2.0]
    assert {"date", "command", "machine", "device", "commit", "versions"} < set(rows[0])
    assert (rows[0]["rank"], rows[0]["world_size"], rows[0]["config_hash"]) == (0, 1, "abc")
    assert row_from(rows[0]) == ms("ours N=8", 1.0)
    assert "ours N=8" in capsys.readouterr().out


def test_a_figure_that_is_not_a_number_is_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    report = Report(json_to=path)
    details = {"of": {"it": [1.0, math.inf]}, "pair": (math.nan, 2)}
    report.add(row("step", "broken", [math.nan], "ms", better="lower", details=details))
    found = json.loads(path.read_text())
    assert found["value"] is None
    assert found["details"] == {"of": {"it": [1.0, None]}, "pair": [None, 2]}


def test_rows_that_could_not_be_written_are_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "rows.jsonl"
    with pytest.raises(UserError, match=r"rows\.jsonl: cannot be written"):
        Report(json_to=path)
    assert main(["bench", "heads", "--quick", "--json", str(path)]) == 2
    shown = capsys.readouterr()
    assert "cannot be written" in shown.err and shown.out == ""


def test_a_trace_is_written_only_where_one_was_asked_for(tmp_path: Path) -> None:
    import torch

    calls: list[int] = []

    def step() -> None:
        calls.append(1)
        torch.ones(8).sum()

    Report().profile(step)
    assert not calls
    report = Report(profile_to=tmp_path / "trace.json")
    report.profile(step)
    report.profile(step, name="b c")
    assert len(calls) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.b_c.2.json", "trace.json"]
    assert "aten::sum" in (tmp_path / "trace.json").read_text()


def test_help_names_every_benchmark_and_loads_none(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("loader", "step", "heads", "comm", "e2e", "all", "compare", "plot"))
    assert not {name for name in set(sys.modules) - before if name.startswith("mmsada_hpc.bench.comm_")}
