"""Checkpoints that exist whole or not at all (law 7): temporary folder, fsync, checksum, rename, then the pointer.

One consolidated file that any world size reads: weights and buffers, momentum by parameter name, position. The loader
holds no state, so nothing of it is saved. Written in the background from a copy in memory; kept by rule: the newest,
those of named steps, and the best one.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.durable import sync_folder, write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.train.background import Background
from mmsada_hpc.train.checkpoint_files import (
    DamagedError,
    Manifest,
    Position,
    Score,
    TrainState,
    read_manifest,
    read_state,
    write_checkpoint,
)

__all__ = ["Best", "Checkpoints", "Position", "Score", "TrainState"]

_LATEST, _BEST = "latest", "best"
_NAME = re.compile(r"stage(\d+)-step(\d{8,})")
# What a crash may leave behind: `.NAME...tmp` is unfinished or half deleted, `.NAME.old` was about to be replaced.
_UNFINISHED, _REPLACED = ".tmp", ".old"


@dataclass(frozen=True)
class Best:
    """The checkpoint that scored best so far."""

    path: Path
    score: Score


@dataclass(frozen=True)
class Whole:
    """A checkpoint that was read to its end."""

    path: Path
    state: TrainState


class Checkpoints:
    """The checkpoints of one run folder. Rank 0 writes and chooses; every rank may `load` the chosen one."""

    def __init__(
        self,
        run_dir: Path,
        *,
        keep: int,
        config_hash: str,
        named: Collection[int] = (),
        warn: Callable[[str], None] = print,
        background: bool = True,
        owner: Callable[[], None] | None = None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            keep: Newest checkpoints kept.
            config_hash: Of the run's settings; a folder with another one is refused.
            named: Steps of stage 2 that are kept beside the newest.
            background: Write in a thread; else `save` returns when all is written.
            owner: Called by the writer before a checkpoint is put in its place; it may raise, and then it is not.
        """
        self.folder = run_dir / "checkpoints"
        self._keep, self._hash, self._warn = keep, config_hash, warn
        self._named, self._owner = frozenset(named), owner
        self._in_background, self._writer = background, Background("checkpoint")
        self._damaged: set[str] = set()
        self._best: Best | None = None

    def save(self, state: TrainState, *, keep_as_best: Score | None = None) -> float:
        """Copy the state and begin to write it; returns the seconds that the caller was held.

        A write still going on is waited for first. With a score, this is the best one from now on.

        Raises:
            UserError: this one, or the one before in the background, could not be written (disk full, folder gone);
                earlier checkpoints are untouched.
            Exception: what `owner` raised.
        """
        begin = time.monotonic()
        self.wait()
        copy = state.copied()
        self._damaged.discard(_name(state.position))
        if keep_as_best is not None:
            self._best = Best(self.folder / _name(state.position), keep_as_best)
        if self._in_background:
            self._writer.start(lambda: self._put(copy, keep_as_best))
        else:
            self._put(copy, keep_as_best)
        return time.monotonic() - begin

    def poll(self) -> None:
        """Raise, once, what the last write failed with; never blocks."""
        self._writer.poll()

    def wait(self) -> None:
        """Block until all is written; raises, once, what the write failed with."""
        self._writer.wait()

    def close(self) -> None:
        """The same as `wait`: nothing else is held."""
        self.wait()

    def newest_whole(self) -> Whole | None:
        """Where the newest whole checkpoint lies, and what it holds; for rank 0, which tells the others to `load` it.

        Damaged ones are named and passed over. Puts right what a crash has left behind; so call it before anything is
        saved, and on one rank.

        Raises:
            UserError: the folder holds another run.
        """
        self.wait()
        self._recover()
        saved = self.saved()
        for path in reversed(saved):
            try:
                manifest, state = self._read(path)
            except DamagedError as error:
                self._damaged.add(path.name)
                self._warn(f"{path} is damaged ({error}); passed over")
                continue
            if manifest.best is not None:  # a crash may have come before the pointer
                self._point_to_best(path.name, manifest.best)
            return Whole(path, state)
        if saved:
            self._warn(f"{self.folder}: none of {len(saved)} checkpoints is whole; the run begins anew")
        return None

    def load(self, path: Path) -> TrainState:
        """A checkpoint that rank 0 found to be whole; changes nothing in the folder.

        Raises:
            UserError: it is not whole as this host reads it, or belongs to another run.
        """
        try:
            return self._read(path)[1]
        except DamagedError as error:
            raise UserError(
                f"{path}: damaged as {socket.gethostname()} reads it ({error}), whole as rank 0 does; look at the "
                f"memory, the network and the mount of run.dir on that host, then start the same command again"
            ) from error

    def best(self) -> Best | None:
        """The best one so far, which may still be being written; None if there is none."""
        found = self._best or self._read_best()
        return None if found is None or found.path.name in self._damaged else found

    def is_best(self, score: Score) -> bool:
        """Whether a score is higher than that of the best one; so is the first of its set."""
        best = self.best()
        return best is None or best.score.set != score.set or score.value > best.score.value

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("stage*-step*") if _NAME.fullmatch(p.name) and p.is_dir())

    def _put(self, state: TrainState, best: Score | None) -> None:
        """Law 7, in its order."""
        name = _name(state.position)
        temporary = self.folder / f".{name}.{socket.gethostname()}.{os.getpid()}{_UNFINISHED}"
        try:
            write_checkpoint(temporary, state, config_hash=self._hash, best=best)
            if self._owner is not None:
                self._owner()
            self._rename(temporary, self.folder / name)
            write_atomically(self.folder / _LATEST, name.encode())
            if best is not None:
                self._point_to_best(name, best)
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: the checkpoint could not be written ({error.strerror}); free space or choose "
                f"another run.dir, then start the same command again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # there only if something was raised
        self._drop_old(name)

    def _rename(self, temporary: Path, final: Path) -> None:
        """Into its place; one of the same name goes aside first, where `_recover` finds it after a crash in between."""
        aside = self.folder / f".{final.name}{_REPLACED}"
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
        os.rename(temporary, final)
        sync_folder(self.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def _read(self, path: Path) -> tuple[Manifest, TrainState]:
        manifest = read_manifest(path)
        if manifest.config_hash != self._hash:
            raise UserError(
                f"run.dir={self.folder.parent} holds a run with other settings (its config.yaml tells which): choose "
                f"another run.dir, or remove that folder"
            )
        return manifest, read_state(path, manifest)

    def _point_to_best(self, name: str, score: Score) -> None:
        self._best = Best(self.folder / name, score)
        if self._read_best() != self._best:
            record = {"name": name, "set": score.set, "score": score.value}
            write_atomically(self.folder / _BEST, json.dumps(record).encode())

    def _read_best(self) -> Best | None:
        try:
            raw: dict[str, Any] = json.loads((self.folder / _BEST).read_text())
            found = Best(self.folder / str(raw["name"]), Score(str(raw["set"]), float(raw["score"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # an older version's folder, or none: the next score is the best
        return found if found.path.is_dir() else None

    def _drop_old(self, latest: str) -> None:
        """All but the newest, the named and the pointed to; also those that were found damaged, as one is whole now."""
        best = self._read_best()
        whole = [path.name for path in self.saved() if path.name not in self._damaged]
        kept = {latest, *whole[-self._keep :], *(name for name in whole if self._is_named(name))}
        kept |= set() if best is None else {best.path.name}
        for path in self.saved():
            if path.name not in kept or path.name in self._damaged:
                self._drop(path)

    def _is_named(self, name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and int(match[1]) == 2 and int(match[2]) in self._named

    def _drop(self, path: Path) -> None:
        """Out of sight at once, then delete: a crash in between leaves nothing that looks whole."""
        aside = self.folder / f".{path.name}.dropped{_UNFINISHED}"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            os.rename(path, aside)
        except OSError as error:
            self._warn(f"{path}: an old checkpoint could not be deleted ({error.strerror})")
        shutil.rmtree(aside, ignore_errors=True)

    def _recover(self) -> None:
        """Put right what a crash has left: finish or undo a replacement, clear the unfinished away."""
        for path in self.folder.glob(f".*{_REPLACED}"):
            final = self.folder / path.name[1 : -len(_REPLACED)]
            if final.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):  # another rank was first
                    os.rename(path, final)
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _name(position: Position) -> str:
    return f"stage{position.stage}-step{position.step:08d}"
