"""`bench compare` tells what changed beyond noise."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from mmsada_hpc.bench.compare import judge, read_rows
from mmsada_hpc.bench.rows import Report, row
from mmsada_hpc.cli import main
from mmsada_hpc.errors import UserError

Better = Literal["higher", "lower"]


def write(path: Path, rows: dict[str, Sequence[float]], *, better: Better = "lower", **frame: Any) -> Path:
    """A file of rows as `--json` writes it; `frame` goes over what is told with them."""
    report = Report(json_to=path)
    for name, values in rows.items():
        report.add(row("step", name, values, "ms", better=better))
    report.write()
    if frame:
        lines = [{**json.loads(line), **frame} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def verdict(before: Sequence[float], after: Sequence[float], *, better: Better = "lower", threshold: float = 3) -> str:
    a, b = (row("step", "x", values, "ms", better=better) for values in (before, after))
    return judge(a, b, threshold=threshold)


def test_a_change_beyond_both_ranges_counts() -> None:
    assert verdict([10, 11, 12], [13, 14, 15]) == "worse"
    assert verdict([13, 14, 15], [10, 11, 12]) == "better"


def test_more_is_better_where_the_row_says_so() -> None:
    assert verdict([10, 11, 12], [13, 14, 15], better="higher") == "better"
    assert verdict([13, 14, 15], [10, 11, 12], better="higher") == "worse"


def test_ranges_that_touch_are_noise() -> None:
    assert verdict([10, 11, 20], [19, 30, 31]) == "same"


def test_a_change_below_the_threshold_is_noise() -> None:
    assert verdict([100, 100.1, 100.2], [102, 102.1, 102.2]) == "same"
    assert verdict([100, 100.1, 100.2], [102, 102.1, 102.2], threshold=1) == "worse"


def test_two_repeats_are_too_few_to_say() -> None:
    assert verdict([10, 11], [20, 21, 22]) == "unsure"


def test_the_table_shows_what_changed_and_what_is_only_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", {"stem": [10, 11, 12], "pool": [5, 5, 5], "gone": [1, 1, 1]})
    b = write(tmp_path / "b", {"stem": [20, 22, 24], "pool": [5, 5, 5], "new": [1, 1, 1]})
    capsys.readouterr()
    assert main(["bench", "compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "stem" in line] == [["stem", "11.0", "22.0", "ms", "+100.0%", "WORSE"]]
    assert "2 measurements in both: 1 worse, 0 better, 1 within noise" in lines[-3]
    assert lines[-2:] == [f"only in {a}: step: gone", f"only in {b}: step: new"]
    assert not [line for line in lines if line.startswith("warning")]


def test_a_regression_fails_only_where_that_is_asked_for(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {"stem": [10, 11, 12]}), write(tmp_path / "b", {"stem": [20, 22, 24]})
    assert main(["bench", "compare", str(a), str(b), "--fail-on-regression"]) == 1
    assert main(["bench", "compare", str(b), str(a), "--fail-on-regression"]) == 0


def test_another_machine_config_or_version_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"torch": "2.13.0", "numpy": "2.4.6"}
    a = write(tmp_path / "a", {"stem": [10, 11, 12]}, machine="one", versions=versions, config_hash="aa")
    b = write(
        tmp_path / "b", {"stem": [10, 11, 12]}, machine="two", versions={**versions, "torch": "2.14.0"}, config_hash=""
    )
    capsys.readouterr()
    main(["bench", "compare", str(a), str(b)])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == [
        "warning: machine differs: one | two",
        "warning: versions differs: torch 2.13.0 | torch 2.14.0",
        "warning: config_hash differs: aa | none",
    ]


def test_the_newest_row_of_a_measurement_counts(tmp_path: Path) -> None:
    write(tmp_path / "a", {"stem": [1.0]})
    write(tmp_path / "a", {"stem": [2.0]})
    (found,) = read_rows(tmp_path / "a").values()
    assert found.row.value == 2.0


def test_a_newer_row_without_a_figure_hides_the_older_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", {"stem": [10, 11, 12], "pool": [5, 5, 5]})
    b = write(tmp_path / "b", {"stem": [10, 11, 12], "pool": [5, 5, 5]})
    write(b, {"stem": [math.nan] * 3})
    capsys.readouterr()
    assert main(["bench", "compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (stem,) = (line for line in lines if "stem" in line)
    assert "11.0" in stem and "none" in stem and stem.endswith("? no figure")
    assert "1 within noise" in lines[-1] and lines[-1].endswith("1 not judged")


@pytest.mark.parametrize("text", ["{", '{"bench": "step"}', "[1]", "3"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a", {"stem": [1.0]})
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(UserError, match="a:2: not a row"):
        read_rows(path)


def test_an_empty_file_and_a_missing_one_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("")
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "holds no measurement" in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path / "b"), str(tmp_path / "a")]) == 2
    assert "b: cannot be read" in capsys.readouterr().err
