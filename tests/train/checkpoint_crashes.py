"""Saves that are killed for real: a driver forks a process per fault, which ends itself by SIGKILL amid a save.

Run as `python -m tests.train.checkpoint_crashes FOLDER SCENARIO`; prints what was found after each kill, a JSON row a
line. In a process of its own, as it forks.
"""

import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmsada_hpc.errors import UserError
from mmsada_hpc.train.checkpoint import Checkpoints, Position, Score, TrainState

SMALL, LARGE = 1000, 2_000_000
"""Numbers in the state."""


def state(step: int, *, start: int, size: int = SMALL) -> TrainState:
    """What a run has at a step; tells in which start it was made."""
    return TrainState(Position(2, step), {"w": torch.full((size,), float(step)), "start": torch.tensor([start])}, {})


def checkpoints(run_dir: Path) -> Checkpoints:
    return Checkpoints(run_dir, keep=1, named=[1], config_hash="h", warn=lambda words: print(words, file=sys.stderr))


def save_a_new_one(saving: Checkpoints) -> None:
    """Step 4 beside 1 (named), 2 (the best so far) and 3 (the newest, to be dropped)."""
    saving.save(state(4, start=2), keep_as_best=Score("source/test", 60.0))
    saving.wait()


def save_one_again(saving: Checkpoints) -> None:
    """Step 3 once more, in another start."""
    saving.save(state(3, start=2))
    saving.wait()


SCENARIOS = {"new": save_a_new_one, "again": save_one_again}


def prepare(run_dir: Path) -> None:
    saving = checkpoints(run_dir)
    for step in (1, 2, 3):
        saving.save(state(step, start=1), keep_as_best=Score("source/test", 50.0) if step == 2 else None)
    saving.close()


def killed_at_event(number: int, run_dir: Path, save: Callable[[Checkpoints], None]) -> str | None:
    """Die at the `number`-th file operation in the run folder; returns which that was, None if there were fewer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event.split(".")[0] not in ("open", "os", "shutil") or str(run_dir) not in str(arguments):
                return
            seen += 1
            if seen == number:
                places = [str(part).replace(str(run_dir), "") for part in arguments[:2]]
                os.write(writing, f"{event} {' '.join(places)}".encode())
                os.kill(os.getpid(), signal.SIGKILL)

        saving = checkpoints(run_dir)
        sys.addaudithook(hook)
        save(saving)
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        event = file.read()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return event
    assert status == 0, f"the save itself failed: {status}"
    return None


def killed_after(seconds: float, run_dir: Path) -> None:
    """Die at some time while one large state after the other is saved."""
    child = os.fork()
    if child == 0:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        saving = checkpoints(run_dir)
        for step in range(1, 10**6):
            saving.save(state(step, start=1, size=LARGE))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the save itself failed: {status}"


def what_is_left(run_dir: Path) -> dict[str, object]:
    """As the next start finds it, before and after that start saves."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)  # the kill may have come before it
    remains = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    reading = checkpoints(run_dir)
    found = reading.newest_whole()
    row: dict[str, object] = {"remains": remains, "step": None, "values": None}
    if found is not None:
        values = found.state.model["w"].unique().tolist()
        best = reading.best()
        row |= {"step": found.state.position.step, "values": values, "start": found.state.model["start"].item()}
        row |= {"best": best and [best.path.name, best.score.value], "saved": [path.name for path in reading.saved()]}
        row["latest"] = (folder / "latest").read_text()
        row["broken"] = [path.name for path in reading.saved() if not is_whole(reading, path)]
    row["hidden"] = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    reading.save(state(10**6, start=3))
    reading.close()
    row["then"] = [path.name for path in reading.saved()]
    return row


def is_whole(reading: Checkpoints, path: Path) -> bool:
    try:
        return reading.load(path).position.step > 0
    except UserError:
        return False


def order_of(run_dir: Path) -> list[str]:
    """Syncs and renames of one save in the foreground, as they come."""
    seen: list[str] = []
    real_fsync = os.fsync

    def tell(what: str, path: str) -> None:
        place = Path(re.sub(r"\.stage2-[^/]*", "TEMPORARY", path))
        parts = place.parts[place.parts.index("checkpoints") :]
        seen.append(f"{what} {'/'.join(parts[1:] if 'TEMPORARY' in parts else parts)}")

    def fsync(fd: Any) -> None:
        tell("fsync", os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    sys.addaudithook(lambda event, arguments: tell("rename", str(arguments[1])) if event == "os.rename" else None)
    os.fsync = fsync
    Checkpoints(run_dir, keep=1, config_hash="h", background=False).save(state(1, start=1))
    return seen


def main(folder: Path, scenario: str) -> None:
    number = 0
    if scenario == "order":
        print(json.dumps({"order": order_of(folder)}))
        return
    if scenario == "any time":
        pick = random.Random(7)
        for number in range(8):
            run_dir = folder / str(number)
            killed_after(pick.uniform(0.05, 0.6), run_dir)
            print(json.dumps(what_is_left(run_dir)), flush=True)
        return
    begin = time.monotonic()
    while time.monotonic() - begin < 100:
        number += 1
        run_dir = folder / str(number)
        prepare(run_dir)
        event = killed_at_event(number, run_dir, SCENARIOS[scenario])
        print(json.dumps({"event": event, **what_is_left(run_dir)}), flush=True)
        if event is None:
            return
    raise SystemExit("too slow")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
