"""Checkpoints: what is read back, what is kept, what damage and crashes leave, and what the training loop waits for."""

import gc
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsada_hpc.errors import UserError
from mmsada_hpc.train.checkpoint import Checkpoints, Position, Score, TrainState

CHECKOUT = Path(__file__).resolve().parents[2]


def state(step: int, *, stage: int = 1) -> TrainState:
    return TrainState(Position(stage, step), {"w": torch.full((300,), float(step))}, {"w": torch.zeros(300)})


def names(checkpoints: Checkpoints) -> list[str]:
    checkpoints.wait()
    return [path.name for path in checkpoints.saved()]


def save(checkpoints: Checkpoints, *steps: int, stage: int = 1) -> None:
    for step in steps:
        checkpoints.save(state(step, stage=stage))
    checkpoints.wait()


def save_and_wait(checkpoints: Checkpoints, training: TrainState) -> None:
    checkpoints.save(training)
    checkpoints.wait()


def until(event: threading.Event) -> Callable[[], None]:
    """An owner whose answer takes until then, as on a slow file system; ten seconds at most."""

    def wait() -> None:
        event.wait(10)

    return wait


@pytest.mark.parametrize("background", [True, False])
def test_what_was_saved_is_read_back_bit_for_bit(tmp_path: Path, background: bool) -> None:
    wide = torch.randn(3, 4, 2, 5, 6).to(memory_format=torch.channels_last_3d)
    model = {
        "fp64": torch.randn(7, dtype=torch.float64),
        "bf16": torch.randn(7).bfloat16(),
        "count": torch.tensor(3),
        "empty": torch.empty(0),
        "wide": wide,
        "view": torch.randn(100_000)[10:20],
    }
    checkpoints = Checkpoints(tmp_path, keep=1, config_hash="h", background=background)
    checkpoints.save(TrainState(Position(2, 9), model, {}))
    checkpoints.close()
    found = Checkpoints(tmp_path, keep=1, config_hash="h").newest_whole()
    assert found is not None and found.state.position == Position(2, 9) and found.state.momentum == {}
    assert list(found.state.model) == list(model)
    for name, value in model.items():
        assert found.state.model[name].dtype == value.dtype
        assert torch.equal(found.state.model[name], value)
    assert (checkpoints.saved()[0] / "state.pt").stat().st_size < 100_000, "a view is saved without what it views"


def test_the_state_is_that_of_the_moment_of_the_save(tmp_path: Path) -> None:
    go_on = threading.Event()
    checkpoints = Checkpoints(tmp_path, keep=1, config_hash="h", owner=until(go_on))
    training = state(1)
    checkpoints.save(training)
    training.model["w"].fill_(-1)
    training.momentum["w"].fill_(-1)
    go_on.set()
    found = checkpoints.newest_whole()
    assert found is not None
    assert found.state.model["w"].unique().tolist() == [1.0] and found.state.momentum["w"].unique().tolist() == [0.0]


def test_a_save_holds_the_caller_for_the_copy_and_for_the_write_before_it(tmp_path: Path) -> None:
    go_on = threading.Event()
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h", owner=until(go_on))
    assert checkpoints.save(state(1)) < 5, "the owner is asked in the background, for up to ten seconds"
    assert checkpoints.saved() == [], "not in its place yet"
    checkpoints.poll()
    threading.Timer(0.3, go_on.set).start()
    assert checkpoints.save(state(2)) > 0.2, "the first one has to be written before"
    assert names(checkpoints) == ["stage1-step00000001", "stage1-step00000002"]


def test_one_copy_is_in_memory_at_a_time_and_released_after_the_write(tmp_path: Path) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor and thing.shape == (12_347,) for thing in gc.get_objects())

    seen: list[int] = []

    def owner() -> None:
        go_on.wait(10)
        seen.append(tensors())

    go_on = threading.Event()
    checkpoints = Checkpoints(tmp_path, keep=1, config_hash="h", owner=owner)
    training = TrainState(Position(1, 1), {"w": torch.zeros(12_347)}, {"w": torch.zeros(12_347)})
    checkpoints.save(training)
    threading.Timer(0.3, go_on.set).start()
    checkpoints.save(training)
    checkpoints.wait()
    assert seen == [4, 4]
    assert tensors() == 2


