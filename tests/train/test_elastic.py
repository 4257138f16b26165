"""A run of four ranks goes on with two, and with one: accumulation takes up the difference (laws 1, 7)."""

import math
from pathlib import Path

import pytest

from mmsada_hpc.config import load_config
from mmsada_hpc.data.store import Store
from mmsada_hpc.methods import batch_layout
from tests.train.ranks import Job, run_ranks
from tests.train.test_law1 import rows, tiny_run

SETTINGS = ("train.micro_batch=2", "checkpoint.every=1", "checkpoint.keep=99", "eval.every=0")
ENGINES = {
    "deepspeed fp32": ("train.engine=deepspeed", "train.precision=fp32"),
    "plain fp64": ("train.engine=ddp", "train.precision=fp64"),
}
CUT = "stage2-step00000001"


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole runs of four ranks, and the same from a checkpoint on with two and with one, in a folder an engine."""
    folder = tmp_path_factory.mktemp("elastic")

    def job(name: str, ranks: int, resume: bool) -> Job:
        words = tiny_run(tiny_store, folder / name / str(ranks), *SETTINGS, *ENGINES[name])
        return Job(words, resume_from=str(folder / name / "4/checkpoints" / CUT) if resume else None)

    for ranks in (4, 2, 1):
        run_ranks(ranks, [job(name, ranks, resume=ranks < 4) for name in ENGINES])
    return folder


@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize(("name", "tolerance"), [("deepspeed fp32", 1e-6), ("plain fp64", 1e-8)])
def test_the_first_losses_after_the_resume_agree(runs: Path, name: str, tolerance: float, ranks: int) -> None:
    ours, theirs = rows(runs / name / str(ranks))[-1], rows(runs / name / "4")[-1]
    assert ours["global_step"] == theirs["global_step"] == 3
    for key in ("loss", "loss_ce", "loss_corr", "loss_domain_rgb", "loss_domain_flow"):
        assert math.isclose(ours[key], theirs[key], rel_tol=tolerance), (key, ours[key], theirs[key])


def test_clips_and_batch_norm_groups_are_the_same(tiny_store: Store, tmp_path: Path) -> None:
    config = load_config(None, tiny_run(tiny_store, tmp_path, *SETTINGS))

    def groups(ranks: int) -> set[tuple[int, ...]]:
        layout = batch_layout(config, ranks)
        assert layout.accumulation == 4 // ranks
        micros = [layout.rows(rank, m) for rank in range(ranks) for m in range(layout.accumulation)]
        assert all(len(rows) == layout.group_size for rows in micros)
        return {tuple(rows.tolist()) for rows in micros}

    assert groups(4) == groups(2) == groups(1)
