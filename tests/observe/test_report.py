"""The report is one self-contained page that tells what is there and names what is missing."""

from __future__ import annotations

import argparse
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe import report
from mmsada_hpc.observe.compare import baseline_of
from mmsada_hpc.observe.curves import running_mean, running_median, stage_changes
from mmsada_hpc.observe.embedding import MAX_POINTS, UnusableFeaturesError, embed
from mmsada_hpc.observe.record import write_record
from mmsada_hpc.observe.report import write_report
from mmsada_hpc.observe.runs import read_runs
from mmsada_hpc.observe.scores import class_table, twin_baseline
from mmsada_hpc.observe.settings import flat
from mmsada_hpc.observe.svg import tick_label, ticks
from tests.observe.fake_run import CLASSES, write_features, write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects visible text, links and attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("one") / "mmsada-s0")
    write_record(folder, command=["mmsada", "train", "--config", "configs/demo.yaml"])
    return folder


@pytest.fixture(scope="module")
def finished_page(finished: Path) -> Page:
    return Page(write_report([finished]))


def test_the_page_lies_in_the_run_folder_by_default(finished: Path, finished_page: Page) -> None:
    assert (finished / "report.html").is_file()
    assert not [path for path in finished.iterdir() if path.suffix == ".tmp"]


def test_the_page_refers_to_nothing_outside_itself(finished_page: Page) -> None:
    assert not [reference for reference in finished_page.references if not reference.startswith("#")]
    assert not re.search(r"https?://|@import|url\(", finished_page.source)
    assert "script" not in finished_page.tags


def test_the_headline_gives_target_source_chance_speed_and_time(finished: Path, finished_page: Page) -> None:
    result = json.loads((finished / "result.json").read_text())
    words = finished_page.words
    for piece in (f"{result['target_top1']:.1f}", f"{result['source_top1']:.1f}", "12.5", "36.2", "clips/s", "3:07"):
        assert piece in words
    assert "mmsada (released) · K1 to K2 · 8 classes · seed 0 · 180 steps · 2 ranks" in words


@pytest.mark.parametrize(
    "piece",
    [
        "Loss", "Two-way losses", "ln 2, guessing", "stage 2", "Accuracy on training clips", "domain, flow",
        "Accuracy on evaluated segments (fused)", "Confusion on target/test", "Before, coloured by class",
        "After, coloured by domain", "Recall by class on target/test", "Reliability on target/test",
        "Expected calibration error", "t-SNE, perplexity 30", "Throughput", "Time waiting for data", "global step",
        "share of step (%)", "Resolved configuration", "store: stores/toy-kitchens", "Command and versions",
        "mmsada train --config configs/demo.yaml", *CLASSES,
    ],
)  # fmt: skip
def test_the_page_shows(finished_page: Page, piece: str) -> None:
    assert piece in finished_page.words


def test_it_is_made_for_light_dark_and_phones(finished_page: Page) -> None:
    assert "prefers-color-scheme:dark" in finished_page.source
    assert 'name="viewport"' in finished_page.source


def test_the_same_run_gives_the_same_page(finished: Path, finished_page: Page, tmp_path: Path) -> None:
    assert write_report([finished], out=tmp_path / "again.html").read_text() == finished_page.source


def test_several_runs_are_compared_with_means_over_seeds_and_a_dotted_baseline(finished: Path, tmp_path: Path) -> None:
    runs = [finished]
    runs.append(write_run(tmp_path / "mmsada-s1", seed=1, features=False))
    runs.append(write_run(tmp_path / "source_only-s0", method="source_only", target_top1=35, features=False))
    page = Page(write_report(runs, out=tmp_path / "all.html"))
    for piece in (
        "3 runs",
        "Runs compared",
        "mean of 2 ± sd",
        "Target accuracy",
        "Settings that differ",
        "method.name",
    ):
        assert piece in page.words
    assert {"#run0", "#run1", "#run2"} <= set(page.references)
    mmsada, _, source_only = read_runs(runs)
    assert baseline_of(mmsada, [mmsada, source_only]) == (source_only.result["target_top1"], "source_only")
    assert baseline_of(source_only, [mmsada, source_only]) is None


