"""Switches of `train` for GPUs: refused where there is none, part of the result or not. And two things that are there
for the sake of a GPU.
"""

from pathlib import Path

import pytest
import torch

from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.config import config_hash, load_config
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.base import Factors
from mmsada_hpc.train.gpu import check_switches
from mmsada_hpc.train.own_time import OwnTime
from mmsada_hpc.train.setup import Setup
from tests.train.test_law1 import tiny_run

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("switch", ["accelerate=graphs", "accelerate=compile", "side_by_side=true"])
def test_a_switch_for_gpus_is_refused_on_a_cpu(switch: str) -> None:
    train = load_config(None, [f"train.{switch}"]).train
    with pytest.raises(UserError, match=f"^train.{switch} is for a GPU; on a CPU use (none|false)$"):
        check_switches(train, CPU, 1)
    check_switches(train, GPU, 1)


def test_the_defaults_are_for_every_device() -> None:
    check_switches(load_config(None).train, CPU, 2)


def test_streams_of_their_own_are_refused_with_several_ranks() -> None:
    train = load_config(None, ["train.side_by_side=true"]).train
    with pytest.raises(UserError, match=r"^train.side_by_side=true is for one rank; with 2 ranks use false$"):
        check_switches(train, GPU, 2)
    check_switches(load_config(None, ["train.accelerate=graphs"]).train, GPU, 2)


def test_a_run_asks_before_it_trains(tiny_store: Store, tmp_path: Path) -> None:
    words = tiny_run(tiny_store, tmp_path, "train.device=cpu", "train.accelerate=graphs")
    with pytest.raises(UserError, match=r"train\.accelerate=graphs is for a GPU"):
        Setup(load_config(None, words), tiny_store, find_world({}, host="alone")).checked()


@pytest.mark.parametrize("value", ["graphs", "compile"])
def test_accelerated_networks_need_parameters_that_stay_in_their_place(value: str) -> None:
    with pytest.raises(UserError, match=rf"train\.accelerate={value} needs train\.zero_stage below 3"):
        load_config(None, [f"train.accelerate={value}", "train.zero_stage=3"])


def test_tf32_is_part_of_the_result_and_the_other_switches_are_not() -> None:
    base = config_hash(load_config(None))
    for switch in ("accelerate=graphs", "side_by_side=true", "cudnn_benchmark=false"):
        assert config_hash(load_config(None, [f"train.{switch}"])) == base
    assert config_hash(load_config(None, ["train.tf32=true"])) != base


def test_factors_reach_the_device_once_and_exactly() -> None:
    factors = Factors({"ce": 0.2, "domain": 1.0}, reversal=0.1)
    terms_T, reversal = factors.on(CPU)
    assert terms_T.tolist() == [0.2, 1.0] and reversal.item() == 0.1
    assert factors.on(CPU)[0].data_ptr() == terms_T.data_ptr()
    assert factors == Factors({"ce": 0.2, "domain": 1.0}, reversal=0.1)


def test_own_time_listens_to_the_last_gradient_alone_after_the_first_update() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    own = OwnTime(module, CPU)
    seen: list[set[int]] = []
    for _ in range(3):
        own.begin()
        module(torch.ones(1, 3)).sum().backward()
        assert own.seconds() > 0
        seen.append({i for i, p in enumerate(module.parameters()) if p._post_accumulate_grad_hooks})
    assert seen[0] == {0, 1, 2, 3} and seen[1] == seen[2] and len(seen[1]) == 1 and seen[1] < {0, 1}
    own.close()
    assert not any(p._post_accumulate_grad_hooks for p in module.parameters())
