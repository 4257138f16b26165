"""Checkpoints that exist whole or not at all (law 7): temporary folder, fsync, checksum, rename, then the pointer.

One consolidated file that any world size reads: weights and buffers, momentum by parameter name, position. The loader
holds no state, so nothing of it is saved.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsada_hpc.durable import sync_folder, write_atomically
from mmsada_hpc.errors import UserError

_STATE, _MANIFEST, _POINTER = "state.pt", "manifest.json", "latest"


@dataclass(frozen=True)
class Position:
    """Updates done: `step` of `stage`. `Position(1, 0)` is the start of a run."""

    stage: int = 1
    step: int = 0


@dataclass(frozen=True)
class TrainState:
    """All that a run is between two updates."""

    position: Position
    model: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    """By parameter name; empty at the start of a stage."""


class Checkpoints:
    """The checkpoints of one run folder. Rank 0 writes; every rank may read."""

    def __init__(self, run_dir: Path, *, keep: int, config_hash: str, warn: Callable[[str], None] = print) -> None:
        self.folder = run_dir / "checkpoints"
        self._keep, self._hash, self._warn = keep, config_hash, warn

    def save(self, state: TrainState) -> Path:
        """Write one checkpoint and drop old ones.

        Raises:
            UserError: it could not be written (disk full, folder gone); earlier checkpoints are untouched.
        """
        name = f"stage{state.position.stage}-step{state.position.step:08d}"
        final, temporary = self.folder / name, self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            self._write(temporary, state)
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            sync_folder(self.folder)
            self._point_to(name)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"{final}: the checkpoint could not be written ({error.strerror}); free space or choose another "
                f"run.dir, then start the same command again"
            ) from error
        self._drop_old()
        return final

    def load_newest(self) -> TrainState | None:
        """The newest whole checkpoint; damaged ones are named and passed over. None if there is none.

        Raises:
            UserError: the folder holds another run.
        """
        self._remove_unfinished()
        for path in reversed(self.saved()):
            state = self._read(path)
            if state is not None:
                return state
        return None

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("stage*-step*") if p.is_dir())

    def _write(self, temporary: Path, state: TrainState) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"model": _plain(state.model), "momentum": _plain(state.momentum)}, buffer)
        data = buffer.getbuffer()
        write_atomically(temporary / _STATE, data)
        manifest = {
            "position": asdict(state.position),
            "config_hash": self._hash,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomically(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())

    def _read(self, path: Path) -> TrainState | None:
        try:
            manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text())
            data = (path / _STATE).read_bytes()
            if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                raise ValueError("its checksum differs")
        except (OSError, ValueError, KeyError) as error:
            self._warn(f"{path} is damaged ({error}); taking the one before it")
            return None
        if manifest["config_hash"] != self._hash:
            raise UserError(
                f"run.dir={self.folder.parent} holds a run with other settings (its config.yaml tells which): choose "
                f"another run.dir, or remove that folder"
            )
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return TrainState(Position(**manifest["position"]), values["model"], values["momentum"])

    def _point_to(self, name: str) -> None:
        write_atomically(self.folder / _POINTER, name.encode())

    def _drop_old(self) -> None:
        for path in self.saved()[: -self._keep]:
            shutil.rmtree(path, ignore_errors=True)

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
