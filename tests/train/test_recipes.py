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
    two.append(job("2x2x2", "train.engine=ddp", "train.micro_batch=2", "train.layout=domain_pure"))
    run_ranks(2, two, timeout=1200)
    one = [job(f"{name} 1x4x2", *OPTIMIZERS[name], *PLAIN, "train.micro_batch=4") for name in ("lars", "lamb")]
    run_ranks(1, [*one, job("1x4x2", "train.engine=ddp", "train.micro_batch=4"), job("1x8")], timeout=600)
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
    assert losses(rows(runs / f"{name} again")) == losses(rows(runs / name))[-1:]


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_layer_wise_updates_do_not_depend_on_the_spread(runs: Path, name: str) -> None:
    ours, theirs = rows(runs / f"{name} 1x4x2"), rows(runs / f"{name} 2x4")
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert losses([a])[0] == pytest.approx(losses([b])[0], rel=1e-8)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-8)
    assert theirs[0]["loss_ce"] != pytest.approx(theirs[2]["loss_ce"], rel=1e-3), "the updates move something"
    one, two = state(runs / f"{name} 1x4x2")["model"], state(runs / f"{name} 2x4")["model"]
    for key, value in two.items():
        torch.testing.assert_close(one[key], value, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["deepspeed", "deepspeed's own averaging"])
def test_every_engine_measures_the_same_noise(runs: Path, name: str) -> None:
    """A hook that saw averaged gradients would find none."""
    for ours, theirs in zip(rows(runs / name), rows(runs / "ddp"), strict=True):
        assert theirs["noise_trace"] > 0.01 * theirs["grad_norm"] ** 2
        assert ours["noise_trace"] == pytest.approx(theirs["noise_trace"], rel=1e-3)
        assert ours["noise_grad2"] == pytest.approx(theirs["noise_grad2"], rel=1e-3, abs=1e-3 * ours["grad_norm"] ** 2)


@pytest.mark.parametrize("name", ["2x2x2", "1x4x2"])
def test_other_parts_of_the_batch_estimate_the_same(runs: Path, name: str) -> None:
    """Each of few parts: alike within a factor, summed over the three updates."""
    ours, theirs = (sum(row["noise_trace"] for row in rows(runs / n)) for n in (name, "ddp"))
    assert theirs / 5 < ours < 5 * theirs


@pytest.mark.parametrize("name", ["zero 1", "1x8"])
def test_where_gradients_leave_in_pieces_or_come_in_one_there_is_no_noise_scale(runs: Path, name: str) -> None:
    for row in rows(runs / name):
        assert [row[key] for key in ("noise_scale", "noise_trace", "noise_grad2")] == [None, None, None]


def losses(found: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{key: row[key] for key in row if key.startswith(("loss", "grad_norm", "lr", "noise_t"))} for row in found]