def test_nothing_is_put_in_place_by_a_start_that_lost_the_run(tmp_path: Path) -> None:
    def lost() -> None:
        raise UserError("another start of this run has taken over")

    save(Checkpoints(tmp_path, keep=1, config_hash="h"), 1)
    late = Checkpoints(tmp_path, keep=1, config_hash="h", owner=lost)
    late.save(state(2))
    with pytest.raises(UserError, match="taken over"):
        late.wait()
    late.wait()  # told once
    assert names(late) == ["stage1-step00000001"]
    assert (tmp_path / "checkpoints/latest").read_text() == "stage1-step00000001"
    assert not list((tmp_path / "checkpoints").glob(".*")), "what it wrote is cleared away"


def test_a_checkpoint_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        Checkpoints(tmp_path, keep=2, config_hash="h", background=False).save(state(1))
    behind = Checkpoints(tmp_path, keep=2, config_hash="h")
    behind.save(state(1))
    with pytest.raises(UserError, match="could not be written"):
        behind.save(state(2))


@pytest.mark.parametrize("background", [True, False])
def test_a_file_that_does_not_fit_is_told_and_what_was_there_is_left(tmp_path: Path, background: bool) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, config_hash="h", background=background)
    save(checkpoints, 1)
    large = TrainState(Position(1, 2), {"w": torch.zeros(2_000_000)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limits[1]))
    try:
        with pytest.raises(UserError, match="stage1-step00000002: the checkpoint could not be written") as told:
            save_and_wait(checkpoints, large)
        assert "(File too large); free space or" in str(told.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "stage1-step00000001"]
    checkpoints.save(large)  # there is room again
    assert names(checkpoints) == ["stage1-step00000002"]


def test_the_newest_are_kept_and_the_named_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, named=(3, 5), config_hash="h")
    save(checkpoints, 3)
    assert checkpoints.best() is None
    for step in range(1, 9):
        score = Score("source/test", 40.0) if step == 2 else None
        checkpoints.save(state(step, stage=2), keep_as_best=score)
    assert names(checkpoints) == [f"stage2-step0000000{step}" for step in (2, 3, 5, 7, 8)]
    assert (tmp_path / "checkpoints/latest").read_text() == "stage2-step00000008"
    assert json.loads((tmp_path / "checkpoints/best").read_text()) == {
        "name": "stage2-step00000002",
        "set": "source/test",
        "score": 40.0,
    }


def test_the_best_is_known_to_the_next_start_and_gives_way_to_a_better_one(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, keep=1, config_hash="h")
    assert first.is_best(Score("source/test", 0.0)), "the first one is"
    first.save(state(1), keep_as_best=Score("source/test", 40.0))
    assert not first.is_best(Score("source/test", 40.0)), "also while it is being written"
    save(first, 2)
    again = Checkpoints(tmp_path, keep=1, config_hash="h")
    best = again.best()
    assert best is not None
    assert best.path.name == "stage1-step00000001" and best.score == Score("source/test", 40.0)
    assert not again.is_best(Score("source/test", 39.0)) and again.is_best(Score("source/test", 40.1))
    assert again.is_best(Score("source/all", 1.0)), "of another set there was none"
    again.save(state(3), keep_as_best=Score("source/test", 41.0))
    save(again, 4)
    assert names(again) == ["stage1-step00000003", "stage1-step00000004"]


def test_a_step_that_is_saved_again_replaces_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h")
    save(checkpoints, 1, 2)
    checkpoints.save(TrainState(Position(1, 2), {"w": torch.ones(3)}, {}))
    found = checkpoints.newest_whole()
    assert found is not None and found.state.model["w"].tolist() == [1, 1, 1]
    assert names(checkpoints) == ["stage1-step00000001", "stage1-step00000002"]


