"""Every registered method through the product's own entry point: two ranks, DeepSpeed, both stages, scored."""

import json
import math
from pathlib import Path

import pytest

from mmsada_hpc.data.store import Store
from mmsada_hpc.methods import method_names
from tests.train.ranks import Job, run_ranks
from tests.train.test_law1 import rows, tiny_run

SHORT = ("train.stage2.steps=1", "method.mmd_block=4", "eval.sets=[target/test]", "model.width=0.0625")


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    run_ranks(2, [Job(tiny_run(tiny_store, folder / name, *SHORT, f"method.name={name}")) for name in method_names()])
    return folder


@pytest.mark.parametrize("name", method_names())
def test_it_trains_both_stages_and_is_scored_with_the_target_kitchen(runs: Path, name: str) -> None:
    result, steps = json.loads((runs / name / "result.json").read_text()), rows(runs / name)
    assert result["method"] == name
    assert result["label"].startswith(name)
    assert result["evaluations"]["target/test"]["segments"] == 4
    assert [row["stage"] for row in steps] == [1, 2]
    assert all(math.isfinite(value) for row in steps for key, value in row.items() if key.startswith("loss"))


def test_what_a_method_aligns_is_in_its_log(runs: Path) -> None:
    def losses(name: str) -> set[str]:
        return {key.removeprefix("loss_") for key in rows(runs / name)[-1] if key.startswith("loss_")}

    assert losses("source_only") == losses("adabn") == losses("supervised_target") == {"ce"}
    assert losses("mmsada") == losses("self_supervised") | losses("adversarial")
    assert losses("mmd") == {"ce", "mmd_rgb", "mmd_flow"}
    assert losses("mcd") == {"ce", "auxiliary", "discrepancy"}


def test_adabn_is_two_rows_and_they_differ(tiny_store: Store, tmp_path: Path) -> None:
    """The same training, scored with the mixture or with the target's own statistics."""
    words = {test: (*SHORT, "method.name=adabn", f"model.batch_norm.test={test}") for test in ("mixture", "target")}
    run_ranks(1, [Job(tiny_run(tiny_store, tmp_path / test, *more)) for test, more in words.items()])
    mixture, target = (json.loads((tmp_path / test / "result.json").read_text()) for test in words)
    assert (mixture["label"], target["label"]) == ("adabn (mixture)", "adabn (target)")
    assert rows(tmp_path / "mixture")[0]["loss"] == rows(tmp_path / "target")[0]["loss"]
    scores = [result["evaluations"]["target/test"] for result in (mixture, target)]
    assert scores[0]["reliability"] != scores[1]["reliability"]
