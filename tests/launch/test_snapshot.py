"""The copy of the code: whole or not at all, used again, and what is said of where it comes from."""

import json
import subprocess
from pathlib import Path

import pytest

from mmsada_hpc.cluster import snapshot
from mmsada_hpc.cluster.code import package_folders
from mmsada_hpc.cluster.snapshot import code_variables, take_snapshot
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.git_state import git_state


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, timeout=20)


def test_an_equal_snapshot_is_used_again_and_another_one_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take_snapshot(tmp_path)
    stamp = (first / "mmsada_hpc/__init__.py").stat().st_mtime_ns
    assert take_snapshot(tmp_path) == first
    assert (first / "mmsada_hpc/__init__.py").stat().st_mtime_ns == stamp
    files = dict(snapshot._files())
    edited = {**files, "mmsada_kernels/reference.py": files["mmsada_kernels/reference.py"] + b"\n"}
    monkeypatch.setattr(snapshot, "_files", lambda: edited.items())
    assert take_snapshot(tmp_path) != first
    assert (
        sorted(path.suffix for path in tmp_path.iterdir() if path.is_file() and path.suffix == ".json") == [".json"] * 2
    )


def test_what_is_copied_is_what_is_imported_and_nothing_else(tmp_path: Path) -> None:
    copied = take_snapshot(tmp_path)
    product, kernels = package_folders()
    for path in (*product.rglob("*.py"), *kernels.rglob("*.py")):
        name = "mmsada_hpc" if path.is_relative_to(product) else "mmsada_kernels"
        inside = path.relative_to(product if name == "mmsada_hpc" else kernels)
        assert (copied / name / inside).read_bytes() == path.read_bytes()
    assert not list(copied.rglob("__pycache__")) and not list(copied.rglob("*.pyc"))
    assert sorted(path.name for path in copied.iterdir()) == ["launch", "mmsada_hpc", "mmsada_kernels"]


def test_a_compiled_operator_goes_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product, _ = package_folders()
    (tmp_path / "kernels/cpu").mkdir(parents=True)
    (tmp_path / "kernels/cpu/heads.cpython-311.so").write_bytes(b"\x7fELF")
    monkeypatch.setattr(snapshot, "package_folders", lambda: (product, tmp_path / "kernels"))
    assert (take_snapshot(tmp_path / "code") / "mmsada_kernels/cpu/heads.cpython-311.so").read_bytes() == b"\x7fELF"


def test_a_copy_that_breaks_off_leaves_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("mmsada_hpc/a.py", b"1"), ("mmsada_hpc/a.py/b.py", b"2")]  # the second cannot be written
    monkeypatch.setattr(snapshot, "_files", lambda: files)
    with pytest.raises(UserError, match="the code could not be copied there"):
        take_snapshot(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_python_with_the_variables_imports_the_copy(tmp_path: Path) -> None:
    import sys

    copied = take_snapshot(tmp_path)
    text = "import mmsada_hpc, mmsada_kernels; print(mmsada_hpc.__file__); print(mmsada_kernels.__file__)"
    checkout = package_folders()[0].parent
    command = [sys.executable, "-c", text]
    done = subprocess.run(
        command, cwd=checkout, env=code_variables(copied), capture_output=True, text=True, timeout=60, check=True
    )
    assert all(line.startswith(f"{copied}/") for line in done.stdout.splitlines()), done.stdout


def test_git_is_recorded_with_what_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "--initial-branch=trunk")
    (tmp_path / "a.py").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path)
    assert (clean.branch, clean.dirty, clean.diff) == ("trunk", False, "") and len(clean.commit) == 40
    (tmp_path / "a.py").write_text("two\n")
    edited = git_state(tmp_path)
    assert edited.dirty and edited.commit == clean.commit and "-one\n+two" in edited.diff


def test_a_folder_inside_somebody_elses_checkout_has_no_git(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "venv").mkdir()
    assert git_state(tmp_path / "venv").commit == git_state(tmp_path / "nowhere").commit == "no git"


def test_the_record_says_no_git_for_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = tmp_path / "site-packages/mmsada_hpc"
    kernels = tmp_path / "site-packages/mmsada_kernels"
    for folder in (product, kernels):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    monkeypatch.setattr(snapshot, "package_folders", lambda: (product, kernels))
    copied = take_snapshot(tmp_path / "code")
    assert json.loads(copied.with_suffix(".json").read_text())["git"]["commit"] == "no git"
    assert not copied.with_suffix(".diff").exists() and not (copied / "launch").exists()
