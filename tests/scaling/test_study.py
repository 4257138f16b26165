"""A study file: the cells it unfolds into, the numbers of its plan by hand, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsada_hpc.cli import main
from mmsada_hpc.config import load_config
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.cells import Study
from mmsada_hpc.scaling.study import read_study

BASE = """
data: {source: [east], target: [west], num_frames: 8, crop: 32}
model: {width: 0.125, batch_norm: {group_size: 2, decay: 0.5}}
train:
  global_batch: 8
  stage1: {steps: 6, lr: 0.01, warmup_steps: 4}
  stage2: {steps: 4, lr: 0.02}
eval: {every: 0}
"""


def study_file(folder: Path, parts: dict[str, Any], **more: Any) -> Path:
    """A study of base batch 8 over groups of 2 clips; SGD and LARS."""
    (folder / "base.yaml").write_text(BASE)
    values = {
        "base": str(folder / "base.yaml"),
        "folder": str(folder / "runs"),
        "base_batch": 8,
        "optimizers": {"sgd": {"train.optimizer": "sgd"}, "lars": {"train.optimizer": "lars"}},
        "parts": parts,
        **more,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def slurm_profile(folder: Path, **more: Any) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"executor": "slurm", "nodes": 1, "tasks_per_node": 1, **more}))
    return str(path)


def names(study: Study) -> list[str]:
    return [cell.name for cell in study.cells]


def reasons(study: Study) -> list[str]:
    return [cell.refused or "" for cell in study.cells]


def planned(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["scale", "plan", str(path), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# What a file unfolds into


def test_weak_scaling_gives_the_micro_batch_and_the_batch_grows_with_the_ranks(tmp_path: Path) -> None:
    part = {"nodes": [1, 2], "tasks_per_node": 2, "micro_batch": 4, "accumulation": [1, 3], "optimizer": "sgd"}
    cells = read_study(study_file(tmp_path, {"weak": part}), cluster=slurm_profile(tmp_path)).cells
    assert [(cell.ranks, cell.global_batch) for cell in cells] == [(2, 8), (2, 24), (4, 16), (4, 48)]
    assert cells[3].name == "weak/n2x2-m4-a3/sgd-fixed/0"
    train = cells[3].config.train
    assert (train.global_batch, train.micro_batch, train.base_batch, train.lengths) == (48, 4, 8, "samples")
    assert cells[3].config.run.dir == tmp_path / "runs/weak/n2x2-m4-a3/sgd-fixed/0"


def test_strong_scaling_gives_the_batch_and_the_split_follows(tmp_path: Path) -> None:
    parts = {
        "micro": {"tasks_per_node": [1, 2], "global_batch": 16, "optimizer": "sgd"},
        "accumulation": {"tasks_per_node": [1, 2], "global_batch": 32, "micro_batch": 4, "optimizer": "sgd"},
    }
    cells = read_study(study_file(tmp_path, parts)).cells
    assert [(cell.micro_batch, cell.accumulation) for cell in cells] == [(16, 1), (8, 1), (4, 8), (4, 4)]
    assert {cell.global_batch for cell in cells} == {16, 32}


def test_at_the_base_batch_the_rules_are_one_cell(tmp_path: Path) -> None:
    part = {"global_batch": [8, 16], "optimizer": "sgd", "rule": ["linear", "sqrt", "fixed"]}
    cells = read_study(study_file(tmp_path, {"p": part})).cells
    assert [cell.name.partition("/")[2] for cell in cells] == [
        "n1x1-m8-a1/sgd-linear/0",
        "n1x1-m16-a1/sgd-linear/0",
        "n1x1-m16-a1/sgd-sqrt/0",
        "n1x1-m16-a1/sgd-fixed/0",
    ]
    assert cells[0].also == ("p/n1x1-m8-a1/sgd-sqrt/0", "p/n1x1-m8-a1/sgd-fixed/0")


def test_a_run_that_two_parts_name_is_made_once(tmp_path: Path) -> None:
    parts = {
        "first": {"global_batch": 16, "optimizer": "sgd", "seed": [0, 1]},
        "second": {"micro_batch": 16, "optimizer": ["sgd", "lars"]},
        "split": {"global_batch": 16, "micro_batch": 8, "optimizer": "sgd"},
    }
    study = read_study(study_file(tmp_path, parts))
    assert names(study) == [
        "first/n1x1-m16-a1/sgd-fixed/0",
        "first/n1x1-m16-a1/sgd-fixed/1",
        "second/n1x1-m16-a1/lars-fixed/0",
        "split/n1x1-m8-a2/sgd-fixed/0",
    ], "another split of the same batch is another cell: what is measured is its speed, too"
    assert study.cells[0].also == ("second/n1x1-m16-a1/sgd-fixed/0",)


def test_the_words_of_a_cell_load_the_same_config_alone(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, {"p": {"global_batch": 16, "optimizer": "lars"}}), ["train.momentum=0.8"])
    assert study.cells[0].config.train.momentum == 0.8
    for cell in study.cells:
        assert load_config(study.base, cell.overrides) == cell.config


def test_only_chooses_by_the_name(tmp_path: Path) -> None:
    path = study_file(tmp_path, {"p": {"global_batch": [16, 32], "optimizer": ["sgd", "lars"]}})
    assert names(read_study(path, only="m16-a1/lars")) == ["p/n1x1-m16-a1/lars-fixed/0"]
    with pytest.raises(UserError, match="no cell with 'n9' in its name; the first is p/n1x1-m16-a1/sgd-fixed/0"):
        read_study(path, only="n9")


def test_the_shipped_example_is_four_cells_that_can_run() -> None:
    cells = read_study(Path("study/example.yaml")).cells
    assert len(cells) == 4
    assert [cell.refused for cell in cells if cell.config.data.store and cell.config.data.store.is_dir()] in (
        [],
        [None] * 4,
    )


# The plan's numbers by hand


def test_the_plan_tells_rates_updates_warmup_and_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = {"global_batch": [8, 32], "optimizer": "sgd", "rule": ["linear", "sqrt"]}
    found = planned(study_file(tmp_path, {"p": part}), capsys)["cells"]
    base, linear, sqrt = found
    assert base["learning_rate"] == [0.01, 0.02]
    assert (base["stage_updates"], base["warmup_updates"], base["clips"]) == ([6, 4], [4, 0], 80)
    assert linear["learning_rate"] == pytest.approx([0.04, 0.08])
    assert sqrt["learning_rate"] == pytest.approx([0.02, 0.04])
    assert linear["stage_updates"] == sqrt["stage_updates"] == [2, 1], "48 and 32 clips in batches of 32, rounded up"
    assert linear["warmup_updates"] == [1, 0], "32 clips"
    assert linear["clips"] == 96
    assert {row["source"] for row in found} == {"not known"}


def test_equal_steps_keep_the_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, {"p": {"global_batch": [8, 32], "optimizer": "sgd"}}, hold="updates")
    found = planned(path, capsys)["cells"]
    assert [(row["stage_updates"], row["clips"]) for row in found] == [([6, 4], 80), ([6, 4], 320)]


def test_the_cost_comes_from_finished_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = slurm_profile(tmp_path)
    part = {"nodes": [2, 4], "micro_batch": 4, "accumulation": [1, 2], "optimizer": "sgd", "seed": [0, 1]}
    path = study_file(tmp_path, {"p": part}, cluster=profile)
    done = tmp_path / "runs/p/n2x1-m4-a1/sgd-fixed/0"
    done.mkdir(parents=True)
    (done / "result.json").write_text(json.dumps({"seconds": 160.0}))  # 80 clips: 2 s each
    found = planned(path, capsys)
    by_name = {row["name"].partition("/")[2]: row for row in found["cells"]}
    assert by_name["n2x1-m4-a1/sgd-fixed/0"]["state"] == "finished"
    assert by_name["n2x1-m4-a1/sgd-fixed/0"]["node_hours"] == pytest.approx(2 * 160 / 3600, abs=1e-4)
    other_seed, other_batch = by_name["n2x1-m4-a1/sgd-fixed/1"], by_name["n2x1-m4-a2/sgd-fixed/0"]
    assert (other_seed["seconds"], other_seed["source"]) == (160, "finished cells of this shape and optimiser")
    assert other_batch["source"] == "finished cells on these ranks with this micro-batch"
    assert other_batch["seconds"] == 2 * other_batch["clips"]
    assert by_name["n4x1-m4-a1/sgd-fixed/0"]["source"] == "not known", "no cell on four nodes has finished"
    left = found["left"]
    assert (left["cells"], left["cells_of_unknown_cost"]) == (7, 4)
    assert left["seconds"] == 160 + 2 * other_batch["seconds"]
    assert main(["scale", "plan", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "finished: 1 of 8 cells that can run" in printed
    assert "and 4 cells of which it is not known" in printed


def test_the_cost_comes_from_rows_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, {"p": {"tasks_per_node": 2, "global_batch": [16, 32], "optimizer": "sgd"}})
    rows = tmp_path / "rows.jsonl"
    row = {"bench": "e2e", "name": "throughput, mmsada 8x32^2 w0.125 N=16 fp32 ZeRO0 x2", "unit": "clips/s"}
    rows.write_text("".join(json.dumps(row | {"value": value}) + "\n" for value in (10.0, 8.0, 12.0)))
    same, other = planned(path, capsys, "--rows", str(rows))["cells"]
    assert (same["clips"], same["seconds"], same["source"]) == (80, 8.0, "bench e2e on 2 ranks")
    assert other["source"] == "bench e2e on 2 ranks, measured at batch 16"
    rows.write_text(json.dumps(row | {"bench": "step", "name": "fused fp32 8x8x32^2 width 0.125", "value": 4.0}))
    same, other = planned(path, capsys, "--rows", str(rows))["cells"]
    assert (same["seconds"], other["source"]) == (80 / (4.0 * 2), "not known")
    assert "communication are left out" in same["source"]
    rows.write_text("a table\n")
    assert main(["scale", "plan", str(path), "--rows", str(rows)]) == 2
    assert "not rows of `mmsada bench --json FILE`" in capsys.readouterr().err


# What is refused


def test_a_batch_that_is_not_whole_groups_says_which_sizes_fit(tmp_path: Path) -> None:
    parts = {
        "uneven": {"tasks_per_node": 3, "global_batch": 16, "optimizer": "sgd"},
        "groups": {"tasks_per_node": 2, "global_batch": 16, "micro_batch": [4, 3, 1], "optimizer": "sgd"},
        "steps": {"global_batch": 16, "accumulation": 3, "optimizer": "sgd"},
        "weak": {"tasks_per_node": 3, "micro_batch": [2, 3], "optimizer": "sgd"},
    }
    study = read_study(study_file(tmp_path, parts))
    assert names(study)[0] == "uneven/n1x3-b16/sgd-fixed/0"
    uneven, fits, odd, small, steps, even, uneven_too = reasons(study)
    assert uneven.endswith("global batches that fit: multiples of 12, such as 12 or 24")
    assert fits == ""
    assert "does not split over 2 rank(s) x micro-batches of 3; micro-batches that fit: 2, 4, 8" in odd
    assert "train.micro_batch=1 does not split train.global_batch=16" in small and "fit: 2, 4, 8" in small
    assert "over 1 rank(s) x accumulation 3; micro-batches that fit: 2, 4, 8, 16" in steps
    assert "not whole batch-norm groups" in even and "not whole batch-norm groups" in uneven_too
    for cell in study.cells:
        if cell.refused is None:
            assert (cell.micro_batch, cell.accumulation) == (4, 2)


def test_a_layerwise_optimizer_on_shards_is_refused_alone(tmp_path: Path) -> None:
    path = study_file(tmp_path, {"p": {"global_batch": 16, "optimizer": ["sgd", "lars"]}}, set={"train.zero_stage": 1})
    sgd, lars = read_study(path).cells
    assert sgd.refused is None
    assert lars.refused is not None and "zero_stage" in lars.refused
    assert lars.config.run.dir == tmp_path / "runs" / lars.name
    assert lars.state == "refused" and lars.result is None


def test_more_clips_than_segments_are_refused_unless_wanted(tmp_path: Path, tiny_store: Store) -> None:
    store = {"data.store": str(tiny_store.path)}
    part = {"p": {"global_batch": [24, 32], "optimizer": "sgd"}}
    fits, over = reasons(read_study(study_file(tmp_path, part, set=store)))
    assert fits == ""
    assert "takes 16 clips of east an update, which has 12 training segments" in over
    assert reasons(read_study(study_file(tmp_path, part, set=store, whole_passes=True))) == ["", ""]


def test_nodes_memory_and_gpus_that_a_cluster_lacks_are_refused(tmp_path: Path) -> None:
    path = study_file(tmp_path, {"p": {"nodes": 2, "tasks_per_node": [1, 4], "micro_batch": 4, "optimizer": "sgd"}})
    assert all("several need Slurm" in why for why in reasons(read_study(path)))
    assert reasons(read_study(path, cluster=slurm_profile(tmp_path, gpus_per_node=4))) == ["", ""]
    one, four = reasons(read_study(path, cluster=slurm_profile(tmp_path, gpus_per_node=2)))
    assert one == "" and "has 2 GPUs a node" in four
    one, four = reasons(read_study(path, cluster=slurm_profile(tmp_path, mem_gb=0.02)))
    assert one == "" and "micro-batch 4 needs about" in four and "on a node of 0.02 GB" in four


def test_refusals_do_not_stop_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, {"p": {"global_batch": [16, 17], "optimizer": "sgd"}})
    assert main(["scale", "plan", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "cannot run (1 of 2):\n  p/n1x1-b17/sgd-fixed/0:" in printed or "p/n1x1-m17-a1/sgd-fixed/0:" in printed
    assert "left: 1 cells" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_batch": 0}, "base_batch: Input should be greater than or equal to 1"),
        ({"base": "nowhere.yaml"}, "base: --config nowhere.yaml: no such file"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"set": {"train.stage1.rate": 1}}, "train.stage1.rate: unknown key"),
        ({"set": {"train.lr_rule": "sqrt"}}, "set: train.lr_rule is set by the axis rule of a study"),
        ({"optimizers": {"sgd": {"seed": 3}}}, "optimizers.sgd: seed is set by the axis seed of a study"),
        (
            {"parts": {"p": {"nodes": 2, "optimizer": "sgd"}}},
            "parts.p: give micro_batch (weak scaling) or global_batch",
        ),
        ({"parts": {"p": {"global_batch": 8}}}, "parts.p: optimizer: name one or more of sgd, lars"),
        ({"parts": {"p": {"global_batch": 8, "optimizer": "adam"}}}, "adam is not among optimizers (sgd, lars)"),
        ({"parts": {"p": {"global_batch": [8, 8], "optimizer": "sgd"}}}, "global_batch: 8 is there twice"),
        ({"parts": {"p": {"global_batch": [], "optimizer": "sgd"}}}, "parts.p: global_batch is empty"),
        ({"parts": {"p": {"rule": "cubic", "global_batch": 8}}}, "parts.p.rule.0: Input should be 'fixed'"),
        (
            {"parts": {"p": {"global_batch": 8, "micro_batch": 4, "accumulation": 2, "optimizer": "sgd"}}},
            "micro_batch, accumulation and global_batch are too many",
        ),
        ({"cluster": "nowhere"}, "--cluster nowhere: neither a profile"),
    ],
)
def test_a_wrong_study_is_one_line(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, {"p": {"global_batch": 8, "optimizer": "sgd"}})
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change, sort_keys=False))
    assert main(["scale", "plan", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
