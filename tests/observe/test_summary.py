"""The table at the end of a run and the record of how it was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mmsada_hpc.observe.record import read_record, write_record
from mmsada_hpc.observe.summary import result_table

RESULT = {
    "method": "mmsada",
    "recipe": "paper",
    "seed": 3,
    "source": ["P08"],
    "target": ["P01", "P22"],
    "classes": ["take", "put"],
    "steps": 600,
    "seconds": 312.0,
    "clips_per_s": 37.13,
    "world_size": 2,
    "chance": 50.0,
    "evaluations": {
        "source/test": {"top1": 90.0, "top1_rgb": 80.0, "top1_flow": None, "mean_recall": 88.88, "segments": 100},
        "target/test": {"top1": 50.0, "top1_rgb": 40.0, "top1_flow": 45.0, "mean_recall": 48.0, "segments": 25},
    },
}


def test_the_table_shows_target_first_with_errors_chance_and_cost() -> None:
    assert result_table(RESULT).splitlines() == [
        "mmsada (paper), P08 to P01+P22, 2 classes, seed 3",
        "",
        "  top-1 %            fused   rgb  flow  mean recall  segments",
        "  target/test  50.0 ± 10.0  40.0  45.0         48.0        25",
        "  source/test   90.0 ± 3.0  80.0     -         88.9       100",
        "  chance              50.0",
        "",
        "600 steps, 2 ranks, 37.1 clips/s, 5:12",
    ]


def test_the_table_copes_with_a_result_that_lacks_everything() -> None:
    assert result_table({}).splitlines()[0] == "unknown method"


def test_every_start_of_a_run_is_recorded(tmp_path: Path) -> None:
    write_record(tmp_path, command=["mmsada", "train", "run.dir=a b"], extra={"world_size": 2})
    write_record(tmp_path, command=["mmsada", "train", "--resume"])
    first, second = read_record(tmp_path)
    assert first["command"] == "mmsada train 'run.dir=a b'"
    assert first["world_size"] == 2
    assert first["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert second["command"] == "mmsada train --resume"


def test_a_damaged_record_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert read_record(tmp_path) == []
    write_record(tmp_path, command=["again"])
    assert len(read_record(tmp_path)) == 1


def test_observe_knows_nothing_of_training() -> None:
    modules = "metrics, page, panels, progress, record, reliability, report, runs, screen, summary, table"
    code = f"import sys; from mmsada_hpc.observe import {modules}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "deepspeed", "nvidia", "mpi4py", "sklearn"} & {name.split(".")[0] for name in loaded}
    assert not [
        name for name in loaded if name.startswith(("mmsada_hpc.train", "mmsada_hpc.methods", "mmsada_hpc.data"))
    ]
