"""`mmsada table` against numbers added up by hand, and what it says where it has no number."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest

from mmsada_hpc.cli import main
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.cells import Cell, score_of
from mmsada_hpc.observe.runs import find_runs, read_runs
from mmsada_hpc.observe.table_formats import (
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    as_terminal,
    cell_text,
    latex_text,
    text_width,
)
from mmsada_hpc.observe.tables import Options, Row, Tables, build_tables
from tests.observe.fake_run import write_result_alone

EXTRA = ("cdan", "my_method")


def tables_of(*paths: Path, set_name: str = "target/test", recall: bool = False) -> Tables:
    return build_tables(read_runs(find_runs(paths), metrics=False), Options(set_name=set_name, recall=recall))


def row_of(tables: Tables, name: str, number: int = 1) -> Row:
    (table,) = (table for table in tables.tables if table.number == number)
    (row,) = (row for row in table.rows if row.name == name)
    return row


def cell_of(tables: Tables, name: str, column: str, number: int = 1) -> Cell:
    (table,) = (table for table in tables.tables if table.number == number)
    return row_of(tables, name, number).cells[table.columns.index(column)]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two shifts, seeds 0 and 1; mcd lacks K2->K1 altogether and seed 1 of K1->K2; cdan's seed 1 is unfinished."""
    top1 = {
        ("source_only", "K1"): (40.0, 44.0),
        ("source_only", "K2"): (30.0, 31.0),
        ("mmsada (lambda_d 1)", "K1"): (50, 56),
    }
    top1 |= {("mmsada (lambda_d 1)", "K2"): (42.0, 38.0), ("cdan", "K1"): (45.0, 47.0)}
    for (label, source), values in top1.items():
        for seed, value in enumerate(values):
            streams = {"flow": value - 1, "rgb": value - 10}
            place = tmp_path / "deep" / label.split()[0] / f"{source}-{seed}"
            shift = (source, "K2" if source == "K1" else "K1")
            write_result_alone(
                place, label=label, shift=shift, seed=seed, top1=value, streams=streams, mean_recall=value - 20
            )
    write_result_alone(tmp_path / "mcd-0", label="mcd", top1=41.5)
    write_result_alone(tmp_path / "cdan-K2-0", label="cdan", shift=("K2", "K1"), top1=33.0)
    write_result_alone(tmp_path / "cdan-K2-1", label="cdan", shift=("K2", "K1"), seed=1, top1=None)
    return tmp_path


def test_runs_are_found_at_any_depth_once_each(grid: Path) -> None:
    assert len(find_runs([grid])) == 13
    assert len(read_runs(find_runs([grid, grid / "mcd-0"]), metrics=False)) == 13


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds(grid: Path) -> None:
    cell = cell_of(tables_of(grid), "source_only", "K1->K2")
    assert (cell.mean, cell.n) == (42.0, 2)
    assert cell.std == pytest.approx(((40 - 42) ** 2 + (44 - 42) ** 2) ** 0.5)  # n - 1 = 1
    assert cell_text(cell, 2) == "42.0 ± 2.8"


def test_the_mean_over_shifts_spreads_as_the_seeds_own_means_do(grid: Path) -> None:
    cell = cell_of(tables_of(grid), "mmsada (lambda_d 1)", "mean")
    assert cell.mean == pytest.approx((53 + 40) / 2)
    assert cell.std == pytest.approx(statistics.stdev([(50 + 42) / 2, (56 + 38) / 2]))


def test_one_seed_has_no_deviation_and_fewer_seeds_than_the_others_show_how_many(grid: Path) -> None:
    cell = cell_of(tables_of(grid), "mcd", "K1->K2")
    assert cell.std is None
    assert cell_text(cell, 2) == "41.5 (n=1)"
    assert cell_text(cell, 1) == "41.5"


def test_a_missing_cell_takes_the_mean_with_it_and_is_named(grid: Path) -> None:
    tables = tables_of(grid)
    assert cell_of(tables, "mcd", "K2->K1").state == "missing"
    assert cell_of(tables, "mcd", "mean").mean is None
    lines = tables.notes.lines
    assert "missing: mcd K1->K2 (1 of 2 seeds), K2->K1 (0 of 2 seeds)" in lines
    assert "missing: cdan K2->K1 (1 of 2 seeds)" in lines
    assert "unfinished (no result.json), not counted: cdan-K2-1" in lines
    assert tables.tables[0].absent == ("adabn (mixture)", "adabn (target)", "mmd", "supervised_target")


