"""`mmsada scale predict`: limits that are known exactly, what is read from rows and from public figures, what would
help, and what is refused.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmsada_hpc.cli import main
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.changes import FASTER, bottleneck, changes
from mmsada_hpc.scaling.forecast.compute import Compute
from mmsada_hpc.scaling.forecast.engines import Engine, Gradient
from mmsada_hpc.scaling.forecast.forecast import RECIPE_CLIPS, Inputs, Known, Plan, Traffic, forecast, step_of
from mmsada_hpc.scaling.forecast.goodput import Failures
from mmsada_hpc.scaling.forecast.hardware import known_of as known_hardware
from mmsada_hpc.scaling.forecast.hardware import read_hardware
from mmsada_hpc.scaling.forecast.measured import known_of, read_all
from mmsada_hpc.scaling.forecast.nets import full_size
from mmsada_hpc.scaling.forecast.network import FREE, Link, Network, Team, ring_s
from mmsada_hpc.scaling.forecast.published import RESULTS, compare
from mmsada_hpc.scaling.forecast.stragglers import expected_maximum

MB = 1_000_000
LINK = Link(0.001, 1e-8)  # 1 ms, 100 MB/s
STAGE0 = Engine("DeepSpeed stage 0")
TRAFFIC = Traffic((Gradient(1_000_000, 0.5), Gradient(1_000_000, 1.0)), backward=0.6)
INPUTS = Inputs(TRAFFIC, Compute({16: 0.5}), Network(LINK, algorithm="ring"))
PLAN = Plan(STAGE0, per_node=1, micro_batch=16)
FRAME = {
    "rank": 0,
    "world_size": 1,
    "machine": "a: AMD EPYC, 2 cores",
    "date": "2026-11-25",
    "commit": "",
    "versions": {},
}
H100 = Path("h100_ib.yaml")


def known(inputs: Inputs, draws: Sequence[Inputs] = ()) -> Known:
    return Known(inputs, draws, [])


def row(bench: str, name: str, value: float, unit: str, details: Mapping[str, Any], *, spread: float = 0.0) -> str:
    values = {"value": value, "min": value * (1 - spread), "max": value * (1 + spread), "unit": unit, "repeats": 5}
    about = {"bench": bench, "name": name, "better": "lower", "baseline": "", "ratio": None, "details": details}
    return json.dumps({**about, **values, **FRAME})


def all_reduce(size: int, hosts: Sequence[str], network: Network, way: str = "MPI") -> str:
    team = Team(len(set(hosts)), len(hosts) // len(set(hosts)))
    told = {"bytes": size, "ranks": list(range(len(hosts))), "hosts": hosts, "way": way, "busbw_GB_s": 1.0, "team": ""}
    return row("comm", f"{way} {size} {hosts}", 1000 * network.all_reduce_s(size, team), "ms", told)


def written(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def step_row(clips: int, rate: float, *, spread: float = 0.0) -> str:
    return row("step", f"fused bf16 {clips}x16x224^2", rate, "clips/s", {"clips": clips}, spread=spread)


def test_links_that_cost_nothing_and_equal_ranks_are_ideal() -> None:
    ideal = replace(INPUTS, network=Network(FREE, FREE), traffic=replace(TRAFFIC, agreed_bytes=1000.0))
    for found in forecast(known(ideal), replace(PLAN, per_node=4), [1, 2, 64, 4096]):
        assert found.efficiency.best == 1
        assert found.step.total_s == 0.5
        assert found.goodput.best == 1


def test_one_rank_computes_alone() -> None:
    assert step_of(INPUTS, PLAN, 1).total_s == 0.5


def test_after_the_backward_all_of_the_all_reduce_is_seen() -> None:
    found = step_of(INPUTS, PLAN, 4)
    assert found.exchange_s == pytest.approx(ring_s(8 * MB, 4, LINK))
    assert forecast(known(INPUTS), PLAN, [4])[0].efficiency.best == pytest.approx(0.5 / (0.5 + found.exchange_s))


def test_the_ranks_wait_for_the_slowest() -> None:
    uneven = replace(INPUTS, network=Network(FREE), compute=Compute({16: 0.5}, spread=0.1))
    assert step_of(uneven, PLAN, 8).slowest_s == pytest.approx(0.05 * expected_maximum(8))


def test_no_step_is_shorter_than_its_decoding() -> None:
    slow = replace(INPUTS, ceiling=20.0)
    found = step_of(slow, replace(PLAN, per_node=2), 1)
    assert found.total_s == pytest.approx(32 / 20)
    assert step_of(replace(INPUTS, ceiling=1000.0), PLAN, 4).loader_s == 0


def test_every_ranks_own_seconds_are_in_the_small_all_reduce() -> None:
    agreeing = replace(INPUTS, traffic=replace(TRAFFIC, agreed_bytes=1000.0))
    assert step_of(agreeing, PLAN, 8).agree_s == pytest.approx(ring_s(1032, 8, LINK))


def test_a_run_is_its_updates_over_the_goodput() -> None:
    failing = replace(INPUTS, failures=Failures(3600.0 * 40, 10.0, 100.0))
    found = forecast(known(failing), replace(PLAN, per_node=2), [4], clips=128_001)[0]
    assert (found.ranks, found.global_batch, found.updates) == (8, 128, 1001)
    assert found.hours.best == pytest.approx(1001 * found.step_s.best / 3600 / found.goodput.best)
    assert forecast(known(INPUTS), replace(PLAN, per_node=8), [1])[0].updates == RECIPE_CLIPS / 128 == 9002


def test_the_interval_is_that_of_the_draws() -> None:
    draws = [replace(INPUTS, compute=Compute({16: 0.5 + k / 1000})) for k in range(101)]
    found = forecast(known(INPUTS, draws), PLAN, [1])[0].step_s
    assert (found.best, found.low, found.high) == pytest.approx((0.5, 0.505, 0.595))


def test_step_times_are_in_proportion_or_on_a_line() -> None:
    assert Compute({4: 2.0}).mean_s(16) == 8
    assert Compute({4: 2.0, 8: 3.0}).mean_s(6) == pytest.approx(2.5)
    assert Compute({4: 2.0, 8: 3.0}).mean_s(16) == pytest.approx(5.0)
    assert Compute({4: 2.0, 8: 5.0}).mean_s(1) > 0


def test_what_is_in_the_way_is_named_and_what_removes_it() -> None:
    narrow = replace(INPUTS, network=Network(Link(0.0, 1e-7), algorithm="ring"))
    found = forecast(known(narrow), PLAN, [16])[0]
    assert bottleneck(found).startswith("gradients ")
    names = [one.name for one in changes(narrow, PLAN, 16)]
    assert names[-1] == FASTER
    assert {"bf16 gradients", "twice the bandwidth", "micro-batch 32"} <= set(names[:4])
    decoding = replace(INPUTS, network=Network(FREE), ceiling=8.0)
    assert changes(decoding, PLAN, 4)[0].name == "decoding twice as fast"
    assert changes(decoding, PLAN, 4)[0].gain == pytest.approx(2)
    assert bottleneck(forecast(known(decoding), PLAN, [4])[0]) == "decoding 75 %"


def test_twice_the_bandwidth_is_half_the_exchange() -> None:
    wide = replace(INPUTS, network=Network(Link(0.0, 1e-7), algorithm="ring"))
    exchange_s = step_of(wide, PLAN, 4).exchange_s
    gain = next(one.gain for one in changes(wide, PLAN, 4) if one.name == "twice the bandwidth")
    assert gain == pytest.approx((0.5 + exchange_s) / (0.5 + exchange_s / 2))


def test_the_full_network_has_all_its_parameters_and_ends_its_backward_at_the_stems() -> None:
    traffic = full_size()
    assert sum(one.elements for one in traffic.gradients) == 24_538_016 + 427_000
    shares = [one.ready for one in traffic.gradients]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    half = next(k for k, one in enumerate(shares) if one > 0.2)
    assert sum(one.elements for one in traffic.gradients[:half]) > 0.4 * 24_538_016, "late layers are large and quick"


def test_both_links_are_found_from_all_reduces(tmp_path: Path) -> None:
    network = Network(between=Link(2e-4, 4e-9), inside=Link(1e-5, 2e-10))
    teams = (["a", "b"], ["a", "a"], ["a", "a", "b", "b"])
    sizes = [1 << k for k in range(15, 28, 3)]
    lines = [all_reduce(size, hosts, network) for size in sizes for hosts in teams]
    found = known_of(read_all([written(tmp_path / "r.jsonl", [*lines, step_row(4, 2.0)])]), None)
    between, inside = found.best.network.between, found.best.network.inside
    assert (between.latency_s, between.per_byte) == pytest.approx((2e-4, 4e-9), rel=0.02)
    assert (inside.latency_s, inside.per_byte) == pytest.approx((1e-5, 2e-10), rel=0.02)
    assert found.best.compute.mean_s(16) == 8
    assert any("15 all-reduces by MPI on 2 ranks on 2 nodes" in line for line in found.sources)


def test_noise_of_the_rows_is_the_width_of_the_interval(tmp_path: Path) -> None:
    network = Network(Link(2e-4, 4e-9))
    lines = [all_reduce(1 << k, ["a", "b"], network) for k in range(15, 28, 3)]
    sure = written(tmp_path / "sure.jsonl", [*lines, step_row(4, 2.0)])
    unsure = written(tmp_path / "unsure.jsonl", [*lines, step_row(4, 2.0, spread=0.1)])
    widths = []
    for path in (sure, unsure):
        span = forecast(known_of(read_all([path]), None), PLAN, [2])[0].step_s
        widths.append((span.high - span.low) / span.best)
    assert widths[0] < 0.01 < 0.1 < widths[1]


def test_rows_stand_in_for_public_figures(tmp_path: Path) -> None:
    loader = row("loader", "DALI, jpeg 256x456 to 16x224, N=16, 2 cores", 200.0, "clips/s", {})
    base = known_hardware(read_hardware(H100))
    found = known_of(read_all([written(tmp_path / "r.jsonl", [step_row(16, 400.0), loader])]), base, cores=64)
    assert found.best.compute.mean_s(16) == pytest.approx(0.04)
    assert found.best.ceiling == pytest.approx(6400)
    assert found.best.network == base.best.network
    told = "\n".join(found.sources)
    assert "compute: not measured" not in told and "between: not measured" in told and "64 cores" in told


def test_only_the_links_that_were_measured_stand_in(tmp_path: Path) -> None:
    lines = [all_reduce(1 << k, ["a", "a"], Network(FREE, LINK)) for k in (15, 20, 25)]
    path, base = written(tmp_path / "r.jsonl", lines), known_hardware(read_hardware(H100))
    found = known_of(read_all([path]), base)
    assert found.best.network.between == base.best.network.between
    assert found.best.network.inside.latency_s == pytest.approx(LINK.latency_s, rel=0.02)
    alone = known_of(read_all([path, written(tmp_path / "s.jsonl", [step_row(4, 2.0)])]), None)
    assert alone.best.network.between == alone.best.network.inside
    assert "no others were measured" in "\n".join(alone.sources)


def test_what_was_not_measured_is_marked_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "predict", "--hardware", "h100_ib", "--nodes", "1", "4096"]) == 0
    said = capsys.readouterr().out
    assert said.count("not measured: ") == 5
    assert "32,768" in said and "9,002" in said and "8 batch-norm groups of 16" in said


def test_the_forecast_is_the_same_twice_and_written_for_programs(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in files:
        words = ["--hardware", "h100_ib", "--nodes", "8", "--mtbf-hours", "1000", "--json", str(path)]
        assert main(["scale", "predict", *words]) == 0
    assert files[0].read_text() == files[1].read_text()
    found = json.loads(files[0].read_text())["rows"][0]
    assert found["ranks"] == 64 and found["step_s"]["low"] < found["step_s"]["best"] < found["step_s"]["high"]
    assert found["goodput"]["best"] < 1
    assert [one["name"] for one in found["changes"]][-1] == FASTER


def test_more_failures_than_work_never_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = ["--hardware", "h100_ib", "--nodes", "4096", "--mtbf-hours", "0.01", "--json", str(path)]
    assert main(["scale", "predict", *words]) == 0
    assert "never" in capsys.readouterr().out
    assert json.loads(path.read_text())["rows"][0]["hours"]["best"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--rows FILE"),
        (["--hardware", "nothing"], "--hardware nothing: no such file"),
        (["--hardware", "h100_ib", "--micro-batch", "24"], "groups are of 16 clips; take 16"),
        (["--hardware", "h100_ib", "--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--hardware", "h100_ib", "--engine", "ZeRO 9"], "no such engine"),
        (["--hardware", "h100_ib", "--mtbf-hours", "-1"], "--mtbf-hours -1: must be above 0"),
        (["--rows", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_a_wrong_word_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "predict", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_benchmark_that_is_missing_is_named(tmp_path: Path) -> None:
    network = Network(LINK)
    one = written(tmp_path / "one.jsonl", [all_reduce(1 << 20, ["a", "b"], network)])
    with pytest.raises(UserError, match="too few to tell latency from bandwidth"):
        known_of(read_all([one]), None)
    links = written(tmp_path / "links.jsonl", [all_reduce(1 << k, ["a", "b"], network) for k in (15, 20, 25)])
    with pytest.raises(UserError, match="how long a step of the full network computes: `mmsada bench step"):
        known_of(read_all([links]), None)
    steps = written(tmp_path / "steps.jsonl", [step_row(4, 2.0)])
    with pytest.raises(UserError, match="how fast the links are: `mmsada bench comm --part all-reduce"):
        known_of(read_all([steps]), None)


def test_wrong_figures_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "odd.yaml", ["name: odd", "ranks_per_node: 0"])
    with pytest.raises(UserError, match=r"odd\.yaml: ranks_per_node: "):
        read_hardware(path)


def test_published_results_are_judged_alike() -> None:
    found = {one.name: compare(one) for one in RESULTS}
    for one in found.values():
        assert 0.5 < one.bare <= one.hidden <= 1
    reproduced = {name for name, one in found.items() if one.verdict == "reproduced"}
    assert len(reproduced) == 2 and all("torchtitan" in name or "Goyal" in name for name in reproduced)
    assert {one.verdict for name, one in found.items() if name not in reproduced} == {"too high"}
    slow = found["ResNet-50, AMP"]
    assert slow.verdict == "too high" and slow.spread > 0.1, "its loss is not the network's"
    assert math.isclose(slow.hidden / (1 + slow.spread * expected_maximum(8)), slow.result.efficiency, rel_tol=1e-6)
