"""`mmsada bench step`: the naive form is the same network, work is counted right, and the rows say what was asked."""

import json
from pathlib import Path

import pytest
import torch

from mmsada_hpc.bench import step_memory
from mmsada_hpc.bench.naive_i3d import NaiveI3d
from mmsada_hpc.bench.rows import Report
from mmsada_hpc.bench.step_inference import make_inference
from mmsada_hpc.bench.step_model import Form, Shape, StepModel, executed_flops, resident_clips
from mmsada_hpc.cli import main
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.i3d import I3d


@pytest.mark.parametrize("size", [(8, 32, 32), (9, 45, 34)])
def test_the_naive_form_is_the_same_network(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = I3d(3, GroupContext(group_size=4, test="mixture"), width=0.125).double()
    naive = NaiveI3d(network).double()
    x = torch.rand(4, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(naive(x), network(x), rtol=1e-9, atol=1e-9)


def test_every_form_of_the_step_has_the_same_loss() -> None:
    shape = Shape(clips=4, frames=8, size=32, width=0.125)
    clips = resident_clips(shape, torch.device("cpu"))
    losses = {name: StepModel(shape, Form(name, bf16=False))(clips).item() for name in ("naive", "modules", "fused")}
    assert losses["modules"] == pytest.approx(losses["naive"], rel=1e-4)
    assert losses["fused"] == pytest.approx(losses["naive"], rel=1e-4)


def test_a_16x224x224_clip_executes_298_gflop() -> None:
    """Forward 55.6 and 51.2 GFLOP, three times that but for the stems' input gradient."""
    assert executed_flops(Shape(clips=1, frames=16, size=224, width=1.0)) == pytest.approx(298e9, rel=0.005)
    two = executed_flops(Shape(clips=2, frames=16, size=224, width=1.0))
    assert two == 2 * executed_flops(Shape(clips=1, frames=16, size=224, width=1.0))


def test_quick_rows_name_their_baseline_and_the_gemm_rate(tmp_path: Path) -> None:
    rows_to = tmp_path / "rows.jsonl"
    assert main(["bench", "step", "--quick", "--repeats", "1", "--memory", "--json", str(rows_to)]) == 0
    rows = {row["name"]: row for row in map(json.loads, rows_to.read_text().splitlines())}
    fused = rows["fused fp32 2x8x64^2 width 0.25"]
    assert fused["baseline"] == "naive fp32 2x8x64^2 width 0.25"
    assert fused["ratio"] == pytest.approx(fused["value"] / rows[fused["baseline"]]["value"])
    share = rows["share of GEMM, fused fp32 2x8x64^2 width 0.25"]
    rate = share["details"]["executed_gflop"] * fused["value"] / 2
    assert share["value"] == pytest.approx(100 * rate / rows["GEMM fp32 2048^3"]["value"], rel=0.02)
    assert rows["memory per clip, fused fp32 2x8x64^2 width 0.25"]["unit"] == "MB"


def test_an_odd_micro_batch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--clips", "3"]) == 2
    assert "--clips must be an even number" in capsys.readouterr().err


def test_quick_parts_and_inference_name_what_they_are_compared_with(tmp_path: Path) -> None:
    rows_to = tmp_path / "rows.jsonl"
    words = ["bench", "step", "--quick", "--parts", "--repeats", "1", "--device", "cpu", "--json", str(rows_to)]
    assert main(words) == 0
    rows = {row["name"]: row for row in map(json.loads, rows_to.read_text().splitlines())}
    ours = [name for name in rows if name.startswith("ours, ")]
    assert {rows[name]["baseline"] for name in ours} == {name for name in rows if name.startswith("plain, ")}
    assert any("freed memory kept" in name for name in ours) and any("max pool" in name for name in ours)
    fused = rows["inference fused fp32 2x8x64^2 width 0.25"]
    assert (fused["baseline"], fused["unit"]) == ("inference modules fp32 2x8x64^2 width 0.25", "clips/s")
    assert fused["ratio"] == pytest.approx(fused["value"] / rows[fused["baseline"]]["value"])


def test_both_ways_of_inference_give_the_same_features() -> None:
    shape, device = Shape(clips=2, frames=8, size=32, width=0.125), torch.device("cpu")
    modules, fused = (make_inference(shape, Form(name, bf16=False), device)() for name in ("modules", "fused"))
    for stream, features in modules.items():
        torch.testing.assert_close(fused[stream], features, rtol=1e-3, atol=1e-5)


def test_a_form_whose_memory_cannot_be_measured_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_memory, "FORMS", (Form("neither", bf16=False), Form("fused", bf16=False)))
    report = Report()
    step_memory.measure(Shape(2, 8, 32, 0.125), torch.device("cpu"), report)
    out = capsys.readouterr().out
    assert "memory per clip, neither fp32 2x8x32^2 width 0.125: left out" in out
    names = [row.name for row in report.rows if row.name.startswith("memory")]
    assert names == ["memory per clip, fused fp32 2x8x32^2 width 0.125"]


def test_the_largest_batch_is_never_below_none() -> None:
    assert step_memory.largest_batch(1000.0, 500.0) == 38
    assert step_memory.largest_batch(30_000.0, 500.0) == 0