def test_recall_by_class_is_set_against_source_only_of_the_same_seed(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"mmsada-s{seed}", seed=seed, features=False, stages=(2, 2)) for seed in (0, 1)]
    runs.append(write_run(tmp_path / "source_only-s0", method="source_only", features=False, stages=(2, 2)))
    for folder, recall in zip(runs, (60.0, 70.0, 45.0), strict=True):
        result = json.loads((folder / "result.json").read_text())
        result["evaluations"]["target/test"]["per_class_recall"] = [recall, None, *[20.0] * 6]
        (folder / "result.json").write_text(json.dumps(result))
    first, second, baseline = read_runs(runs)
    read = [first, second, baseline]
    assert [other and other.name for other in (twin_baseline(run, read) for run in read)] == [
        "source_only-s0",
        None,
        None,
    ]
    words = class_table(first, read)
    assert "<td>60.0</td><td>45.0</td><td>+15.0</td>" in words
    assert "<td>-</td><td>-</td><td>-</td>" in words
    assert "change" not in class_table(second, read)


def test_a_stream_that_is_new_is_shown_after_rgb_and_flow(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "three", features=False, stages=(2, 8))
    result = json.loads((folder / "result.json").read_text())
    result["evaluations"]["target/test"] |= {"top1_audio": 33.3, "domain_acc_audio": 66.6}
    (folder / "result.json").write_text(json.dumps(result))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "loss_domain_audio": 0.5, "domain_acc_audio": 60.0} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = Page(write_report([folder])).words
    assert "fused % segments rgb flow audio recall domain rgb domain flow domain audio corr." in words
    assert "33.3" in words and "66.6" in words
    assert words.count("domain, audio") == 2


def test_a_page_about_many_runs_folds_them_and_links_to_each(tmp_path: Path) -> None:
    for seed in range(8):
        write_run(tmp_path / f"s{seed}", seed=seed, features=False, stages=(2, 2))
    page = Page(write_report([tmp_path]))
    assert (tmp_path / "report.html").is_file()
    assert page.source.count('<details class="run">') == 8
    assert {f"#run{index}" for index in range(8)} == set(page.references)
    assert all(f'<div id="run{index}">' in page.source for index in range(8))
    assert "Every run (8)" in page.words


def test_the_result_is_the_mean_over_checkpoints_where_there_are_several(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "nine", features=False, stages=(2, 2))
    result = json.loads((folder / "result.json").read_text())
    result |= {"checkpoints": [5600, 5650], "target_top1": 61.25, "target_top1_std": 0.75}
    (folder / "result.json").write_text(json.dumps(result))
    assert "61.2 % target/test top-1, mean of 2 checkpoints (sd 0.8)" in Page(write_report([folder])).words


def test_means_are_taken_over_finished_runs_that_differ_in_the_seed_alone(tmp_path: Path) -> None:
    first = write_run(tmp_path / "s0", features=False, stages=(2, 2))
    going = write_run(tmp_path / "s1", seed=1, finished=False, features=False, stages=(2, 2))
    other = write_run(tmp_path / "s2", seed=2, features=False, stages=(2, 2))
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("lr: 0.01", "lr: 0.1"))
    words = Page(write_report([first, going, other], out=tmp_path / "all.html")).words
    assert "± sd" not in words
    assert "mixed settings, no mean: mmsada (lambda_d 1) K1→K2: train.lr: 0.01 (s0), 0.1 (s2)" in words
    assert "unfinished (no result.json), not counted: s1" in words


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "run", features=False, stages=(2, 2)) for name in ("a", "b")]
    assert [run.name for run in read_runs([*folders, folders[0]])] == ["a/run", "b/run"]


def test_a_run_that_is_still_going_says_so_and_what_it_lacks(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "going", finished=False, features=False)
    words = Page(write_report([folder])).words
    assert "the run is not finished" in words
    assert "state at global step 180" in words
    assert "No confusion matrix" in words
    assert "no features/before.npz; no features/after.npz" in words
    assert "Command and versions: not recorded" in words


def test_a_run_that_has_only_just_begun_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    words = Page(write_report([tmp_path])).words
    for piece in ("No evaluation yet.", "No training step yet.", "No timed step yet.", "No config.yaml"):
        assert piece in words


def test_missing_and_empty_values_leave_gaps_not_errors(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "global_step": step, "loss": None if step == 2 else 1.0, "step_s": 0} for step in (1, 2, 3)
    ]
    rows.append({"kind": "eval", "global_step": 3, "set": "target/test", "top1": None})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Loss" in Page(write_report([tmp_path])).words


