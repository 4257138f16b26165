"""`mmsada scale validate`: what a campaign's file may say, and a forecast that finds what measurements were made of."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmsada_hpc.cli import main
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.engines import exposed, find_engine
from mmsada_hpc.scaling.forecast.network import Team
from mmsada_hpc.scaling.forecast.readiness import gradients_of
from mmsada_hpc.scaling.forecast.shaped import Host, contention
from mmsada_hpc.scaling.validation import Validation, read_validation, validate
from mmsada_hpc.scaling.validation_file import Measurement

HOST = Host(latency_s=3e-4, overhead=1.06, s_per_byte=6e-10)
OWN_S = {"DDP": 0.004, "DeepSpeed stage 1": 0.03, "DeepSpeed stage 0 overlap": 0.006}
CORES = 2
FILE: dict[str, Any] = {
    "links": {
        "near": {"rate_mbit": 2000, "delay_ms": 0.1},
        "narrow": {"rate_mbit": 300, "delay_ms": 1},
        "distant": {"rate_mbit": 1000, "delay_ms": 5},
    },
    "ranks": [2, 4],
    "clips": [4, 8],
    "engines": list(OWN_S),
    "sizes": ["32K", "512K", "8M"],
    "fit": {"links": ["near", "narrow"], "ranks": [2], "clips": [4]},
}


def campaign(folder: Path, **more: Any) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({"folder": str(folder / "runs"), **FILE, **more}, sort_keys=False))
    return path


def compute_s(cell: Measurement) -> float:
    return 0.03 * cell.clips * contention(cell.ranks, CORES)


def truth_s(validation: Validation, cell: Measurement, engine: str) -> float:
    """What the model would measure on `HOST`."""
    gradients, share = gradients_of(width=0.25, frames=8, side=64)
    network = HOST.network(validation.links[cell.link], cell.ranks, cores=CORES)
    messages = find_engine(engine).messages(gradients)
    found = exposed(messages, network, Team(cell.ranks), backward_s=share * compute_s(cell))
    return compute_s(cell) + OWN_S[engine] * contention(cell.ranks, CORES) + found.shown_s


def row(name: str, seconds: float, details: Mapping[str, Any]) -> str:
    values = {"value": 1000 * seconds, "min": 990 * seconds, "max": 1010 * seconds, "unit": "ms", "repeats": 3}
    about = {"bench": "comm", "name": name, "machine": f"vm: AMD EPYC, {CORES} cores", "details": details}
    return json.dumps({**about, **values}) + "\n"


def measure(validation: Validation, noise: Callable[[], float] = lambda: 1.0) -> None:
    """Writes a whole campaign, as the test cluster would, on `HOST`."""
    for cell in validation.cells:
        path = validation.engines_file(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = {"no communication": compute_s(cell)}
        steps |= {engine: truth_s(validation, cell, engine) * noise() for engine in validation.engines}
        name = f"small fp32 N={cell.clips} 8x64x64, {cell.ranks} ranks on {cell.ranks} nodes"
        told = {engine: {"engine": engine, "width": 0.25} for engine in steps}
        path.write_text("".join(row(f"{e}, {name}", seconds, told[e]) for e, seconds in steps.items()))
    for link, shape in validation.links.items():
        for ranks in validation.ranks:
            network = HOST.network(shape, ranks, cores=CORES)
            lines = [
                row(f"gloo {size}", network.all_reduce_s(size, Team(ranks)) * noise(), {"way": "gloo", "bytes": size})
                for size in (1 << 15, 1 << 19, 1 << 23)
            ]
            validation.all_reduce_file(link, ranks).write_text("".join(lines))


def test_the_files_of_a_campaign_are_named_by_its_cells(tmp_path: Path) -> None:
    validation = read_validation(campaign(tmp_path))
    cell = Measurement("near", 4, 8, "fp32")
    assert len(validation.cells) == 12 and cell in validation.cells
    assert validation.engines_file(cell) == tmp_path / "runs/near/r4-c8-fp32.jsonl"
    assert validation.all_reduce_file("near", 4) == tmp_path / "runs/near/r4-allreduce.jsonl"
    assert [one for one in validation.cells if validation.is_fitted(one)] == [
        Measurement("near", 2, 4, "fp32"),
        Measurement("narrow", 2, 4, "fp32"),
    ]


def test_our_own_campaign_predicts_far_more_than_it_fits() -> None:
    validation = read_validation(Path("study/validation.yaml"))
    fitted = [cell for cell in validation.cells if validation.is_fitted(cell)]
    assert 2 <= len(fitted) <= len(validation.cells) / 2
    assert max(validation.ranks) > max(validation.fit.ranks)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"fit": {"links": ["far"], "ranks": [2], "clips": [4]}}, "fit.links: far is none of links: near, narrow"),
        ({"fit": {"links": ["near"], "ranks": [5], "clips": [4]}}, "fit.ranks: 5 is none of ranks"),
        (
            {"fit": {"links": list(FILE["links"]), "ranks": [2, 4], "clips": [4, 8]}},
            "0 of 12 cells are left to predict",
        ),
        ({"ranks": [1, 2, 4]}, "ranks.0: "),
        ({"speed": 3}, "speed: "),
        ({"links": {"near": {"rate_mbit": 0, "delay_ms": 0}}}, "links.near.rate_mbit: "),
    ],
)
def test_a_wrong_campaign_is_told(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    path = campaign(tmp_path, **more)
    with pytest.raises(UserError, match=told):
        read_validation(path)


def test_what_measurements_were_made_of_is_found_in_the_cells_that_were_fitted(tmp_path: Path) -> None:
    validation = read_validation(campaign(tmp_path))
    measure(validation)
    found = validate(validation)
    host = Host.of(found.model.host.values)
    assert (host.latency_s, host.overhead, host.s_per_byte) == pytest.approx(
        (HOST.latency_s, HOST.overhead, HOST.s_per_byte), rel=0.02
    )
    assert found.model.own_s == pytest.approx(OWN_S, rel=0.05)
    assert len(found.unseen) == 10 * len(OWN_S)
    assert max(abs(one.error) for one in found.unseen) < 0.01


def test_the_interval_holds_most_of_noisy_measurements(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    validation = read_validation(campaign(tmp_path))
    measure(validation, lambda: math.exp(0.04 * rng.standard_normal()))
    unseen = validate(validation).unseen
    inside = sum(one.is_inside for one in unseen) / len(unseen)
    assert 0.75 < inside <= 1
    assert np.median([one.high_s / one.low_s for one in unseen]) < 1.6, "an interval that says something"


def test_another_network_than_the_fitted_is_seen_as_wrong(tmp_path: Path) -> None:
    """Where a link is not what its file says, errors are large there and there alone."""
    validation = read_validation(campaign(tmp_path))
    measure(validation)
    slower = read_validation(campaign(tmp_path, links={**FILE["links"], "distant": {"rate_mbit": 100, "delay_ms": 5}}))
    errors: dict[str, list[float]] = {}
    for one in validate(slower).unseen:
        errors.setdefault(one.job.cell.link, []).append(abs(one.error))
    assert min(errors["distant"]) > 0.3 > 0.02 > max(errors["near"])


def test_both_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = campaign(tmp_path)
    measure(read_validation(path))
    written = tmp_path / "out" / "found.json"
    assert main(["scale", "validate", str(path), "--json", str(written)]) == 0
    said = capsys.readouterr().out
    assert "30 of 36 steps are predicted without having been seen" in said
    assert "error median 0.0 %" in said and said.count("fitted\n") == 6
    assert "distant (another link)" in said and "4 ranks" in said
    cells = json.loads(written.read_text())["cells"]
    assert len(cells) == 36 and sum(one["is_fitted"] for one in cells) == 6


def test_the_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, picture = campaign(tmp_path), tmp_path / "pictures" / "validation.png"
    measure(read_validation(path))
    assert main(["scale", "validate", str(path), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


def test_what_is_not_measured_yet_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = campaign(tmp_path)
    measure(read_validation(path))
    gone = tmp_path / "runs" / "distant" / "r4-c8-fp32.jsonl"
    lines = gone.read_text().splitlines(keepends=True)
    gone.write_text("".join(line for line in lines if '"DeepSpeed stage 1"' not in line))
    assert main(["scale", "validate", str(path)]) == 2
    assert f"{gone}: no row of 'DeepSpeed stage 1'" in capsys.readouterr().err
    gone.unlink()
    assert main(["scale", "validate", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(gone) in said and "python -m tests.cluster.measure_links" in said