def test_where_seeds_differ_between_shifts_the_mean_has_no_deviation(grid: Path) -> None:
    cell = cell_of(tables_of(grid), "cdan", "mean")
    assert cell.mean == pytest.approx((46 + 33) / 2)
    assert cell.std is None


def test_rows_that_are_not_the_papers_come_after_a_rule(grid: Path) -> None:
    write_result_alone(grid / "mine", label="my_method")
    rows = tables_of(grid).tables[0].rows
    assert [row.name for row in rows] == [
        "source_only", "mcd", "mmsada (lambda_d 1)", *EXTRA, "chance", "majority class",
    ]  # fmt: skip
    assert [row.group for row in rows] == [0, 0, 0, 1, 1, 9, 9]


def test_chance_and_the_majority_class_stand_below(grid: Path) -> None:
    tables = tables_of(grid)
    assert [cell.mean for cell in row_of(tables, "chance").cells] == [12.5, 12.5, 12.5]
    assert cell_of(tables, "majority class", "K1->K2").mean == 50.0


def test_the_papers_shifts_come_first_in_its_order(tmp_path: Path) -> None:
    for source, target in (("D1", "D2"), ("A", "B"), ("D2", "D1"), ("D3", "D1")):
        write_result_alone(tmp_path / f"{source}{target}", label="mmd", shift=(source, target))
    assert tables_of(tmp_path).tables[0].columns == ("D2->D1", "D3->D1", "D1->D2", "A->B", "mean")


def test_one_shift_alone_has_no_mean_column(tmp_path: Path) -> None:
    write_result_alone(tmp_path / "a", label="mmd")
    assert tables_of(tmp_path).tables[0].columns == ("K1->K2",)


def test_the_ablation_is_there_as_soon_as_one_of_its_runs_is(grid: Path) -> None:
    assert [table.number for table in tables_of(grid).tables] == [1, 3]
    write_result_alone(grid / "adv", label="adversarial (lambda_d 0.5)", top1=47.0)
    write_result_alone(grid / "adv2", label="adversarial (lambda_d 2)", top1=46.0)
    tables = tables_of(grid)
    names = [row.name for row in tables.tables[1].rows if row.origin == "runs"]
    assert names == ["source_only", "adversarial (lambda_d 0.5)", "mmsada (lambda_d 1)", "adversarial (lambda_d 2)"]
    assert tables.tables[1].absent == (
        "self_supervised (seg)", "adversarial (lambda_d 1)", "mmsada (lambda_d 0.5)",
    )  # fmt: skip
    assert not [row for row in tables.tables[0].rows if row.name.startswith("adversarial")]


def test_streams_are_those_that_were_scored_rgb_and_flow_first(grid: Path) -> None:
    names = [row.name for row in tables_of(grid).tables[-1].rows if row.origin == "runs"]
    assert names == [
        f"{stream}: {label}" for stream in ("rgb", "flow") for label in ("source_only", "mmsada (lambda_d 1)")
    ]
    assert cell_of(tables_of(grid), "rgb: source_only", "K1->K2", number=3).mean == 32.0
    write_result_alone(grid / "audio", label="source_only", seed=7, top1=40.0, streams={"audio": 20.0})
    assert cell_of(tables_of(grid), "audio: source_only", "K1->K2", number=3).mean == 20.0


def test_recall_is_a_column_when_asked_for(grid: Path) -> None:
    assert cell_of(tables_of(grid, recall=True), "source_only", "recall").mean == pytest.approx((22 + 10.5) / 2)


def test_the_supervised_bar_stands_in_every_column_with_its_target(tmp_path: Path) -> None:
    for source in ("D2", "D3"):
        write_result_alone(tmp_path / source, label="source_only", shift=(source, "D1"))
    write_result_alone(tmp_path / "bar", label="source_only", shift=("D1", "D1"), top1=80.0)
    tables = tables_of(tmp_path)
    assert tables.tables[0].columns == ("D2->D1", "D3->D1", "mean")
    assert [cell.mean for cell in row_of(tables, "supervised_target").cells] == [80.0] * 3


