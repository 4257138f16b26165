"""One run through the product's entry point: what it leaves behind, what it says when it cannot go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsada_hpc.data.store import Store
from tests.train.test_law1 import rows, tiny_run

CHECKOUT = Path(__file__).resolve().parents[2]


def start(words: tuple[str, ...], *, ranks: int = 1, name: str = "train") -> "subprocess.Popen[str]":
    mpi = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    command = [*mpi, sys.executable, "-m", "mmsada_hpc.cli", name, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run_dir(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks under mpiexec, through DeepSpeed."""
    folder = tmp_path_factory.mktemp("train") / "run"
    more = (
        "observe.features=true",
        "eval.every=1",
        "eval.sets=[source/test,target/test,target/all]",
        "eval.checkpoints=[1,2]",
    )
    process = start(tiny_run(tiny_store, folder, *more), ranks=2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    (folder / "screen.txt").write_text(out)
    assert err == "", "start-up noise stays off the screen"
    return folder


def test_the_result_holds_what_a_person_asks_for(run_dir: Path, tiny_store: Store) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    wanted = {"target_segments": 4, "source_segments": 4, "steps": 3, "world_size": 2, "method": "mmsada", "seed": 0}
    assert {key: result[key] for key in wanted} == wanted
    assert 0 <= result["target_top1"] <= 100
    assert result["seconds"] > 0
    assert result["clips_per_s"] > 0
    whole = result["evaluations"]["target/all"]
    assert whole["segments"] == 16
    assert np.array(whole["confusion"]).shape == (3, 4), "the last column counts the spare outputs"
    assert np.array(whole["confusion"]).sum() == 16
    assert {"top1_rgb", "top1_flow", "mean_recall"} <= set(whole)


def test_the_result_is_the_mean_over_the_named_checkpoints(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    evaluated = {
        row["step"]: row["top1"] for row in rows(run_dir, "eval") if row["set"] == "target/test" and row["stage"] == 2
    }
    assert result["checkpoints"] == [1, 2]
    assert result["target_top1"] == pytest.approx(np.mean([evaluated[1], evaluated[2]]))


def test_the_screen_shows_progress_and_a_table_and_the_log_keeps_the_noise(run_dir: Path) -> None:
    screen, log = (run_dir / "screen.txt").read_text(), (run_dir / "run.log").read_text()
    assert "2 rank(s) by mpiexec" in screen
    assert "stage 2/2  step 2/2" in screen
    assert "target/test" in screen
    assert "accelerator" not in screen.lower()
    assert "accelerator" in log.lower()
    assert (run_dir / "run.rank1.log").exists()


def test_metrics_have_a_row_for_every_update(run_dir: Path) -> None:
    made = rows(run_dir)
    assert [(r["stage"], r["step"], r["global_step"]) for r in made] == [(1, 1, 1), (2, 1, 2), (2, 2, 3)]
    for key in ("loss", "loss_ce", "loss_corr", "loss_domain_rgb", "top1", "corr_acc", "lr", "grl", "data_wait_s"):
        assert all(key in r for r in made), key


def test_features_of_both_domains_are_kept_before_and_after(run_dir: Path) -> None:
    for name in ("before", "after"):
        features = np.load(run_dir / "features" / f"{name}.npz")
        assert features["rgb"].shape == features["flow"].shape
        assert features["domain"].tolist() == [0] * 4 + [1] * 4


def test_a_report_can_be_written_from_it(run_dir: Path) -> None:
    from mmsada_hpc.observe.report import write_report

    page = write_report([run_dir]).read_text()
    assert "target/test" in page
    assert "<script src" not in page


def test_a_finished_run_is_not_trained_again(run_dir: Path, tiny_store: Store) -> None:
    before = (run_dir / "metrics.jsonl").read_bytes()
    more = (
        "observe.features=true",
        "eval.every=1",
        "eval.sets=[source/test,target/test,target/all]",
        "eval.checkpoints=[1,2]",
    )
    process = start(tiny_run(tiny_store, run_dir, *more))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "finished already" in out
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_a_run_folder_of_other_settings_is_refused(run_dir: Path, tiny_store: Store) -> None:
    process = start(tiny_run(tiny_store, run_dir, "seed=1"))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "holds a run with other settings" in err
    assert "Traceback" not in err


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tiny_store: Store, tmp_path: Path) -> None:
    process = start(tiny_run(tiny_store, tmp_path / "run", "train.stage1.steps=9", "train.stage1.lr=1e30"))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert "not finite at step" in err
    assert "train.stage1.lr" in err
    assert "Traceback" not in err


def test_told_to_stop_both_ranks_save_the_same_step_and_a_second_start_goes_on(
    tiny_store: Store, tmp_path: Path
) -> None:
    words = tiny_run(tiny_store, tmp_path / "run", "train.stage1.steps=60", "checkpoint.every=0")
    process = start(words, ranks=2)
    deadline = time.monotonic() + 100
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode != 0
    (saved,) = (tmp_path / "run" / "checkpoints").glob("stage1-step*")
    done = int(saved.name[-8:])
    assert rows(tmp_path / "run")[-1]["step"] == done
    again = start(words, ranks=2)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert f"going on from step {done} of stage 1" in out
    assert [r["global_step"] for r in rows(tmp_path / "run")] == list(range(1, 63))


@pytest.mark.parametrize(
    "setting",
    [
        "train.zero_stage=1",
        "train.zero_stage=2",
        "train.zero_stage=3",
        "train.precision=bf16",
        "train.engine=ddp",
        "method.name=source_only",
    ],
)
def test_other_engines_precisions_and_methods_run_and_save(tiny_store: Store, tmp_path: Path, setting: str) -> None:
    process = start(tiny_run(tiny_store, tmp_path / "run", setting, "model.width=0.0625"), ranks=2)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    state = torch.load(tmp_path / "run/checkpoints/stage2-step00000002/state.pt", weights_only=True)
    assert set(state["momentum"]) <= set(state["model"])
    assert len(state["momentum"]) > 100
    assert all(value.dtype == torch.float32 for value in state["model"].values())


def test_a_run_without_a_second_stage_is_saved_at_its_end_and_not_trained_again(
    tiny_store: Store, tmp_path: Path
) -> None:
    words = tiny_run(tiny_store, tmp_path / "run", "train.stage1.steps=2", "train.stage2.steps=0", "checkpoint.every=0")
    for _ in range(2):
        out, err = (process := start(words)).communicate(timeout=120)
        assert process.returncode == 0, out + err
    assert "is finished already" in out
    assert [p.name for p in (tmp_path / "run/checkpoints").glob("stage*")] == ["stage1-step00000002"]