def rewrite_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "state.pt").write_bytes(data)


def put_other_tensors(folder: Path, values: Any) -> None:
    torch.save(values, folder / "state.pt")
    data = (folder / "state.pt").read_bytes()
    rewrite_manifest(folder, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip_a_bit, "state.pt: its checksum differs"),
    "a truncated file": (lambda p: os.truncate(p / "state.pt", 1000), "state.pt: 1000 bytes, not "),
    "no file": (lambda p: (p / "state.pt").unlink(), "state.pt: No such file"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json: No such file"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text(""), "manifest.json: "),
    "a manifest that is none": (lambda p: (p / "manifest.json").write_text("[1]"), "manifest.json: "),
    "binary zeros": (lambda p: (p / "manifest.json").write_bytes(bytes(300)), "manifest.json: "),
    "another length": (lambda p: rewrite_manifest(p, bytes=5), "state.pt: 4197 bytes, not 5 as manifest.json says"),
    "no position": (lambda p: rewrite_manifest(p, position={"epoch": 3}), "manifest.json: "),
    "another dtype": (
        lambda p: put_other_tensors(
            p, {"model": {"w": torch.zeros(300).double()}, "momentum": {"w": torch.zeros(300)}}
        ),
        "state.pt: tensors {'model': {'float64': 1}",
    ),
    "no momentum": (lambda p: put_other_tensors(p, {"model": {}}), "state.pt: momentum is missing"),
    "no tensors": (lambda p: put_other_tensors(p, {"model": {"w": 1}, "momentum": {}}), "state.pt: "),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, what: str) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h", warn=said.append)
    save(checkpoints, 1, 2)
    damage, why = DAMAGE[what]
    newest = tmp_path / "checkpoints/stage1-step00000002"
    damage(newest)
    found = checkpoints.newest_whole()
    assert found is not None and found.state.position == Position(1, 1)
    (line,) = said
    assert line.startswith(f"{newest} is damaged ({why}") and "\n" not in line
    assert found.path == newest.with_name("stage1-step00000001")


def test_one_that_was_found_damaged_takes_no_place_of_a_whole_one(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, keep=3, config_hash="h"), 10, 20, 30)
    flip_a_bit(tmp_path / "checkpoints/stage1-step00000030")
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h", warn=lambda _: None)
    checkpoints.newest_whole()
    save(checkpoints, 21)
    assert names(checkpoints) == ["stage1-step00000020", "stage1-step00000021"], "the damaged one is gone"


def test_a_best_one_that_is_damaged_is_none(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, keep=2, config_hash="h")
    save(first, 1)
    first.save(state(2), keep_as_best=Score("source/test", 50.0))
    first.close()
    flip_a_bit(tmp_path / "checkpoints/stage1-step00000002")
    again = Checkpoints(tmp_path, keep=2, config_hash="h", warn=lambda _: None)
    again.newest_whole()
    assert again.best() is None and again.is_best(Score("source/test", 50.0))
    again.save(state(2), keep_as_best=Score("source/test", 50.0))
    best = again.best()
    assert best is not None and best.path.name in names(again)


def test_a_run_whose_every_checkpoint_is_damaged_says_that_it_begins_anew(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h", warn=said.append)
    save(checkpoints, 1, 2)
    for path in checkpoints.saved():
        flip_a_bit(path)
    assert checkpoints.newest_whole() is None
    assert "none of 2 checkpoints is whole; the run begins anew" in said[2]


def test_damage_that_one_host_alone_sees_names_the_host(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h")
    save(checkpoints, 1)
    found = checkpoints.newest_whole()
    assert found is not None and checkpoints.load(found.path).position == Position(1, 1)
    flip_a_bit(found.path)
    with pytest.raises(UserError, match=f"damaged as {os.uname().nodename} reads it .state.pt: its checksum differs"):
        checkpoints.load(found.path)


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, keep=1, config_hash="one"), 1)
    with pytest.raises(UserError, match="holds a run with other settings"):
        Checkpoints(tmp_path, keep=1, config_hash="two").newest_whole()


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, config_hash="h")
    save(checkpoints, 1)
    manifest = checkpoints.saved()[0] / "manifest.json"
    old = ("position", "config_hash", "bytes", "sha256")
    manifest.write_text(
        json.dumps({key: value for key, value in json.loads(manifest.read_text()).items() if key in old})
    )
    found = checkpoints.newest_whole()
    assert found is not None and found.state.position.step == 1