def test_runs_whose_settings_differ_are_not_averaged_and_are_named(tmp_path: Path) -> None:
    for seed, rate in enumerate((0.01, 0.01, 0.1)):
        write_result_alone(tmp_path / f"s{seed}", label="mmd", seed=seed, config=f"train: {{lr: {rate}}}\n")
    tables = tables_of(tmp_path)
    cell = cell_of(tables, "mmd", "K1->K2")
    assert (cell.mean, cell.state, cell_text(cell, 3)) == (None, "mixed", "mixed")
    assert "mixed settings, no mean: mmd K1->K2: train.lr: 0.01 (s0, s1), 0.1 (s2)" in tables.notes.lines


def test_what_leaves_the_result_alone_may_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        harmless = f"train: {{lr: 0.01, micro_batch: {8 * seed + 8}}}\nobserve: {{log_seconds: {seed}}}\n"
        write_result_alone(tmp_path / f"s{seed}", label="mmd", seed=seed, config=harmless)
    assert cell_of(tables_of(tmp_path), "mmd", "K1->K2").n == 2


def test_runs_scored_on_other_segments_are_mixed_too(tmp_path: Path) -> None:
    write_result_alone(tmp_path / "s0", label="mmd", segments=8)
    write_result_alone(tmp_path / "s1", label="mmd", seed=1, segments=10)
    tables = tables_of(tmp_path)
    assert cell_of(tables, "mmd", "K1->K2").state == "mixed"
    assert "mixed settings, no mean: mmd K1->K2: segments: 8 (s0), 10 (s1)" in tables.notes.lines


def test_two_recipes_are_two_rows(tmp_path: Path) -> None:
    write_result_alone(tmp_path / "a", label="mmd", top1=40.0)
    write_result_alone(tmp_path / "b", label="mmd", top1=44.0, extra={"recipe": "paper"})
    tables = tables_of(tmp_path)
    assert cell_of(tables, "mmd, released recipe", "K1->K2").mean == 40.0
    assert cell_of(tables, "mmd, paper recipe", "K1->K2").mean == 44.0


def test_a_seed_that_was_run_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    for name, value in (("first", 40.0), ("second", 60.0)):
        write_result_alone(tmp_path / name, label="mmd", top1=value)
    tables = tables_of(tmp_path)
    assert cell_of(tables, "mmd", "K1->K2").by_seed == {0: 40.0}
    assert "seed 0 more than once: mmd K1->K2: first, second; only first is counted" in tables.notes.lines


def test_rows_that_differ_by_more_than_the_method_are_flagged(tmp_path: Path) -> None:
    write_result_alone(tmp_path / "a", label="mmd", config="train: {global_batch: 64}\n")
    write_result_alone(tmp_path / "b", label="mcd", config="train: {global_batch: 128}\n")
    assert "not the same in all runs: train.global_batch: 64 (a), 128 (b)" in tables_of(tmp_path).notes.lines


def test_the_mean_over_checkpoints_is_the_number_on_the_test_set(tmp_path: Path) -> None:
    extra = {"target_top1": 55.5, "source_top1": 91.0, "target_top1_std": 0.5, "checkpoints": [10, 20]}
    folder = write_result_alone(tmp_path / "a", label="mmd", top1=50.0, extra=extra)
    assert score_of("top1", "source/test")(read_runs([folder])[0]) == 91.0
    tables = tables_of(tmp_path)
    assert cell_of(tables, "mmd", "K1->K2").mean == 55.5
    assert any("mean over the checkpoints of stage-2 steps 10, 20" in line for line in tables.notes.lines)


def test_another_set_is_tabulated_by_name_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    whole = {"evaluations": {"target/test": {"top1": 1.0}, "target/all": {"top1": 60.0}}}
    write_result_alone(tmp_path / "a", label="mmd", extra=whole)
    write_result_alone(tmp_path / "b", label="mmd", seed=1)
    tables = tables_of(tmp_path, set_name="target/all")
    assert cell_of(tables, "mmd", "K1->K2").mean == 60.0
    assert "not scored on target/all, not counted: b" in tables.notes.lines
    with pytest.raises(UserError, match=r"--set target/al: no run was scored on it; there are target/test, target/all"):
        tables_of(tmp_path, set_name="target/al")


