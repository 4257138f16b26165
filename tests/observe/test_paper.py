"""The paper's figures are marked one by one, and stand only beside runs they can be compared with."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import pytest

from mmsada_hpc.cli import main
from mmsada_hpc.observe.paper import FIGURES_FILE, PAPER_SHIFTS, paper_figures
from mmsada_hpc.observe.runs import find_runs, read_runs
from mmsada_hpc.observe.table_formats import as_csv, as_terminal
from mmsada_hpc.observe.tables import Options, build_tables
from tests.observe.fake_run import write_result_alone

SEGMENTS = {"D1": 435, "D2": 750, "D3": 974}


def epic(
    folder: Path, label: str = "source_only", *, shifts: tuple[str, ...] = PAPER_SHIFTS, segments: int = 0
) -> Path:
    for name in shifts:
        source, target = name.split("->")
        write_result_alone(
            folder / name, label=label, shift=(source, target), streams={"rgb": 1.0, "flow": 2.0},
            segments=segments or SEGMENTS[target],
        )  # fmt: skip
    return folder


def printed(folder: Path, *, set_name: str = "target/test") -> str:
    runs = read_runs(find_runs([folder]), metrics=False)
    return as_terminal(build_tables(runs, Options(paper=True, set_name=set_name)))


def test_every_figure_has_a_mark_and_three_cells_are_verified() -> None:
    figures = paper_figures()
    assert len(figures) == 18
    verified = {
        (key, name): figure.top1 for key, row in figures.items() for name, figure in row.items() if figure.is_verified
    }
    assert verified == {
        ((3, "rgb", "source_only"), "D1->D3"): 36.6,
        ((1, "", "supervised_target"), "D2->D1"): 62.8,
        ((1, "", "supervised_target"), "D3->D1"): 62.8,
    }
    assert {figure.mark for row in figures.values() for figure in row.values()} == {"M", "M+", "I-c#7", "I-s#2"}


def test_the_file_says_first_that_it_is_unverified() -> None:
    head = FIGURES_FILE.read_text(encoding="utf-8").split("\ntable,")[0]
    assert "UNVERIFIED RECOLLECTION" in head
    assert all(line.startswith("#") for line in head.splitlines())


def test_the_cells_of_every_row_give_its_mean_but_for_one() -> None:
    for key, row in paper_figures().items():
        mean = statistics.fmean(row[shift].top1 for shift in PAPER_SHIFTS)
        slack = 0.11 if key == (3, "rgb", "mmsada (lambda_d 1)") else 0.0501
        assert mean == pytest.approx(row["mean"].top1, abs=slack)


def test_no_figure_of_the_paper_is_printed_without_its_mark(tmp_path: Path) -> None:
    text = printed(epic(tmp_path))
    (line,) = (line for line in text.splitlines() if line.startswith("  paper's source_only"))
    assert line.split()[2:] == [
        "42.5", "[M+]", "44.3", "[M+]", "42.0", "[M+]", "56.3", "[M+]", "41.2", "[M+]", "46.5", "[M+]", "45.5", "[M+]",
    ]  # fmt: skip
    assert "36.6 [I-c#7]" in text
    assert "62.8 [I-s#2]" in text
    for line in text.splitlines():
        if "paper's" in line:
            numbers = [word for word in line.split() if word.replace(".", "").isdigit() and "." in word]
            assert len(numbers) - line.count("lambda_d 0.5") == line.count("[")
    assert "unverified recollection of the paper" in " ".join(text.split())


def test_csv_tells_the_papers_figures_from_the_runs(tmp_path: Path) -> None:
    runs = read_runs(find_runs([epic(tmp_path)]), metrics=False)
    rows = list(csv.DictReader(io.StringIO(as_csv(build_tables(runs, Options(paper=True))))))
    assert {row["mark"] != "" for row in rows if row["origin"] == "paper"} == {True}
    assert {row["mark"] for row in rows if row["origin"] != "paper"} == {""}


def test_without_asking_nothing_of_the_paper_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(epic(tmp_path))]) == 0
    assert "paper" not in capsys.readouterr().out


def test_some_of_the_shifts_have_no_mean_of_the_paper(tmp_path: Path) -> None:
    text = printed(epic(tmp_path, shifts=("D2->D1", "D1->D2")))
    (line,) = (line for line in text.splitlines() if line.startswith("  paper's source_only"))
    assert line.split()[2:] == ["42.5", "[M+]", "42.0", "[M+]", "-"]


def test_other_kitchens_other_segments_and_other_sets_have_no_figures_of_the_paper(tmp_path: Path) -> None:
    write_result_alone(tmp_path / "toy" / "a", label="source_only")
    assert "paper's" not in printed(tmp_path / "toy").replace("shift of the paper", "").replace(
        "figures of the paper", ""
    )
    assert "K1->K2 is not a shift of the paper" in printed(tmp_path / "toy")
    partial = printed(epic(tmp_path / "part", shifts=("D2->D1",), segments=400))
    assert "42.5" not in partial
    assert "D2->D1 was scored on 400 segments, the paper's split has 435" in partial


def test_the_whole_target_has_no_figures_of_the_paper_even_if_it_were_as_large(tmp_path: Path) -> None:
    whole = {"evaluations": {"target/all": {"top1": 60.0, "segments": 435}}}
    write_result_alone(tmp_path / "a", label="source_only", shift=("D2", "D1"), extra=whole)
    text = printed(tmp_path, set_name="target/all")
    assert "42.5" not in text
    assert "the paper's figures are of target/test, not target/all" in text


def test_kitchens_of_the_same_name_with_other_verbs_have_none(tmp_path: Path) -> None:
    folder = write_result_alone(tmp_path / "a", label="mmd", shift=("D1", "D2"), segments=750, extra={"classes": ["a"]})
    assert "46.6" not in printed(folder)


def test_adabn_of_the_paper_stands_once_after_both_of_ours(tmp_path: Path) -> None:
    epic(tmp_path / "m", "adabn (mixture)")
    epic(tmp_path / "t", "adabn (target)")
    names = [line.split("  ")[0] or line.split("  ")[1] for line in printed(tmp_path).splitlines() if "adabn" in line]
    assert names == ["adabn (mixture)", "adabn (target)", "paper's adabn"]
