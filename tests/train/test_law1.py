"""Law 1: the result depends on the config and the seed, not on how the batch is spread over ranks and accumulation
steps.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsada_hpc.config import load_config
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods import batch_layout
from tests.train.ranks import Job, run_ranks

SPREADS = {
    "1x8": (1, 8, "mixed"),
    "2x4": (2, 4, "mixed"),
    "1x4x2": (1, 4, "mixed"),
    "2x4 domain-pure": (2, 4, "domain_pure"),
}


# A discrepancy is no sum over clips: its blocks are gathered where they lie on two ranks (2x4 with blocks of 4).
MMD_SPREADS = {4: ("1x8", "2x4", "2x4 domain-pure"), 2: ("1x8", "2x4", "1x4x2", "2x4 domain-pure")}


def tiny_run(store: Store, run_dir: Path, *more: str) -> tuple[str, ...]:
    """A run of a few small steps on the tiny store, both stages."""
    return (
        f"data.store={store.path}",
        f"run.dir={run_dir}",
        "data.source=[east]",
        "data.target=[west]",
        "data.num_frames=8",
        "data.crop=32",
        "model.width=0.125",
        "model.batch_norm.group_size=2",
        "train.global_batch=8",
        "train.stage1.lr=0.001",
        "train.stage2.lr=0.001",
        "train.stage1.steps=1",
        "train.stage2.steps=2",
        "eval.every=0",
        "eval.windows=2",
        "observe.features=false",
        *more,
    )


def rows(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [
        row
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
        if (row := json.loads(line))["kind"] == kind
    ]


@pytest.fixture(scope="module")
def spread(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every spread trained in fp64 by the plain engine, and its first fp32 gradients by DeepSpeed."""
    folder = tmp_path_factory.mktemp("law1")
    for world in (1, 2):
        jobs = []
        for name, (ranks, micro, layout) in SPREADS.items():
            if ranks != world:
                continue
            common = (f"train.micro_batch={micro}", f"train.layout={layout}")
            jobs.append(Job(tiny_run(tiny_store, folder / name, "train.engine=ddp", "train.precision=fp64", *common)))
            jobs.append(
                Job(
                    tiny_run(tiny_store, folder / f"{name} gradients", *common), gradients_to=str(folder / f"{name}.pt")
                )
            )
            for block, names in MMD_SPREADS.items():
                if name in names:
                    mmd = ("method.name=mmd", f"method.mmd_block={block}", "train.engine=ddp", "train.precision=fp64")
                    jobs.append(Job(tiny_run(tiny_store, folder / f"mmd {block} {name}", *mmd, *common)))
        run_ranks(world, jobs)
    return folder


@pytest.mark.parametrize("name", [n for n in SPREADS if n != "1x8"])
def test_losses_agree_to_1e_8_in_fp64_after_three_steps(spread: Path, name: str) -> None:
    ours, reference = rows(spread / name), rows(spread / "1x8")
    assert len(ours) == len(reference) == 3
    for a, b in zip(ours, reference, strict=True):
        for key in ("loss", "loss_ce", "loss_corr", "loss_domain_rgb", "loss_domain_flow", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-8), (name, a["stage"], a["step"], key)
        assert all(
            a[key] == pytest.approx(b[key], abs=1e-6)
            for key in ("top1", "corr_acc", "domain_acc_rgb", "domain_acc_flow")
        )


@pytest.mark.parametrize("name", [n for n in SPREADS if n != "1x8"])
def test_the_whole_run_agrees_in_fp64(spread: Path, name: str) -> None:
    ours, reference = (json.loads((spread / n / "result.json").read_text())["evaluations"] for n in (name, "1x8"))
    assert ours == reference
    states = [
        torch.load(spread / n / "checkpoints/stage2-step00000002/state.pt", weights_only=True)["model"]
        for n in (name, "1x8")
    ]
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize(("block", "name"), [(b, n) for b, names in MMD_SPREADS.items() for n in names[1:]])
def test_discrepancies_and_their_gradients_do_not_depend_on_the_ranks(spread: Path, block: int, name: str) -> None:
    ours, reference = rows(spread / f"mmd {block} {name}"), rows(spread / f"mmd {block} 1x8")
    assert len(ours) == len(reference) == 3
    assert reference[1]["loss_mmd_rgb"] > 0
    for a, b in zip(ours, reference, strict=True):
        for key in ("loss", "loss_ce", "loss_mmd_rgb", "loss_mmd_flow", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-8), (name, a["stage"], a["step"], key)


def test_a_block_that_spans_accumulation_steps_is_refused_with_the_sizes_that_fit() -> None:
    words = ["method.name=mmd", "method.mmd_block=4", "train.global_batch=8", "train.micro_batch=4"]
    config = load_config(None, [*words, "model.batch_norm.group_size=2"])
    with pytest.raises(UserError, match=r"mmd_block=4: a block would span accumulation steps.*sizes that fit: 2$"):
        batch_layout(config, 1)
    assert batch_layout(config, 2).accumulation == 1


def test_a_block_that_does_not_divide_the_batch_is_refused() -> None:
    config = load_config(None, ["method.name=mmd", "method.mmd_block=48"])
    with pytest.raises(UserError, match=r"mmd_block=48: a block does not divide the 64 clips a domain.*2, 4, 8, 16"):
        batch_layout(config, 8)


@pytest.mark.parametrize("name", [n for n in SPREADS if n != "1x8"])
def test_the_first_step_agrees_in_fp32_through_deepspeed(spread: Path, name: str) -> None:
    ours, reference = (torch.load(spread / f"{n}.pt", weights_only=True) for n in (name, "1x8"))
    assert float(ours["loss"]) == pytest.approx(float(reference["loss"]), rel=1e-6)
    assert set(ours["gradients"]) == set(reference["gradients"])
    for key, value in reference["gradients"].items():
        assert (ours["gradients"][key] - value).norm() <= 1e-4 * value.norm(), key


def test_running_statistics_of_the_two_domains_differ(spread: Path) -> None:
    state = torch.load(spread / "1x8/checkpoints/stage2-step00000002/state.pt", weights_only=True)["model"]
    mean = state["network.streams.rgb.Conv3d_1a_7x7.bn.running_mean_DC"]
    assert mean.shape[0] == 2
    assert not torch.equal(mean[0], mean[1])
