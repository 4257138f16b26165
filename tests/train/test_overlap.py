"""Averaging during the backward inside DeepSpeed's stage 0 gives what averaging after it gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmsada_hpc.config import load_config
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.data.store import Store
from mmsada_hpc.train.engine import overlaps
from mmsada_hpc.train.overlap import BUCKET_BYTES, cut_into_buckets
from tests.train.ranks import Job, free_port, run_ranks
from tests.train.test_law1 import rows, tiny_run

# Wide enough for several messages.
WIDE = ("model.width=0.25", "train.micro_batch=2", "checkpoint.every=1", "checkpoint.keep=9")
WAYS = {
    "bf16": ("train.precision=bf16",),
    "fp32, mmd": ("method.name=mmd", "method.mmd_block=2"),
}


def test_messages_are_cut_from_the_last_parameter_to_the_first() -> None:
    assert cut_into_buckets([5, 5, 20, 1, 2], 8) == [[4, 3, 2], [1, 0]]
    assert cut_into_buckets([9, 9], 8) == [[1], [0]]
    assert cut_into_buckets([], 8) == []


@pytest.mark.parametrize("world", [2, 3])
def test_averages_are_those_of_one_message_after_the_backward(world: int) -> None:
    common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **common, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.train.overlap_ranks"]
    ranks = [
        subprocess.Popen(
            words,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(said)


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each way with the averaging during and after the backward, on two ranks with two micro-batches each."""
    folder = tmp_path_factory.mktemp("overlap")
    jobs = [
        Job(tiny_run(tiny_store, folder / f"{name} {overlap}", *WIDE, *settings, f"train.overlap={overlap}"))
        for name, settings in WAYS.items()
        for overlap in ("true", "false")
    ]
    run_ranks(2, jobs)
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_a_run_is_the_same_bit_for_bit_with_and_without_it(runs: Path, name: str) -> None:
    states = [
        torch.load(runs / f"{name} {overlap}/checkpoints/stage2-step00000002/state.pt", weights_only=True)
        for overlap in ("true", "false")
    ]
    assert sum(4 * value.numel() for value in states[0]["momentum"].values()) > 2 * BUCKET_BYTES
    for part in ("model", "momentum"):
        assert set(states[0][part]) == set(states[1][part]) != set()
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), (part, key)
    losses = [[row["loss"] for row in rows(runs / f"{name} {overlap}")] for overlap in ("true", "false")]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_it_is_for_several_ranks_of_deepspeed_at_stage_0() -> None:
    def on(world: int, *words: str) -> bool:
        return overlaps(load_config(None, words).train, BatchLayout(8 * world, 8, 1, world, 4, 2, "mixed"))

    assert on(2)
    assert not on(1)
    for word in ("engine=ddp", "zero_stage=1", "overlap=false", "accelerate=graphs"):
        assert not on(2, f"train.{word}"), word