def test_what_is_half_written_is_never_read_and_is_cleared_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, config_hash="h")
    save(checkpoints, 1)
    half = tmp_path / "checkpoints/.stage1-step00000002.1.tmp"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    (tmp_path / "checkpoints/latest.tmp").write_text("half")
    found = checkpoints.newest_whole()
    assert found is not None and found.state.position.step == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "stage1-step00000001"]


def crash(tmp_path: Path, scenario: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.train.checkpoint_crashes", str(tmp_path), scenario]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stderr, "nothing in its place is ever less than whole"
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_process_killed_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    *killed, whole = crash(tmp_path, "new")
    assert whole["event"] is None and len(killed) > 20
    renamed = next(n for n, row in enumerate(killed) if row["event"].endswith(" /checkpoints/stage2-step00000004"))
    for number, row in enumerate([*killed, whole]):
        before = number <= renamed
        assert row["step"] == (3 if before else 4), row
        assert row["values"] == [row["step"]] and row["start"] == (1 if before else 2), row
        best = "stage2-step00000002" if before else "stage2-step00000004"
        assert row["best"][0] == best, row
        assert {"stage2-step00000001", best} <= set(row["saved"]), "the named and the best"
        assert row["hidden"] == [] and row["broken"] == [], "remains are cleared away"
        assert row["latest"] in row["saved"], row
        assert row["then"] == ["stage2-step00000001", best, "stage2-step01000000"], (
            "and the next save drops what is old"
        )
    at = " ".join(row["event"] for row in killed)
    for place in ("/state.pt w", "/manifest.json.tmp w", "latest.tmp w", "best.tmp w", "os.rmdir", "dropped.tmp"):
        assert place in at


def test_a_process_killed_while_it_saves_a_step_again_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    *killed, whole = crash(tmp_path, "again")
    assert whole["event"] is None and len(killed) > 15
    renamed = next(n for n, row in enumerate(killed) if row["event"].endswith(".tmp /checkpoints/stage2-step00000003"))
    assert ".stage2-step00000003.old" in killed[renamed]["remains"], "killed between the two renames"
    for number, row in enumerate([*killed, whole]):
        assert row["step"] == 3 and row["values"] == [3.0], row
        assert row["start"] == (1 if number <= renamed else 2), row
        assert row["hidden"] == [] and row["broken"] == [] and row["latest"] in row["saved"], row


def test_a_process_killed_at_any_time_loses_only_the_one_being_written(tmp_path: Path) -> None:
    rows = crash(tmp_path, "any time")
    assert len(rows) == 8
    for row in rows:
        assert row["hidden"] == [] and row["values"] == ([row["step"]] if row["step"] else None)
        under_way = [int(name.split("step")[1].split(".")[0]) for name in row["remains"] if "dropped" not in name]
        assert under_way in ([], [(row["step"] or 0) + 1]), row
    assert any(row["remains"] for row in rows)


def test_all_is_on_the_disk_before_it_is_renamed_and_the_pointer_comes_last(tmp_path: Path) -> None:
    order = crash(tmp_path, "order")[0]["order"]
    assert order == [
        "fsync TEMPORARY/state.pt",
        "fsync TEMPORARY/manifest.json.tmp",
        "rename TEMPORARY/manifest.json",
        "fsync TEMPORARY",
        "rename checkpoints/stage2-step00000001",
        "fsync checkpoints",
        "fsync checkpoints/latest.tmp",
        "rename checkpoints/latest",
        "fsync checkpoints",
    ]
