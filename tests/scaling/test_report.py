"""`mmsada scale report` on cells whose figures are known by hand."""

import argparse
import csv
import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling import report
from mmsada_hpc.scaling.cells import Cell
from mmsada_hpc.scaling.drawing import log_ticks, plain, style, write
from mmsada_hpc.scaling.figures import accuracy_picture, noise_picture
from mmsada_hpc.scaling.pooling import (
    breaks_of,
    critical_batch,
    default_accuracy,
    points_of,
    reach,
    reference_of,
    seed_sd,
)
from mmsada_hpc.scaling.report import terminal, write_report
from mmsada_hpc.scaling.report_tables import as_csv, break_definition, break_lines, costs, noise_line, question, summary
from mmsada_hpc.scaling.results import Results, read_results
from mmsada_hpc.scaling.speed import speed_series, step_parts
from tests.observe.test_report import Page
from tests.scaling.fake_cells import fake_cell, fake_study, write_cell

TARGET = "target/test"


def results_of(folder: Path, cells: Sequence[Cell], *, base_batch: int = 16) -> Results:
    return read_results(fake_study(folder, cells, base_batch=base_batch))


@pytest.fixture
def weak(tmp_path: Path) -> Results:
    """16 clips a rank on 1, 2 and 4 nodes; an update takes 0.5, 0.5 and 0.625 s."""
    cells = [fake_cell(tmp_path, nodes=nodes) for nodes in (1, 2, 4)]
    for cell, seconds in zip(cells, (0.5, 0.5, 0.625), strict=True):
        write_cell(cell, target=50, step_s=lambda step, seconds=seconds: 9.0 if step in (1, 11) else seconds)  # type: ignore[misc]
    return results_of(tmp_path, cells)


def test_weak_efficiency_is_the_clips_a_second_and_rank_over_those_of_one_rank(weak: Results) -> None:
    (series,) = speed_series(weak, "weak")
    assert [point.ranks for point in series.points] == [1, 2, 4]
    assert [point.clips_per_s.median for point in series.points] == pytest.approx([32, 64, 64 / 0.625])
    assert [point.efficiency.median for point in series.points] == pytest.approx([1, 1, 0.8])
    assert series.points[2].layouts == ("4x1",)


def test_slow_first_updates_of_both_stages_are_no_part_of_the_speed(weak: Results) -> None:
    first = weak.finished[0]
    assert len(first.steady_step_s) == 20 - 2 * 3
    assert first.step_s is not None and first.step_s.high == 0.5
    assert first.train_s == pytest.approx(18 * 0.5 + 2 * 9)


def test_strong_efficiency_has_the_batch_fixed_and_bands_over_all_seeds(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, nodes=nodes, micro=64 // nodes, seed=seed) for nodes in (2, 4) for seed in (0, 1)]
    for cell, seconds in zip(cells, (1.0, 1.0, 0.5, 1.0), strict=True):
        write_cell(cell, target=50, step_s=lambda step, seconds=seconds: seconds)  # type: ignore[misc]
    results = results_of(tmp_path, cells)
    assert speed_series(results, "weak") == []
    (series,) = speed_series(results, "strong")
    one, two = series.points
    assert one.clips_per_s.low == one.clips_per_s.high == 64
    assert (two.clips_per_s.low, two.clips_per_s.high) == (64, 128)
    assert two.efficiency.median == pytest.approx(0.75)


def test_shapes_of_the_same_ranks_are_told_apart_by_part_before_they_share_a_line(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, nodes=n, micro=64 // n, part="strong") for n in (1, 2)]
    cells.append(fake_cell(tmp_path, nodes=2, micro=8, accumulation=4, part="accumulated"))
    for cell in cells:
        write_cell(cell, target=50)
    (series,) = speed_series(results_of(tmp_path, cells), "strong")
    assert series.label == "batch 64, part strong"
    assert [len(point.cells) for point in series.points] == [1, 1]


def test_an_accuracy_is_reached_at_the_first_evaluation_whose_next_one_has_it_too(tmp_path: Path) -> None:
    cell = fake_cell(tmp_path)
    lucky = {4: 20.0, 8: 52.0, 12: 30.0, 16: 51.0}
    write_cell(cell, target=55, evaluations=lucky)
    (result,) = results_of(tmp_path, [cell]).finished
    found = reach(result, TARGET, 50)
    assert found.at is not None and found.before is not None
    assert (found.at.step, found.clips, found.train_s) == pytest.approx((16, 16 * 16, 8.0))
    assert (found.before.clips, found.before.train_s) == pytest.approx((12 * 16, 6.0))
    last = reach(result, TARGET, 54)
    assert last.at is not None and last.at.step == 20
    never = reach(result, TARGET, 60)
    assert never.at is None
    assert (never.clips, never.train_s) == pytest.approx((320, 10.0))


def test_the_accuracy_waited_for_is_nine_tenths_of_the_best_mean_of_the_last_three_evaluations(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, seed=seed) for seed in (0, 1)]
    write_cell(cells[0], target=60, evaluations={5: 99, 10: 50, 15: 40})
    write_cell(cells[1], target=70)
    assert default_accuracy(results_of(tmp_path, cells), TARGET) == pytest.approx(0.9 * (50 + 70) / 2)


def test_the_critical_batch_is_the_median_over_cells_of_the_noise_in_the_last_half(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, seed=seed) for seed in range(3)]
    for cell, late in zip(cells, (40.0, 50.0, 90.0), strict=True):
        values = [None, *[5.0] * 9, *[late - 10] * 5, *[late + 10] * 5]
        write_cell(cell, target=50, noise=lambda step, values=values: values[step - 1])  # type: ignore[misc]
    results = results_of(tmp_path, cells)
    found = critical_batch(results)
    assert found is not None and found.median == 50
    assert (found.low, found.high) == pytest.approx((42, 82))
    assert results.finished[0].noise_ratio == pytest.approx(40)


