"""A wrong input on the command line: one line that names file or option, exit code 2, no traceback, nothing
half-written.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsada_hpc.cli import COMMANDS, main
from mmsada_hpc.data.store import Store
from tests.conftest import write_video

Prepare = Callable[[Path], list[str]]


def labels(folder: Path, *rows: str) -> Path:
    (folder / "labels.csv").write_text("file,domain,split,class\n" + "".join(f"{row}\n" for row in rows))
    return folder


def one_video(folder: Path) -> Path:
    write_video(folder / "a.avi", motion=(1, 0), seed=1, frames=30)
    return folder


def missing_video(folder: Path) -> list[str]:
    return ["gone.avi", str(labels(folder, "gone.avi,east,train,across"))]


def no_frames(folder: Path) -> list[str]:
    write_video(folder / "empty.avi", motion=(1, 0), seed=1, frames=0)
    return ["empty.avi", str(labels(folder, "empty.avi,east,train,across"))]


def garbage(folder: Path) -> list[str]:
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    return ["noise.mp4", str(labels(folder, "noise.mp4,east,train,across"))]


def empty_row(folder: Path) -> list[str]:
    return ["labels.csv", str(labels(one_video(folder), "a.avi,east,train,across", ",,,"))]


def unknown_class(folder: Path) -> list[str]:
    return ["acros", str(labels(one_video(folder), "a.avi,east,train,acros"))]


@pytest.mark.parametrize("spoil", [missing_video, no_frames, garbage, empty_row, unknown_class])
def test_prepare_names_what_it_cannot_use_and_leaves_no_store(
    spoil: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, videos = spoil(tmp_path)
    out = tmp_path / "store"
    words = ["--labels", f"{videos}/labels.csv", "--size", "64x80", "--workers", "1", "--classes", "across,down"]
    assert main(["prepare", "--videos", videos, *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert named in error
    assert "Traceback" not in error
    assert not (out / "store.json").exists()


def train(store: Path, run_dir: Path, *more: str) -> list[str]:
    keys = [f"data.store={store}", f"run.dir={run_dir}", "data.source=[east]", "data.target=[west]"]
    small = ["data.num_frames=8", "data.crop=32", "model.batch_norm.group_size=2", "train.global_batch=8"]
    return ["train", *keys, *small, *more]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.globl_batch=8", "did you mean train.global_batch"),
        ("data.source=[north]", "no segments of domain 'north', split 'train'; the store has east/test"),
        ("data.num_frames=64", "needs rgb frames"),
        ("data.rgb_step=3", "data.rgb_step=3: the flow of"),
        ("data.crop=224", "data.crop=224 would enlarge"),
        ("train.micro_batch=3", "train.micro_batch=3 does not split"),
        ("eval.sets=[target/val]", "split 'val'"),
        ("method.name=mmada", "did you mean mmsada"),
        ("train.device=gpu", "train.device=gpu: torch sees no GPU"),
        ("data.store=/nowhere", "/nowhere: not a store"),
        ("data.target=[]", "data.target is empty"),
    ],
)
def test_train_names_a_setting_that_cannot_be(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    assert main(train(tiny_store.path, tmp_path / "run", override)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing half-written"


def test_a_truncated_shard_is_named_before_training(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_store.path, tmp_path / "store")
    shard = tmp_path / "store" / tiny_store.manifest.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-512])
    assert main(train(tmp_path / "store", tmp_path / "run")) == 2
    assert shard.name in capsys.readouterr().err


def test_a_flipped_byte_is_found_by_inspect(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_store.path, tmp_path / "store")
    shard = tmp_path / "store" / tiny_store.manifest.shards[0].file
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["inspect", str(tmp_path / "store"), "--verify"]) == 2
    assert shard.name in capsys.readouterr().err


def test_options_and_overrides_come_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "seed=3", "--config", "demo.yaml", "run.dir=/elsewhere"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 3" in printed
    assert "dir: /elsewhere" in printed


def test_every_command_explains_itself_and_help_needs_no_torch() -> None:
    code = (
        "import sys; from mmsada_hpc.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_each_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert "usage: mmsada" in capsys.readouterr().out
