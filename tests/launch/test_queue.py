"""What forbids to queue a run, what is written beside it, and the jobs of chains and arrays."""

import json
import multiprocessing
import re
from pathlib import Path

import pytest
import yaml

from mmsada_hpc.cluster.environment import relevant_variables
from mmsada_hpc.cluster.job_record import CANCELLED_FILE, read_jobs
from mmsada_hpc.cluster.queue import only_submitter
from mmsada_hpc.config import load_config
from mmsada_hpc.errors import UserError
from mmsada_hpc.submit.command import main
from mmsada_hpc.submit.queue import storage_warning
from tests.launch.fake_slurm import FakeSlurm, install

PROFILE = "executor: slurm\nnodes: 2\ntasks_per_node: 2\nminutes: 60\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a run whose folder is `run`."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").touch()
    (tmp_path / "cluster.yaml").write_text(PROFILE)
    config = ["--config", "demo.yaml", "--cluster", str(tmp_path / "cluster.yaml")]
    return [*config, f"run.dir={tmp_path}/run", f"data.store={tmp_path}/store", "train.global_batch=64"]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")][-1]


def test_the_run_folder_holds_what_the_job_reads(
    slurm: FakeSlurm, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    relative = [word.replace(f"run.dir={tmp_path}/", "run.dir=").replace(f"={tmp_path}/", "=") for word in words]
    assert main(relative) == 0
    config = load_config(tmp_path / "run/config.yaml")
    assert (config.run.dir, config.data.store) == (tmp_path / "run", tmp_path / "store")
    assert config.train.micro_batch == 16
    assert json.loads((tmp_path / "run/environment.json").read_text())["NCCL_DEBUG"] == "WARN"
    (job,) = read_jobs(tmp_path / "run")
    code = tmp_path / "run" / job.code
    assert job.job_id == "100" and job.stdout == f"{tmp_path}/run/submitit/100_0_log.out"
    assert f"export MMSADA_CODE={code}\n" in slurm.scripts["100"]
    assert json.loads(code.with_suffix(".json").read_text())["versions"]["mmsada-hpc"]
    assert (code / "mmsada_hpc/configs/default.yaml").is_file() and (code / "launch/submit.py").is_file()


def test_a_run_is_not_queued_twice(
    slurm: FakeSlurm, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    slurm.say(job100="PENDING")
    assert "has job 100 (PENDING) already; `submit.py cancel" in error_of(words, capsys)
    slurm.say(job100="COMPLETING")
    assert "has job 100 (COMPLETING)" in error_of(words, capsys)
    slurm.say(job100="FAILED")
    assert main(words) == 0
    slurm.say()
    assert main(words) == 0
    assert len(slurm.scripts) == len(read_jobs(tmp_path / "run")) == 3


def test_a_slurm_that_does_not_say_is_no_reason_to_queue_again(
    slurm: FakeSlurm, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    (slurm.folder / "bin/squeue").write_text("#!/bin/bash\necho controller is away >&2; exit 1\n")
    assert "controller is away" in error_of(words, capsys)
    assert len(slurm.scripts) == 1


def test_finished_and_cancelled_runs_are_told(
    slurm: FakeSlurm, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    (tmp_path / "run" / CANCELLED_FILE).touch()
    assert "was cancelled; `submit.py resume" in error_of(words, capsys)
    for name in ("metrics.jsonl", "result.json"):
        (tmp_path / "run" / name).write_text("{}")
    assert main(words) == 0
    assert "is finished already" in capsys.readouterr().out
    assert len(slurm.scripts) == 1


def test_another_run_in_the_folder_is_refused_by_its_first_keys(
    slurm: FakeSlurm, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    other = [*words, "train.stage1.lr=0.5", "seed=3"]
    assert main(other) == 0, "nothing was trained yet, so the folder is free"
    (tmp_path / "run/checkpoints/stage1-step00000010").mkdir(parents=True)
    error = error_of(words, capsys)
    assert "seed is 3 there, 0 here" in error and "train.stage1.lr is 0.5 there, 0.01 here" in error
    assert main([*other, "observe.tensorboard=true"]) == 0, "that decides no result"


def test_the_links_of_a_chain_wait_for_each_other_and_never_requeue(
    slurm: FakeSlurm, words: list[str], tmp_path: Path
) -> None:
    assert main([*words, "--chain", "3", "--dependency", "afterok:7"]) == 0
    waits = [re.findall(r"--dependency=(\S+)", script) for script in slurm.scripts.values()]
    assert waits == [["afterok:7"], ["afterok:7,afterany:100"], ["afterok:7,afterany:101"]]
    for script in slurm.scripts.values():
        assert "#SBATCH --no-requeue" in script and "export MMSADA_REQUEUE=0" in script
    assert [job.job_id for job in read_jobs(tmp_path / "run")] == ["100", "101", "102"]


def test_a_chain_may_have_short_links(slurm: FakeSlurm, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--time 10: in a job of 12 minutes or less" in error_of([*words, "--time", "10"], capsys)
    assert main([*words, "--time", "10", "--chain", "2"]) == 0, "no link counts time limits"


def grid_words(words: list[str], tmp_path: Path) -> list[str]:
    path = tmp_path / "grid.yaml"
    axes = {"method": {m: {"method.name": m} for m in ("source_only", "mmsada")}, "seed": [0, 1]}
    path.write_text(yaml.safe_dump({"base": "demo.yaml", "folder": str(tmp_path / "runs"), "axes": axes}))
    return ["--config", str(path), *words[2:4], *words[5:]]


def test_a_grid_is_one_array_of_what_is_left(
    slurm: FakeSlurm, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_words(words, tmp_path)
    assert main([*grid, "--parallel", "2", "--only", "mmsada"]) == 0
    assert "#SBATCH --array=0-1%2" in slurm.scripts["100"]
    assert f"--output {tmp_path}/runs/submitit/%A_%a_%t_log.out" in slurm.scripts["100"]
    jobs = [read_jobs(tmp_path / "runs/mmsada" / seed)[0] for seed in ("0", "1")]
    assert [job.job_id for job in jobs] == ["100_0", "100_1"]
    assert jobs[1].stdout == f"{tmp_path}/runs/submitit/100_1_0_log.out"
    assert (tmp_path / "runs/mmsada/1" / jobs[1].code).resolve().parent == tmp_path / "runs/code"
    slurm.say(job100_0="PENDING", job100_1="COMPLETED")
    (tmp_path / "runs/mmsada/1" / CANCELLED_FILE).touch()
    capsys.readouterr()
    assert main(grid) == 0
    said = capsys.readouterr().out
    assert "left out:" in said and "has job 100_0" in said and "was cancelled" in said
    assert "#SBATCH --array=0-1%2" in slurm.scripts["101"], "the two of source_only"


def test_the_python_of_the_profile_holds_in_an_array(slurm: FakeSlurm, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(PROFILE + "python: /opt/nodes/python\nmax_num_timeout: 7\n")
    assert main(grid_words(words, tmp_path)) == 0
    assert " /opt/nodes/python -u -m submitit.core._submit " in slurm.scripts["100"]
    pickles = sorted((tmp_path / "runs/submitit").glob("*_submitted.pkl"))
    from submitit.core.utils import DelayedSubmission

    assert [DelayedSubmission.load(path)._timeout_countdown for path in pickles] == [7] * 4


def test_two_submitters_do_not_meet(tmp_path: Path) -> None:
    with (
        only_submitter([tmp_path / "run"]),
        pytest.raises(UserError, match="another submit has been at this run"),
        only_submitter([tmp_path / "run"], patience_s=0.3),
    ):
        pass
    with only_submitter([tmp_path / "run"], patience_s=0.3):
        pass


def _submit(words: list[str]) -> int:
    return main(words)


def test_of_two_at_once_one_queues_the_run(slurm: FakeSlurm, words: list[str], tmp_path: Path) -> None:
    """sbatch takes its time, so that without a lock the second has looked before the first has written its job down."""
    sbatch = slurm.folder / "bin/sbatch"
    sbatch.write_text(sbatch.read_text().replace("echo Submitted", "sleep 2\necho Submitted"))
    slurm.say(job100="PENDING", job101="PENDING")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert sorted(pool.map(_submit, [words, words])) == [0, 2]
    assert list(slurm.scripts) == ["100"]


def test_the_environment_is_kept_without_secrets() -> None:
    given = {
        "SLURM_JOB_ID": "1",
        "SLURM_JWT": "x",
        "NCCL_DEBUG": "INFO",
        "PATH": "/bin",
        "MMSADA_API_KEY": "x",
        "PYTHON_KEYRING_PASSWORD": "x",
        "HOME": "/home/me",
    }
    assert relevant_variables(given) == {"NCCL_DEBUG": "INFO", "PATH": "/bin", "SLURM_JOB_ID": "1"}


def test_a_run_folder_that_others_may_not_see_is_warned_of() -> None:
    assert "lies in /tmp" in str(storage_warning(Path("/tmp/run")))
    assert "on tmpfs" in str(storage_warning(Path("/dev/shm/run")))
    assert storage_warning(Path("/")) is None or "overlay" in str(storage_warning(Path("/")))