def test_a_noise_that_cannot_be_resolved_counts_as_large(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, seed=seed) for seed in range(3)]
    for cell, late in zip(cells, (40.0, math.inf, math.inf), strict=True):
        write_cell(cell, target=50, noise=lambda step, late=late: late if step > 12 else 20.0)  # type: ignore[misc]
    results = results_of(tmp_path, cells)
    found = critical_batch(results)
    assert found is not None and (found.low, found.median) == (40, math.inf)
    assert noise_line(results).startswith("Critical batch unresolved")
    assert noise_picture(results) is not None and accuracy_picture(results, TARGET) is not None


def recipe_cells(folder: Path, figures: dict[tuple[str, int, int], float]) -> list[Cell]:
    """(rule, batch, seed) -> target accuracy; the cells, written."""
    cells = []
    for (rule, batch, seed), target in figures.items():
        cells.append(fake_cell(folder, micro=batch, recipe=("sgd", rule), seed=seed))
        write_cell(cells[-1], target=target)
    return cells


def test_accuracy_breaks_at_the_first_batch_two_standard_errors_below_the_base(tmp_path: Path) -> None:
    # the spread over seeds is sqrt((2 * 1 + 2 * 4) / 4) = sqrt(2.5); a batch of one seed may be 3.65 points lower
    figures = {("linear", 16, seed): value for seed, value in enumerate((59.0, 60.0, 61.0))}
    figures |= {("linear", 64, seed): value for seed, value in enumerate((48.0, 50.0, 52.0))}
    figures |= {("linear", 32, 0): 57.0, ("sqrt", 32, 0): 56.4, ("sqrt", 64, 0): 56.3}
    points = points_of(results := results_of(tmp_path, recipe_cells(tmp_path, figures)), TARGET)
    sd = seed_sd(points)
    assert sd == pytest.approx(math.sqrt(2.5))
    linear, root = breaks_of(results, points)
    assert (linear.holds_to, linear.breaks_at, linear.largest) == (32, 64, 64)
    assert linear.steps[1][2] == pytest.approx(2 * math.sqrt(2.5 * (1 / 3 + 1)))
    assert (root.holds_to, root.breaks_at) == (32, 64)  # 3.6 and 3.7 points lower
    assert [batch for batch, *_ in root.steps] == [16, 32, 64]
    told = break_lines(results, TARGET)
    assert told[0] == "sgd, linear: holds to 32, breaks at 64 (-10.0 points, 2.6 allowed)."
    assert "1.6 percentage points" in break_definition(results, TARGET)


def test_a_recipe_that_never_breaks_is_not_said_to_hold_everywhere(tmp_path: Path) -> None:
    cells = recipe_cells(tmp_path, {("linear", 16, 0): 60.0, ("linear", 64, 0): 59.0})
    results = results_of(tmp_path, cells)
    assert break_lines(results, TARGET) == ["sgd, linear: not reached in this study; 64 is its largest batch."]
    assert "the spread over seeds is unknown" in break_definition(results, TARGET)


