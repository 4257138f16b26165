"""`submit.py resume`: the same code and settings, another number of ranks, and what it refuses."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from mmsada_hpc.cluster.job_record import CANCELLED_FILE, read_jobs
from mmsada_hpc.config import load_config
from mmsada_hpc.submit.command import main
from mmsada_hpc.submit.job import TrainJob
from mmsada_hpc.submit.resume import add_arguments
from tests.launch.fake_slurm import FakeSlurm, install

PROFILE = "executor: slurm\nnodes: 2\ntasks_per_node: 2\nminutes: 60\npartition: low\nsetup: [export A=1]\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def run_dir(slurm: FakeSlurm, tmp_path: Path) -> Path:
    """A run of four ranks whose job Slurm has forgotten."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").touch()
    (tmp_path / "cluster.yaml").write_text(PROFILE)
    words = ["--config", "demo.yaml", "--cluster", str(tmp_path / "cluster.yaml"), "--dependency", "afterok:3"]
    assert main([*words, f"run.dir={tmp_path}/run", f"data.store={tmp_path}/store", "train.global_batch=64"]) == 0
    (tmp_path / "cluster.yaml").unlink()
    return tmp_path / "run"


def test_the_profile_of_the_last_job_is_used_and_flags_go_over_it(slurm: FakeSlurm, run_dir: Path) -> None:
    assert main(["resume", str(run_dir), "--nodes", "1", "--time", "90"]) == 0
    script = slurm.scripts["101"]
    for line in ("--nodes=1", "--ntasks-per-node=2", "--time=90", "--partition=low"):
        assert f"#SBATCH {line}\n" in script
    assert "export A=1\n" in script and "--dependency" not in script, "what it waited for is over"
    assert [(job.job_id, job.nodes) for job in read_jobs(run_dir)] == [("100", 2), ("101", 1)]


@pytest.mark.parametrize(
    ("nodes", "tasks", "micro_batch"), [("2", "2", 16), ("1", "2", 16), ("1", "1", 16), ("1", "3", None)]
)
def test_accumulation_takes_up_the_difference(
    run_dir: Path, nodes: str, tasks: str, micro_batch: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resume", str(run_dir), "--nodes", nodes, "--tasks-per-node", tasks])
    if micro_batch is None:
        assert code == 2 and "3 rank(s)" in capsys.readouterr().err
    else:
        assert code == 0 and load_config(run_dir / "config.yaml").train.micro_batch == micro_batch


def test_more_ranks_take_smaller_micro_batches(run_dir: Path) -> None:
    assert main(["resume", str(run_dir), "--nodes", "1", "--tasks-per-node", "1"]) == 0
    values = yaml.safe_load((run_dir / "config.yaml").read_text())
    values["train"]["micro_batch"] = 64
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["resume", str(run_dir), "--nodes", "2", "--tasks-per-node", "2"]) == 0
    assert load_config(run_dir / "config.yaml").train.micro_batch == 16


def test_it_runs_the_copy_of_its_code_unless_told(
    slurm: FakeSlurm, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run_dir / read_jobs(run_dir)[0].code
    older = copy.with_name("0123456789ab")
    copy.rename(older)
    lines = [json.loads(line) | {"code": "code/0123456789ab"} for line in (run_dir / "jobs.jsonl").open()]
    (run_dir / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["resume", str(run_dir)]) == 0
    assert f"export MMSADA_CODE={older}\n" in slurm.scripts["101"] and not copy.exists()
    assert main(["resume", str(run_dir), "--new-code"]) == 0
    assert f"export MMSADA_CODE={copy}\n" in slurm.scripts["102"]
    shutil.rmtree(copy)
    assert main(["resume", str(run_dir)]) == 2
    assert "copy of its code is gone; --new-code" in capsys.readouterr().err


def test_the_config_that_an_older_copy_reads_keeps_its_own_keys(run_dir: Path) -> None:
    """This code may have keys that the older copy would refuse."""
    path = run_dir / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["watch"]
    path.write_text(yaml.safe_dump(values))
    assert main(["resume", str(run_dir), "--nodes", "1"]) == 0
    assert "watch" not in yaml.safe_load(path.read_text())


def test_a_moved_run_goes_on_where_it_lies(slurm: FakeSlurm, run_dir: Path, tmp_path: Path) -> None:
    moved = run_dir.rename(tmp_path / "moved")
    assert main(["resume", str(moved)]) == 0
    assert load_config(moved / "config.yaml").run.dir == moved
    assert f"export MMSADA_CODE={moved}/code/" in slurm.scripts["101"]


def test_a_cancelled_run_goes_on_and_stays_cancelled_where_nothing_is_queued(slurm: FakeSlurm, run_dir: Path) -> None:
    mark = run_dir / CANCELLED_FILE
    mark.write_text("by a person")
    accepting = (slurm.folder / "bin/sbatch").read_text()
    slurm.refuse("invalid partition")
    assert main(["resume", str(run_dir)]) == 2
    assert mark.read_text() == "by a person"
    (slurm.folder / "bin/sbatch").write_text(accepting)
    assert main(["resume", str(run_dir)]) == 0
    assert not mark.exists()


def test_active_finished_and_foreign_folders_are_refused(
    slurm: FakeSlurm, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.say(job100="RUNNING")
    assert main(["resume", str(run_dir)]) == 2
    assert "has job 100 (RUNNING) already" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "nowhere")]) == 2
    assert "no config.yaml there" in capsys.readouterr().err
    for name in ("metrics.jsonl", "result.json"):
        (run_dir / name).write_text("{}")
    assert main(["resume", str(run_dir)]) == 2
    assert "is finished; `mmsada report" in capsys.readouterr().err
    assert len(slurm.scripts) == 1


def test_a_run_that_no_job_was_queued_for_goes_on_here_with_as_many_ranks(tmp_path: Path) -> None:
    from mmsada_hpc.submit.resume import _profile

    (tmp_path / "run.json").write_text(json.dumps({"starts": [{"world_size": 2}, {"world_size": 3}]}))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    profile = _profile(parser.parse_args([str(tmp_path)]), None, tmp_path)
    assert (profile.executor, profile.world_size) == ("local", 3)
    assert _profile(parser.parse_args([str(tmp_path), "--tasks-per-node", "1"]), None, tmp_path).world_size == 1


@pytest.mark.parametrize("word", ["resume", "status", "logs", "cancel"])
def test_every_word_has_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word, "--help"])
    assert ended.value.code == 0 and f"submit.py {word}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"submit.py {word} " in capsys.readouterr().out


def test_pickles_name_the_job_where_older_copies_of_the_code_have_it() -> None:
    assert f"{TrainJob.__module__}.{TrainJob.__qualname__}" == "mmsada_hpc.submit.job.TrainJob"
    assert [field.name for field in dataclasses.fields(TrainJob)] == ["config"]
