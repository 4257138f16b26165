"""`mmsada bench step`: the naive form is the same network, work is counted right, and the rows say what was asked."""

import json
from pathlib import Path

import pytest
import torch

from mmsada_hpc.bench.naive_i3d import NaiveI3d
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