def test_csv_parses_back_to_the_unrounded_numbers(grid: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(tables_of(grid)))))
    (cell,) = (r for r in rows if (r["table"], r["row"], r["column"]) == ("1", "source_only", "K2->K1"))
    assert (float(cell["mean"]), cell["n"], cell["seeds"], cell["origin"]) == (30.5, "2", "0 1", "runs")
    assert float(cell["std"]) == statistics.stdev([30.0, 31.0])
    (gap,) = (r for r in rows if (r["table"], r["row"], r["column"]) == ("1", "mcd", "K2->K1"))
    assert (gap["mean"], gap["state"]) == ("", "missing")


def test_json_parses_back_with_what_is_missing(grid: Path) -> None:
    value = json.loads(as_json(tables_of(grid)))
    row = next(row for row in value["tables"][0]["rows"] if row["row"] == "source_only")
    assert row["cells"]["K1->K2"]["by_seed"] == {"0": 40.0, "1": 44.0}
    assert {"row": "mcd", "shift": "K2->K1", "found": 0, "expected": 2} in value["missing"]


def test_every_markdown_row_has_as_many_cells_as_its_header(grid: Path) -> None:
    write_result_alone(grid / "pipe", label="a|b")
    blocks = [block for block in as_markdown(tables_of(grid)).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert counts == {2 + len(("K1->K2", "K2->K1", "mean"))}
    assert "| source_only | 42.0 ± 2.8 | 30.5 ± 0.7 | 36.2 ± 1.8 |" in blocks[0]


def test_every_latex_row_has_as_many_cells_as_its_column_specification(grid: Path) -> None:
    text = as_latex(tables_of(grid))
    found = re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end\{tabular\}", text, re.S)
    assert len(found) == 2
    for columns, body in found:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    for name in set(re.findall(r"\\begin\{(\w+)\}", text)):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    assert r"mmsada (lambda\_d 1) & 53.0 $\pm$ 4.2" in text
    assert r"K1$\to$K2" in text


def test_latex_takes_no_text_for_a_command() -> None:
    assert latex_text("[M], [M+]") == "{[}M], {[}M+]"
    assert latex_text("a_b & 5% {x} \\ #1 $") == r"a\_b \& 5\% \{x\} \textbackslash{} \#1 \$"


def test_the_terminal_table_is_aligned_also_with_wide_letters(grid: Path) -> None:
    write_result_alone(grid / "wide", label="方法 é")
    block = as_terminal(tables_of(grid)).split("\n\n")[1].splitlines()
    full = [line for line in block if re.match(r"(source_only|方法|chance|─)", line)]
    assert len({text_width(line) for line in full}) == 1
    assert text_width("方法 é") == 6


def test_a_terminal_without_unicode_gets_ascii(grid: Path) -> None:
    assert as_terminal(tables_of(grid), unicode=False).isascii()


def test_the_command_prints_or_writes_by_the_suffix(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(grid)]) == 0
    assert "missing: mcd" in capsys.readouterr().out
    out = grid / "t.csv"
    assert main(["table", str(grid), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"table: {out}\n"
    assert out.read_text().startswith("table,row,origin,mark,column,mean")
    assert main(["table", str(grid), "--out", str(out), "--format", "latex"]) == 0
    assert out.read_text().startswith("% needs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: no run in it"),
        (["empty", "--out", "empty"], "empty: no run in it"),
        (["run", "--out", "empty"], "--out {top}/empty is a folder"),
        (["run", "--out", "gone/t.md"], "--out {top}/gone/t.md: cannot write (No such file or directory)"),
        (["torn"], "torn/result.json is not valid JSON"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_result_alone(tmp_path / "run", label="mmd")
    (write_result_alone(tmp_path / "torn", label="mmd") / "result.json").write_text("{")
    assert main(["table", *(word if word.startswith("--") else str(tmp_path / word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said.format(top=tmp_path) in error
    assert error.count("\n") == 1
