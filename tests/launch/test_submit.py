"""`mmsada submit`: the dry run, the script that sbatch gets, and the errors of a host without Slurm."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmsada_hpc.submit.command import main
from tests.launch.fake_slurm import install

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "two_nodes.sbatch"
TWO_NODES = """
executor: slurm
nodes: 2
tasks_per_node: 4
gpus_per_node: 4
cpus_per_task: 12
mem_gb: 500
minutes: 600
partition: gpu
account: kitchens
interface: ib0
modules: [cuda/13.0]
setup: [export NCCL_DEBUG=WARN]
container: [--container-image=/images/mmsada.sqsh]
srun_args: [--mpi=none]
sbatch: {mail-type: FAIL}
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    run, cluster = tmp_path / "run.yaml", tmp_path / "cluster.yaml"
    (tmp_path / "store.json").touch()
    run.write_text(
        f"run: {{dir: {tmp_path}/runs/d1_d2}}\n"
        f"data: {{store: {tmp_path}}}\n"
        "train: {global_batch: 256, micro_batch: 16}\n"
    )
    cluster.write_text(TWO_NODES)
    return ["--config", str(run), "--cluster", str(cluster)]


def script_of(printed: str, tmp_path: Path) -> str:
    """The sbatch script of a dry run, with the paths of this machine taken out."""
    script = printed.partition("# sbatch script\n")[2]
    return re.sub(
        "code/[0-9a-f]{12}", "code/HASH", script.replace(str(tmp_path), "TMP").replace(sys.executable, "PYTHON")
    )


def test_the_script_is_the_golden_one(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([*arguments, "--dry-run"]) == 0
    script = script_of(capsys.readouterr().out, tmp_path)
    if os.environ.get("MMSADA_RENEW_GOLDEN"):
        GOLDEN.write_text(script)
    assert script == GOLDEN.read_text()


def test_srun_gets_the_cores_of_each_rank(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--cpus-per-task", "3", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "#SBATCH --cpus-per-task=3" in lines and "export SRUN_CPUS_PER_TASK=3" in lines
    assert any(line.startswith("srun ") and " --cpus-per-task=3 " in line for line in lines)


def test_a_dry_run_prints_the_config_and_the_batch_and_writes_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train.stage1.lr=0.5", *arguments, "--dry-run", "--nodes", "4", "seed=9"]) == 0
    out = capsys.readouterr().out
    assert "seed: 9" in out and "lr: 0.5" in out
    assert "world size     16 = 4 x 4" in out and "accumulation   1 micro" in out and "global batch   256 clips" in out
    assert not (tmp_path / "runs").exists()


def test_a_script_for_plain_sbatch_differs_in_its_command_alone(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    file = tmp_path / "job.sh"
    assert main([*arguments, "--write-script", str(file)]) == 0, "it needs no Slurm"
    written = script_of("# sbatch script\n" + file.read_text(), tmp_path)
    ours, golden = written.splitlines(), GOLDEN.read_text().splitlines()
    command = ours.index("# for status, logs and cancel")
    assert ours[:command] == golden[: golden.index("# command")]
    assert ours[-1].startswith("srun ") and ours[-1].endswith(
        "PYTHON -u -m mmsada_hpc.train.job TMP/runs/d1_d2/config.yaml"
    )
    capsys.readouterr()
    assert main([*arguments, "--write-script", str(file), "--dry-run"]) == 0
    assert script_of(capsys.readouterr().out, tmp_path).rstrip() == written.rstrip()


def test_a_dry_run_on_this_host_needs_no_script(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments[:2], "--cluster", "local", "--tasks-per-node", "2", "--dry-run"]) == 0
    assert "local starts 2 processes on this host" in capsys.readouterr().out


def test_without_slurm_the_way_out_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: sbatch not found") and "--cluster local" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("store", "told"), [("null", "data.store is not set"), ("/nowhere", "data.store=/nowhere: no")]
)
def test_a_run_without_a_store_is_not_queued(
    arguments: list[str], capsys: pytest.CaptureFixture[str], store: str, told: str
) -> None:
    assert main([*arguments, f"data.store={store}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_what_sbatch_gets_is_what_the_dry_run_showed(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = install(tmp_path / "slurm", monkeypatch)
    assert main(arguments) == 0
    assert "queued as job 100: 8 ranks on 2 nodes" in capsys.readouterr().out
    given = slurm.scripts["100"]
    assert script_of("# sbatch script\n" + given, tmp_path) == GOLDEN.read_text()
    assert (tmp_path / "runs/d1_d2/submitit/100_submitted.pkl").exists()


def test_a_refusal_of_sbatch_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "slurm", monkeypatch).refuse("sbatch: error: invalid partition specified: gpu")
    assert main(arguments) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "lies in /tmp" in warning
    assert error == "error: sbatch refused the job: sbatch: error: invalid partition specified: gpu"
    assert not list((tmp_path / "runs/d1_d2/submitit").iterdir()), "nothing is left of a job that is not there"


def test_a_batch_that_does_not_divide_names_the_sizes_that_fit(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dry-run", "--nodes", "1", "--tasks-per-node", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: train.micro_batch=") and "3 rank(s)" in error and "sizes that fit" in error


def test_the_script_starts_from_any_folder_with_any_python(tmp_path: Path) -> None:
    if not (CHECKOUT / ".venv/bin/mmsada").exists():
        pytest.skip("this checkout has no .venv from `make install`")
    system_python = Path(sys.base_prefix) / "bin" / "python3"
    command = [str(system_python), str(CHECKOUT / "launch/submit.py"), "--config", "default.yaml", "--dry-run"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{CHECKOUT}/.venv/bin/python -u -m submitit" in done.stdout
