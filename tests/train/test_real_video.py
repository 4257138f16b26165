"""The main job on real video: UT-Interaction through prepare, two ranks under mpiexec, both stages, evaluation.

The short one runs the way on a few clips; the slow one is `configs/ut_interaction.yaml` itself.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.data.prepare import PrepareOptions, prepare
from tests.train.test_law1 import rows
from tests.train.test_train import start


def some_clips(shared: Path, folder: Path, *, train: int, test: int) -> Path:
    """A label table with the first clips of each domain, split and class."""
    taken: dict[tuple[str, str, str], int] = {}
    kept = []
    with open(shared / "ut_interaction" / "labels.csv") as file:
        reader = csv.DictReader(file)
        for row in reader:
            key = (row["domain"], row["split"], row["class"])
            taken[key] = taken.get(key, 0) + 1
            if taken[key] <= (train if row["split"] == "train" else test):
                kept.append(",".join(row[c] for c in ("file", "domain", "split", "class")))
    table = folder / "labels.csv"
    table.write_text("file,domain,split,class\n" + "\n".join(kept) + "\n")
    return table


def test_real_clips_go_all_the_way_to_a_result_on_two_ranks(shared_data: Path, tmp_path: Path) -> None:
    table = some_clips(shared_data, tmp_path, train=1, test=1)
    prepare(PrepareOptions(tmp_path / "store", shared_data / "ut_interaction", table, size="64x64", workers=1))
    small = ("train.stage1.steps=3", "train.stage2.steps=2", "data.crop=32", "model.width=0.125", "eval.windows=2")
    more = ("train.global_batch=16", "model.batch_norm.group_size=4", "observe.features=false")
    keys = ("--config", "ut_interaction.yaml", f"data.store={tmp_path / 'store'}", f"run.dir={tmp_path / 'run'}")
    process = start((*keys, *small, *more), ranks=2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["target_segments"] == 6
    assert result["evaluations"]["target/all"]["segments"] == 12
    assert result["classes"] == ["hug", "kick", "point", "punch", "push", "shake_hands"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_configuration_learns_and_transfers(shared_data: Path, tmp_path: Path) -> None:
    videos, store = shared_data / "ut_interaction", tmp_path / "store"
    packed = ["prepare", "--videos", str(videos), "--labels", f"{videos}/labels.csv", "--size", "128x128"]
    command = [sys.executable, "-m", "mmsada_hpc.cli", *packed, "--out", str(store)]
    subprocess.run(command, check=True, timeout=300)
    process = start(("--config", "ut_interaction.yaml", f"data.store={store}", f"run.dir={tmp_path / 'run'}"), ranks=2)
    out, err = process.communicate(timeout=560)
    assert process.returncode == 0, out + err
    loss = [row["loss_ce"] for row in rows(tmp_path / "run") if row["stage"] == 1]
    assert np.mean(loss[-20:]) < np.mean(loss[:20]) / 2, "the source classification loss falls by half within stage 1"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["target_segments"] == 18
    assert result["evaluations"]["target/all"]["segments"] == 60
    assert result["evaluations"]["target/all"]["top1"] > result["chance"] + 9.6
