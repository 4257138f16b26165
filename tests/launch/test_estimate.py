"""What a dry run estimates, against the real thing."""

import json
from pathlib import Path

import pytest
import torch

from mmsada_hpc.config import Config, dump_config, load_config
from mmsada_hpc.methods import batch_layout
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.submit.command import main
from mmsada_hpc.submit.estimate import cost_of, former_speed, memory_of, ramp_of
from mmsada_hpc.train.module import new_module

SMALL = ("data.num_frames=8", "data.crop=32", "model.width=0.125", "model.batch_norm.group_size=2")


def config(*words: str) -> Config:
    return load_config(Path("demo.yaml"), [*SMALL, *words])


def test_parameters_are_those_of_the_real_module() -> None:
    real = sum(p.numel() for p in new_module(config(), num_classes=8).parameters())
    assert cost_of(config(), num_classes=8).parameters == real


def test_compute_is_what_the_convolutions_of_a_real_pass_add_up_to() -> None:
    """Forward, gradient of the weights, gradient of the input; the two stems need no gradient of the clips."""
    network = new_module(config(), num_classes=8).network
    flops: list[float] = []

    def count(conv: torch.nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(conv, torch.nn.Conv3d)
        one = 2.0 * out.numel() * conv.weight[0].numel()
        flops.append(one * (2 if conv.in_channels in (2, 3) else 3))

    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(count)
        if isinstance(module, I3d):
            module.fuses = False  # so that the convolutions are called as modules
    network({"rgb": torch.rand(2, 8, 32, 32, 3), "flow": torch.rand(2, 8, 32, 32, 2)}, (0,))
    assert cost_of(config(), num_classes=8).flops * 2 == pytest.approx(sum(flops), rel=1e-6)


def test_the_published_network_needs_what_is_known_of_it() -> None:
    """RGB alone was measured at 3.55 clips/s and 545 GFLOP/s; flow has one channel less in its stem."""
    assert cost_of(load_config(None), num_classes=8).flops == pytest.approx(2 * 545e9 / 3.55, rel=0.05)


def test_what_is_kept_for_the_backward_pass_is_what_autograd_really_keeps() -> None:
    settings = config()
    network = new_module(settings, num_classes=8).network
    clips = {"rgb": torch.rand(2, 8, 32, 32, 3), "flow": torch.rand(2, 8, 32, 32, 2)}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = network(clips, (0,))
    real = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    assert held and cost_of(settings, num_classes=8).kept_bytes * 2 == pytest.approx(real, rel=0.02)


def test_zero_shards_what_it_says() -> None:
    for stage, whole in ((0, "parameters gradients momentum"), (1, "parameters gradients"), (2, "parameters"), (3, "")):
        settings = config("train.global_batch=64", f"train.zero_stage={stage}")
        memory = memory_of(settings, cost_of(settings, num_classes=8), batch_layout(settings, 4))
        size = 4 * cost_of(settings, num_classes=8).parameters
        for part in ("parameters", "gradients", "momentum"):
            assert getattr(memory, part) == (size if part in whole.split() else size / 4), (stage, part)


@pytest.mark.parametrize(("optimizer", "tensors"), [("sgd", 1), ("lars", 1), ("lamb", 2), ("adamw", 2)])
def test_lamb_and_adamw_keep_two_tensors_a_parameter(optimizer: str, tensors: int) -> None:
    settings = config("train.global_batch=64", f"train.optimizer={optimizer}")
    cost = cost_of(settings, num_classes=8)
    assert memory_of(settings, cost, batch_layout(settings, 4)).momentum == tensors * 4 * cost.parameters


def test_the_ramp_is_that_of_the_method() -> None:
    released = load_config(None)
    ramp = ramp_of(released, num_classes=8)
    assert ramp is not None and ramp.last == pytest.approx(0.2, abs=1e-4)
    assert ramp.updates[50] == pytest.approx(6001 * 0.1099, abs=2), "2 / (1 + exp(-10 p)) - 1 is a half at ln(3) / 10"
    assert ramp_of(load_config(None, ["method.name=source_only"]), num_classes=8) is None


def test_time_is_known_from_finished_runs_of_the_same_shape_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = config(f"run.dir={tmp_path}/runs/mine")
    layout = batch_layout(mine, 2)
    assert former_speed(mine, layout, device="cpu") is None
    for name, words, world_size, clips_per_s in (
        ("a", [], 2, 90.0),
        ("b", ["seed=1"], 2, 70.0),
        ("c", ["seed=2"], 2, 80.0),
        ("larger", ["data.crop=64"], 2, 1.0),
        ("alone", [], 1, 2.0),
    ):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_config(config(*words)))
        (folder / "result.json").write_text(json.dumps({"world_size": world_size, "clips_per_s": clips_per_s}))
        (folder / "run.json").write_text(json.dumps({"starts": [{"device": "cpu"}]}))
    speed = former_speed(mine, layout, device="cpu")
    assert speed is not None and (speed.clips_per_s, speed.runs, speed.example.name) == (80.0, 3, "c")
    assert former_speed(mine, layout, device="cuda") is None


def test_a_dry_run_tells_rates_ramp_memory_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "demo.yaml", *SMALL, f"run.dir={tmp_path}/run", "--cluster", "local", "--tasks-per-node", "2"]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "stage 2        60 updates (1,920 clips), rate 0.01" in said
    assert "GRL ramp       to 0.2 over stage 2; 10 % at 64, 50 % at 224, 90 % at 576 clips of it" in said
    assert "GFLOP a clip" in said and "memory " in said and "time           not known" in said
    assert not (tmp_path / "run").exists()