def test_text_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    folder = write_run(tmp_path / "x<b>y", features=False)
    (folder / "config.yaml").write_text(f"method: {{name: '{evil.replace(chr(39), '')}'}}\nnote: {evil}\n")
    result = json.loads((folder / "result.json").read_text())
    result["classes"], result["method"], result["source"] = [evil] * 8, evil, [evil]
    result["evaluations"][f"target/{evil}"] = result["evaluations"]["target/test"]
    (folder / "result.json").write_text(json.dumps(result))
    write_record(folder, command=[evil])
    page = Page(write_report([folder], out=tmp_path / "page.html"))
    assert not {"script", "b>y"} & set(page.tags)
    assert "<script" not in page.source


def test_the_command_line_prints_where_the_page_is(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    assert report.run(parser.parse_args([str(finished), "--out", str(tmp_path / "p.html")])) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'p.html'}\n"


def test_folders_and_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=rf"{tmp_path}: no run in it"):
        write_report([tmp_path])
    folder = write_run(tmp_path / "run", features=False, stages=(2, 2))
    with pytest.raises(UserError, match=r"missing/p\.html: cannot write the report"):
        write_report([folder], out=tmp_path / "missing" / "p.html")
    with pytest.raises(UserError, match=r"is a folder; name the HTML file"):
        write_report([folder], out=tmp_path)
    (folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is not valid JSON"):
        write_report([folder])


def test_the_embedding_says_how_far_the_domains_are_mixed(tmp_path: Path) -> None:
    write_features(tmp_path / "far.npz", apart=8.0, clips=80)
    write_features(tmp_path / "near.npz", apart=0.0, clips=80)
    far, near = embed(tmp_path / "far.npz"), embed(tmp_path / "near.npz")
    assert far.mixing is not None
    assert near.mixing is not None
    assert far.mixing < 10 < 35 < near.mixing
    assert far.full_mixing == pytest.approx(100 * 40 / 79)
    assert near.transfer == 100
    assert near.xy.shape == (80, 2)


def test_few_or_constant_features_fall_back_to_pca(tmp_path: Path) -> None:
    write_features(tmp_path / "few.npz", apart=1.0, clips=6)
    assert embed(tmp_path / "few.npz").how == "PCA, too few clips for t-SNE"
    zeros = np.zeros((20, 4), np.float32)
    np.savez(tmp_path / "flat.npz", rgb=zeros, flow=zeros, domain=np.arange(20) % 2, label=np.zeros(20, int))
    assert np.isfinite(embed(tmp_path / "flat.npz").xy).all()


def test_many_clips_are_thinned_and_it_says_so(tmp_path: Path) -> None:
    write_features(tmp_path / "many.npz", apart=1.0, clips=90)
    embedding = embed(tmp_path / "many.npz", most=40)
    assert (len(embedding.xy), embedding.clips) == (40, 90)
    assert MAX_POINTS > 1000


def test_features_that_cannot_be_used_are_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UnusableFeaturesError, match=r"torn\.npz cannot be read"):
        embed(tmp_path / "torn.npz")
    np.savez(tmp_path / "nan.npz", rgb=np.full((12, 2), np.nan), domain=np.zeros(12, int), label=np.zeros(12, int))
    with pytest.raises(UnusableFeaturesError, match="not finite"):
        embed(tmp_path / "nan.npz")


def test_smoothing_keeps_gaps_and_stays_inside_the_data() -> None:
    values = np.array([1.0, np.nan, 3.0, 100.0, 3.0])
    assert np.isnan(running_mean(values, 3)[1])
    assert running_mean(values, 3)[0] == 1.0
    assert running_median(values, 3).tolist()[2:] == [51.5, 3.0, 51.5]
    assert running_mean(np.ones(50), 9).tolist() == [1.0] * 50


def test_stage_changes_are_found_at_their_global_step() -> None:
    rows = [{"stage": 1, "global_step": 5}, {"stage": 1, "global_step": 6}, {"stage": 2, "global_step": 7}]
    assert stage_changes(rows) == [(7.0, "stage 2")]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.7), (0.0, 9001.0), (-3.0, 2.0), (1e-4, 3e-4)])
def test_axis_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 7
    assert all(low - 1e-9 <= mark <= high + 1e-9 for mark in marks)
    assert all(len(tick_label(mark)) <= 7 for mark in marks)


def test_flat_names_settings_by_their_dotted_keys() -> None:
    assert flat({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": "1", "a.c": "[2]", "d": "None"}
