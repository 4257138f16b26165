"""Runs with other optimisers and at other batches: resumed bit for bit, independent of the spread (law 1), and with a
noise scale that every engine measures alike.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmsada_hpc.data.store import Store
from tests.train.ranks import Job, run_ranks
from tests.train.test_law1 import rows, tiny_run

OPTIMIZERS = {
    "nesterov": ("train.nesterov=true", "train.engine=ddp"),
    "adamw": ("train.optimizer=adamw", "train.engine=ddp"),
    "lars": ("train.optimizer=lars", "train.stage1.lr=1.0", "train.stage2.lr=1.0"),
    "lamb": ("train.optimizer=lamb", "train.stage1.lr=0.01", "train.stage2.lr=0.01"),
}
SMALL = ("model.width=0.0625", "eval.sets=[target/test]", "eval.windows=1", "checkpoint.every=1", "checkpoint.keep=99")
PLAIN = ("train.engine=ddp", "train.precision=fp64")
BATCH = 8
CUT, END = "stage2-step00000001", "stage2-step00000002"
ENGINES = {
    "ddp": ("train.engine=ddp",),
    "deepspeed": (),
    "deepspeed's own averaging": ("train.overlap=false",),
    "zero 1": ("train.zero_stage=1",),
}


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")

    def job(name: str, *words: str, resume_from: str | None = None) -> Job:
        return Job(tiny_run(tiny_store, folder / name, *SMALL, *words), resume_from=resume_from)

    two = list[Job]()
    for name, words in OPTIMIZERS.items():
        two += [job(name, *words), job(f"{name} again", *words, resume_from=str(folder / name / "checkpoints" / CUT))]
    two += [job(f"{name} 2x4", *OPTIMIZERS[name], *PLAIN, "train.micro_batch=4") for name in ("lars", "lamb")]
    two += [job(name, *words) for name, words in ENGINES.items()]
    pure = ("train.micro_batch=2", "train.layout=domain_pure")
    two += [job(f"2x2x2 {engine}", f"train.engine={engine}", *pure) for engine in ("ddp", "deepspeed")]
    run_ranks(2, two, timeout=1200)
    one = [job(f"{name} 1x4x2", *OPTIMIZERS[name], *PLAIN, "train.micro_batch=4") for name in ("lars", "lamb")]
    one += [job(f"1x4x2 {engine}", f"train.engine={engine}", "train.micro_batch=4") for engine in ("ddp", "deepspeed")]
    run_ranks(1, [*one, job("1x8")], timeout=600)
    return folder


def state(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    loaded: dict[str, dict[str, torch.Tensor]] = torch.load(folder / "checkpoints" / END / "state.pt")
    return loaded


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs: Path, name: str) -> None:
    ours, theirs = state(runs / f"{name} again"), state(runs / name)
    for part in ("model", "momentum"):
        assert set(ours[part]) == set(theirs[part]) != set()
        for key, value in theirs[part].items():
            assert torch.equal(ours[part][key], value), (part, key)
    assert logged(runs / f"{name} again") == logged(runs / name)[-1:]


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_layer_wise_updates_do_not_depend_on_the_spread(runs: Path, name: str) -> None:
    ours, theirs = rows(runs / f"{name} 1x4x2"), rows(runs / f"{name} 2x4")
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        for key in ("loss", "loss_ce", "loss_corr", "loss_domain_rgb", "loss_domain_flow", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-8), (a["stage"], a["step"], key)
    assert theirs[0]["loss_ce"] != pytest.approx(theirs[2]["loss_ce"], rel=1e-3), "the updates move something"
    one, two = state(runs / f"{name} 1x4x2")["model"], state(runs / f"{name} 2x4")["model"]
    for key, value in two.items():
        torch.testing.assert_close(one[key], value, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("deepspeed", "ddp"),
        ("deepspeed's own averaging", "ddp"),
        ("2x2x2 deepspeed", "2x2x2 ddp"),
        ("1x4x2 deepspeed", "1x4x2 ddp"),
    ],
)
def test_every_engine_measures_the_same_noise(runs: Path, name: str, plain: str) -> None:
    """Of ranks, of micro-batches domain by domain, and of micro-batches on one rank."""
    for ours, theirs in zip(rows(runs / name), rows(runs / plain), strict=True):
        near = 1e-3 * theirs["grad_norm"] ** 2
        assert ours["noise_trace"] / BATCH == pytest.approx(theirs["noise_trace"] / BATCH, abs=near)
        assert ours["noise_grad2"] == pytest.approx(theirs["noise_grad2"], abs=near)
        assert abs(theirs["noise_trace"]) / BATCH > 10 * near, "gradients that were averaged already would give none"


@pytest.mark.parametrize("name", ["zero 1", "1x8"])
def test_where_gradients_leave_in_pieces_or_come_in_one_there_is_no_noise_scale(runs: Path, name: str) -> None:
    for row in rows(runs / name):
        assert [row[key] for key in ("noise_scale", "noise_trace", "noise_grad2")] == [None, None, None]


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """What training rows say, the times and the smoothing of rows that only one of the folders has apart."""
    apart = ("time", "step_s", "data_wait_s", "clips_per_s", "noise_scale")
    return [{key: row[key] for key in row if key not in apart} for row in rows(run_dir)]
