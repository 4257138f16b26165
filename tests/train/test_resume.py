"""k steps, a stop, n - k steps = n steps, bit for bit, on two ranks (laws 1, 7)."""

import json
from pathlib import Path

import pytest
import torch

from mmsada_hpc.data.store import Store
from tests.train.ranks import Job, run_ranks
from tests.train.test_law1 import rows, tiny_run

# Twelve source clips and four a step: stage 1 step 2 lies inside an epoch.
CUTS = {
    "inside stage 1": "stage1-step00000002",
    "across the stage change": "stage1-step00000003",
    "inside stage 2": "stage2-step00000002",
}
SETTINGS = ("train.stage1.steps=3", "train.stage2.steps=3", "checkpoint.every=1", "checkpoint.keep=99", "eval.every=2")


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    whole = folder / "whole"
    jobs = [Job(tiny_run(tiny_store, whole, *SETTINGS))]
    jobs += [
        Job(tiny_run(tiny_store, folder / name, *SETTINGS), resume_from=str(whole / "checkpoints" / cut))
        for name, cut in CUTS.items()
    ]
    run_ranks(2, jobs)
    return folder


def state(folder: Path, name: str) -> dict[str, dict[str, torch.Tensor]]:
    loaded: dict[str, dict[str, torch.Tensor]] = torch.load(
        folder / "checkpoints" / name / "state.pt", weights_only=True
    )
    return loaded


@pytest.mark.parametrize("name", CUTS)
def test_weights_statistics_and_momentum_are_equal_bit_for_bit(runs: Path, name: str) -> None:
    ours, whole = (state(runs / n, "stage2-step00000003") for n in (name, "whole"))
    for part in ("model", "momentum"):
        assert set(ours[part]) == set(whole[part]) != set()
        for key, value in whole[part].items():
            assert torch.equal(ours[part][key], value), (part, key)


@pytest.mark.parametrize("name", CUTS)
def test_losses_and_accuracies_are_equal_bit_for_bit(runs: Path, name: str) -> None:
    # The noise scale is smoothed over the rows of the log, and these folders begin without one.
    varies = ("time", "seconds", "step_s", "data_wait_s", "clips_per_s", "noise_scale")

    def untimed(row: dict[str, float]) -> dict[str, float]:
        return {k: v for k, v in row.items() if k not in varies}

    for kind in ("train", "eval"):
        ours = [untimed(r) for r in rows(runs / name, kind)]
        whole = [untimed(r) for r in rows(runs / "whole", kind)]
        assert len(ours) > 0
        assert ours == whole[-len(ours) :]
    results = [json.loads((runs / n / "result.json").read_text()) for n in (name, "whole")]
    assert results[0]["evaluations"] == results[1]["evaluations"]


def test_momentum_and_discriminators_start_anew_with_stage_2(runs: Path) -> None:
    end, after = (state(runs / "whole", n) for n in ("stage1-step00000003", "stage2-step00000001"))
    head = "method.discriminator.rgb.0.weight"
    initial = state(runs / "whole", "stage1-step00000001")["model"][head]
    assert torch.allclose(end["model"][head], initial, atol=1e-6), "no discriminator learns in stage 1"
    assert not torch.allclose(after["model"][head], initial, atol=1e-3)
    backbone = "network.streams.rgb.Mixed_5c.b0.conv3d.weight"
    assert torch.allclose(after["model"][backbone], end["model"][backbone], atol=0.05)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_resume_bit_for_bit_from_the_one_consolidated_file(
    tiny_store: Store, tmp_path: Path, stage: int
) -> None:
    settings = (*SETTINGS, f"train.zero_stage={stage}", "train.stage1.steps=1", "model.width=0.0625")
    whole, again = tmp_path / "whole", tmp_path / "again"
    cut = str(whole / "checkpoints" / "stage2-step00000002")
    jobs = [Job(tiny_run(tiny_store, whole, *settings)), Job(tiny_run(tiny_store, again, *settings), resume_from=cut)]
    run_ranks(2, jobs)
    for part in ("model", "momentum"):
        ours, theirs = (state(folder, "stage2-step00000003")[part] for folder in (again, whole))
        assert set(ours) == set(theirs) != set()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), (part, key)


def test_a_run_goes_on_with_another_number_of_ranks(runs: Path, tiny_store: Store, tmp_path: Path) -> None:
    cut = str(runs / "whole" / "checkpoints" / CUTS["inside stage 2"])
    run_ranks(1, [Job(tiny_run(tiny_store, tmp_path / "one", *SETTINGS, "train.micro_batch=4"), resume_from=cut)])
    ours, theirs = rows(tmp_path / "one")[-1], rows(runs / "whole")[-1]
    assert ours["global_step"] == theirs["global_step"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
