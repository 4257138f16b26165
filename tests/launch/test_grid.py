"""A grid file: what it unfolds into, what it costs, what it refuses, and that finished runs are kept."""

import json
from pathlib import Path

import pytest

from mmsada_hpc.config import dump_config, load_config
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.submit.command import main
from mmsada_hpc.submit.grid import is_grid, read_grid
from tests.methods.test_extend import EIGHT
from tests.train.test_law1 import tiny_run

GRID = """
base: demo.yaml
folder: {folder}
set: {{train.stage1.steps: 3, train.stage2.steps: 5}}
axes:
  shift:
    K1-K2: {{data.source: [K1], data.target: [K2]}}
    K2-K1: {{data.source: [K2], data.target: [K1]}}
  method:
    source_only: {{method.name: source_only}}
    half: {{method.name: adversarial, method.lambda_d: 0.5}}
  seed: [0, 7]
"""


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.format(folder=tmp_path / "runs"))
    return path


def test_every_combination_is_a_run_with_its_own_folder(grid_file: Path, tmp_path: Path) -> None:
    runs = read_grid(grid_file).runs
    assert [run.name for run in runs][:3] == ["K1-K2/source_only/0", "K1-K2/source_only/7", "K1-K2/half/0"]
    assert len(runs) == len({run.config.run.dir for run in runs}) == 8
    last = runs[-1].config
    assert (last.method.lambda_d, last.seed, last.data.source) == (0.5, 7, ("K2",))
    assert last.run.dir == tmp_path / "runs/K2-K1/half/7"
    assert last.train.stage2.steps == 5


def test_the_words_of_a_run_load_the_same_config_alone(grid_file: Path) -> None:
    grid = read_grid(grid_file)
    for run in grid.runs:
        assert load_config(grid.base, run.overrides) == run.config


def test_the_command_line_goes_over_every_run_and_only_chooses(grid_file: Path) -> None:
    runs = read_grid(grid_file, ["train.global_batch=64"], only="K2-K1/half").runs
    assert [run.name for run in runs] == ["K2-K1/half/0", "K2-K1/half/7"]
    assert all(run.config.train.global_batch == 64 for run in runs)
    with pytest.raises(UserError, match="no run with 'mcd' in its name"):
        read_grid(grid_file, only="mcd")


def test_a_dry_run_lists_the_jobs_and_their_cost(grid_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(grid_file), "--cluster", "local", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("new, 8 updates of 32") == 8
    assert "to do: 8 of 8 runs, 64 updates, 2,048 clips in training" in printed


def test_the_time_left_comes_from_finished_runs(grid_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in read_grid(grid_file).runs[:2]:
        run.config.run.dir.mkdir(parents=True)
        (run.config.run.dir / "result.json").write_text(json.dumps({"seconds": 80.0, "target_top1": 40.0}))
    main(["--config", str(grid_file), "--cluster", "local", "--parallel", "2", "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.count("finished in 1:20, target 40.0 %") == 2
    assert "to do: 6 of 8 runs" in printed
    assert "time: 8:00 in all, 4:00 at 2 runs beside each other" in printed


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(
    grid_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_grid(grid_file).runs[0]
    run.config.run.dir.mkdir(parents=True)
    (run.config.run.dir / "result.json").write_text('{"seconds": 80.0}')
    (run.config.run.dir / "config.yaml").write_text(dump_config(run.config))
    command = ["--config", str(grid_file), "--cluster", "local", "--dry-run"]
    assert main([*command, "observe.tensorboard=true"]) == 0, "that decides no result"
    assert main([*command, "train.stage1.lr=0.5"]) == 2
    assert "holds a finished run with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed: [0, 7]", "sead: [0, 7]"), "axes.sead: a list gives values of a config key"),
        (("method.lambda_d", "method.lambda_q"), r"K1-K2/half/0: method.lambda_q: unknown key"),
        (("method.name: source_only", "method.name: source"), r"source_only/0: method.name=source: no such method"),
        (("base: demo.yaml", "bass: demo.yaml"), "base: Field required"),
        (("seed: [0, 7]", "seed: []"), "axes.seed is empty"),
        (("seed: [0, 7]", "seed: [0, 7, 0]"), "axes.seed: 0 is there twice"),
    ],
)
def test_a_wrong_grid_is_one_line(
    grid_file: Path, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_file.write_text(grid_file.read_text().replace(*change))
    assert main(["--config", str(grid_file), "--cluster", "local", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message.replace("\\", "") in error
    assert error.count("\n") == 1


def test_a_run_config_is_no_grid(grid_file: Path) -> None:
    assert is_grid(grid_file)
    assert not is_grid(Path("demo.yaml"))


def test_a_grid_trains_what_is_not_finished_and_keeps_the_rest(
    tiny_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {
        word.partition("=")[0]: json.loads(json.dumps(word.partition("=")[2]))
        for word in tiny_run(tiny_store, tmp_path)
        if not word.startswith("run.dir")
    }
    import yaml

    path = tmp_path / "grid.yaml"
    values = {key: yaml.safe_load(text) for key, text in settings.items()} | {"train.stage2.steps": 1}
    axes = {"method": {name: {"method.name": name} for name in ("source_only", "adabn")}}
    path.write_text(
        yaml.safe_dump({"base": "default.yaml", "folder": str(tmp_path / "runs"), "set": values, "axes": axes})
    )
    kept = tmp_path / "runs/source_only"
    kept.mkdir(parents=True)
    (kept / "result.json").write_text('{"seconds": 1.0}')
    assert main(["--config", str(path), "--cluster", "local"]) == 0
    assert (kept / "result.json").read_text() == '{"seconds": 1.0}'
    result = json.loads((tmp_path / "runs/adabn/result.json").read_text())
    assert result["label"] == "adabn (mixture)"
    assert "1 of 2 runs are finished" in capfd.readouterr().out


def test_a_run_of_a_local_grid_gets_every_flag_that_the_grid_got(
    grid_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("executor: local\npython: /nowhere/python\n")
    flags = ["--cluster", str(profile), "--tasks-per-node", "2", "--gpus-per-node", "1", "--time", "60"]
    (tmp_path / "store.json").touch()
    command = ["--config", str(grid_file), *flags, "--only", "K1-K2/half/7", f"data.store={tmp_path}"]
    assert main(command) == 1, "there is no such Python"
    log = (tmp_path / "runs/K1-K2/half/7/launch.log").read_text()
    assert "/nowhere/python" in log
    assert "1 runs failed: K1-K2/half/7" in capsys.readouterr().err


def test_the_papers_whole_table_is_listed_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    """Six shifts, every row of the tables, three seeds, from one small file."""
    assert main(["--config", "epic/table1.yaml", "--nodes", "2", "--tasks-per-node", "4", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("new, 9,002 updates of 128") == 6 * 11 * 3
    assert "D3-D2/adversarial_half/2" in printed
    grid = read_grid(Path("epic/table1.yaml"))
    assert {run.config.method.name for run in grid.runs} == EIGHT


def test_the_papers_table_also_runs_by_the_papers_text() -> None:
    runs = read_grid(Path("epic/table1.yaml"), ["recipe=paper"], only="D1-D2").runs
    assert {run.config.train.stage2.lr for run in runs} == {0.001}
    tests = {run.name.split("/")[1]: run.config.model.batch_norm.test for run in runs}
    assert tests["mmsada"] == tests["adabn_target"] == "target"
    assert tests["source_only"] == tests["adabn_mixture"] == "mixture"