def test_at_the_base_batch_every_rule_shares_the_cells_and_each_seed_counts_once(tmp_path: Path) -> None:
    figures = {("linear", 16, 0): 60.0, ("fixed", 16, 0): 90.0, ("linear", 16, 1): 62.0, ("sqrt", 32, 0): 50.0}
    results = results_of(tmp_path, recipe_cells(tmp_path, figures))
    base = {str(point.recipe): point for point in points_of(results, TARGET) if point.batch == 16}
    assert base["sgd, sqrt"].by_seed == {0: 60.0, 1: 62.0}
    assert base["sgd, fixed"].by_seed == {0: 90.0, 1: 62.0}
    assert str(reference_of(results, points_of(results, TARGET)).recipe) == "sgd, linear"


def test_one_seed_on_more_ranks_is_one_measurement(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, nodes=nodes, micro=64 // nodes) for nodes in (1, 2)]
    for cell, target in zip(cells, (50.0, 52.0), strict=True):
        write_cell(cell, target=target)
    (point,) = points_of(results_of(tmp_path, cells), TARGET)
    assert (point.n, point.mean, point.error) == (1, 51.0, None)


def test_the_parts_of_an_update_add_up_and_the_wait_for_the_slowest_is_told(tmp_path: Path) -> None:
    cell = fake_cell(tmp_path, nodes=2)
    write_cell(cell, target=50, step_s=lambda step: 1.0, data_wait_s=0.1, own_s=(0.6, 0.8))
    ((label, (parts,)),) = step_parts(results_of(tmp_path, [cell])).items()
    assert label == "2 ranks on 2 nodes, 2 x 16 x 1 = 32"
    told = (parts.data_wait_s, parts.compute_s, parts.slowest_s, parts.rest_s)
    assert told == pytest.approx((0.1, 0.5, 0.2, 0.2))
    assert sum(told) == pytest.approx(parts.step_s)


def test_cells_csv_has_a_line_a_cell_with_its_figures_or_why_it_has_none(tmp_path: Path) -> None:
    done, not_begun = fake_cell(tmp_path, nodes=2), fake_cell(tmp_path, seed=1)
    refused = fake_cell(tmp_path, micro=5, refused="micro-batch 5 is not whole groups")
    write_cell(done, target=50, wall_s=1800, step_s=lambda step: 0.25, evaluations={10: 49.0})
    results = results_of(tmp_path, [done, refused, not_begun])
    rows = list(csv.DictReader(as_csv(results, question(results, TARGET, 45)).splitlines()))
    assert [row["state"] for row in rows] == ["finished", f"refused: {refused.refused}", "not begun"]
    figures = {key: float(rows[0][key]) for key in ("node_hours", "throughput_median_clips_per_s", "clips_seen")}
    assert figures == {"node_hours": 1.0, "throughput_median_clips_per_s": 128.0, "clips_seen": 640.0}
    assert (rows[0]["to_accuracy_train_s"], rows[0]["to_accuracy_clips"]) == ("2.5", "320")
    assert rows[2]["node_hours"] == ""


def test_the_tables_say_how_many_seeds_reached_the_accuracy(tmp_path: Path) -> None:
    cells = recipe_cells(tmp_path, {("linear", 16, 0): 60.0, ("linear", 16, 1): 40.0, ("linear", 32, 0): 30.0})
    results = results_of(tmp_path, cells)
    asked = question(results, TARGET, 50)
    assert [row[7] for row in summary(results, asked)] == ["clips to 50.0 %", "320 (1 of 2)", "never"]
    assert summary(results, asked)[1][5] == "50.0 ± 10.0"
    assert [row[-1] for row in costs(results, asked)] == ["time to 50.0 %", "0:10 (1 of 2)", "never"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, list[Path]]:
    """A study that gives every picture, one cell missing, and its report."""
    tmp_path = tmp_path_factory.mktemp("whole")
    cells = [
        fake_cell(tmp_path, nodes=nodes, recipe=("sgd", rule), seed=seed)
        for nodes in (1, 2)
        for rule in ("linear", "sqrt")
        for seed in (0, 1)
    ]
    cells += [fake_cell(tmp_path, nodes=nodes, micro=32 // nodes, part="strong") for nodes in (1, 2)]
    missing = fake_cell(tmp_path, nodes=4)
    for index, cell in enumerate(cells):
        write_cell(
            cell,
            target=50 + index,
            updates=20 + 10 * cell.nodes,
            own_s=(0.4,) * cell.ranks,
            evaluations={10: 40.0, 15: 50.0},
            noise=lambda step: 20.0 + step,
        )
    results = results_of(tmp_path, [*cells, missing])
    return results, write_report(results, question(results, TARGET, None), tmp_path / "report")


def test_the_page_refers_to_nothing_outside_itself_and_says_that_it_is_half_a_study(
    whole: tuple[Results, list[Path]],
) -> None:
    page = Page(whole[1][0])
    assert not [reference for reference in page.references if not reference.startswith("#")]
    assert not re.search(r"https?://|@import|url\((?!#)", page.source)
    for piece in (
        "Half a study", "base/n4x1-m16-a1/sgd-linear/0", "not begun", "Where accuracy breaks", "Critical batch",
        "Weak scaling", "Strong scaling", "What an update's time goes to", "node-hours", "chance 12.5 %",
        "Every finished cell", "base/n2x1-m16-a1/sgd-sqrt/1",
    ):  # fmt: skip
        assert piece in page.words


def test_what_the_drawings_refer_to_is_on_the_page_once(whole: tuple[Results, list[Path]]) -> None:
    page = Page(whole[1][0])
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    used = {*(reference[1:] for reference in page.references), *re.findall(r"url\(#([^)]+)\)", page.source)}
    assert len(ids) == len(set(ids))
    assert used <= set(ids)
    assert "var(--c0)" in page.source and "#0072b2" not in page.source.partition("</style>")[2]


def test_every_picture_is_there_as_png_of_a_column_and_as_svg_with_words(whole: tuple[Results, list[Path]]) -> None:
    files = {path.name: path for path in whole[1]}
    names = {
        "accuracy_target_test", "accuracy_source_test", "noise_scale", "scaling_weak", "scaling_strong", "step_time",
        "time_to_accuracy", "clips_to_accuracy", "cost_node_hours", "cost_clips",
    }  # fmt: skip
    assert {Path(name).stem for name in files} == {*names, "index", "cells"}
    for name in names:
        with Image.open(files[f"{name}.png"]) as picture:
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert picture.width in (700, 1440)
        assert "<text" in files[f"{name}.svg"].read_text()
    assert "critical batch" in files["accuracy_target_test.svg"].read_text()


def test_the_same_study_gives_the_same_files(whole: tuple[Results, list[Path]], tmp_path: Path) -> None:
    with style():
        picture = accuracy_picture(whole[0], TARGET)
    assert picture is not None
    write([picture], tmp_path)
    first = {path.name: path for path in whole[1]}
    for name in ("accuracy_target_test.png", "accuracy_target_test.svg"):
        assert (tmp_path / name).read_bytes() == first[name].read_bytes()


def test_a_study_of_one_bare_cell_has_a_report_too(tmp_path: Path) -> None:
    cell = fake_cell(tmp_path)
    write_cell(cell, target=50, updates=1)
    results = results_of(tmp_path, [cell])
    asked = question(results, TARGET, None)
    words = Page(write_report(results, asked, tmp_path / "report")[0]).words
    assert "No cell logged a noise scale." in words
    assert "No two shapes that differ in their ranks alone" in words
    assert "1 of 1 cells are finished." in terminal(results, asked)


def test_an_empty_study_tells_how_to_run_it(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, seed=seed) for seed in (0, 1)]
    write_cell(cells[0], target=50, finished=False)
    with pytest.raises(UserError, match=r"none of its 2 cells is finished.*mmsada scale run"):
        results_of(tmp_path, cells)


def test_a_cell_whose_log_is_gone_is_missing_with_the_reason(tmp_path: Path) -> None:
    cells = [fake_cell(tmp_path, seed=seed) for seed in (0, 1)]
    for cell in cells:
        write_cell(cell, target=50)
    (cells[1].config.run.dir / "metrics.jsonl").unlink()
    results = results_of(tmp_path, cells)
    assert [one.cell.seed for one in results.finished] == [0]
    assert "metrics.jsonl" in results.missing[0].why
    (cells[0].config.run.dir / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"nothing to report \(.*result\.json: damaged"):
        results_of(tmp_path, cells)


def test_without_matplotlib_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the extra report"):
        report.run(argparse.Namespace(study=tmp_path / "s.yaml"))


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.09), (15.0, 260.0), (63.0, 66.0), (1e-3, 4e3), (900.0, 12000.0)])
def test_log_axes_have_few_plain_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick * 1.001 and tick <= high * 1.001 for tick in ticks)
    assert not any("e" in plain(tick) for tick in ticks)


def test_a_set_that_no_cell_has_scored_is_told(weak: Results) -> None:
    with pytest.raises(UserError, match=r"--set target/tset: .* they have .*target/test"):
        report._check_set(weak, "target/tset")
