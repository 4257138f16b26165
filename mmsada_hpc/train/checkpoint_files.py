"""One checkpoint as a folder: `state.pt`, then `manifest.json` with its length, checksum and what lies in it.

The checksum is taken of what is written, on the way, so no second copy of the state is in memory. Hashing and writing
large blocks leave the interpreter free for the training thread.
"""

import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from mmsada_hpc.durable import write_atomically

_STATE, _MANIFEST = "state.pt", "manifest.json"


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

    def copied(self) -> "TrainState":
        """The same in memory of its own, on the CPU: training may go on and change the tensors."""
        return TrainState(self.position, _copied(self.model), _copied(self.momentum))


@dataclass(frozen=True)
class Score:
    """What an evaluated set gave; more is better."""

    set: str
    value: float


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    position: Position
    config_hash: str
    bytes: int
    sha256: str
    dtypes: Mapping[str, Mapping[str, int]] | None
    """Tensors by dtype, of `model` and `momentum`; None in checkpoints of older versions."""
    best: Score | None
    """The score that made it the best one of its run when it was written."""


class DamagedError(ValueError):
    """A checkpoint that is not whole; the message says what of it is wrong."""


def write_checkpoint(folder: Path, state: TrainState, *, config_hash: str, best: Score | None) -> None:
    """Write a whole checkpoint into a folder that no one reads yet; durable on return.

    Raises:
        OSError: no room, no folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, sha256 = _write_state(folder / _STATE, state)
    manifest = Manifest(state.position, config_hash, size, sha256, _dtypes(state), best)
    write_atomically(folder / _MANIFEST, json.dumps(asdict(manifest), indent=1).encode())  # syncs the folder too


def read_manifest(folder: Path) -> Manifest:
    """What the checkpoint says of itself.

    Raises:
        DamagedError: the manifest is missing, unreadable, or lacks something.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
        best = raw.get("best")
        return Manifest(
            Position(**raw["position"]),
            str(raw["config_hash"]),
            int(raw["bytes"]),
            str(raw["sha256"]),
            raw.get("dtypes"),
            None if best is None else Score(**best),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{_MANIFEST}: {_reason(error)}") from error


def read_state(folder: Path, manifest: Manifest) -> TrainState:
    """The state, on the CPU.

    Raises:
        DamagedError: it is not what the manifest says.
    """
    path = folder / _STATE
    try:
        if (size := path.stat().st_size) != manifest.bytes:
            raise DamagedError(f"{_STATE}: {size} bytes, not {manifest.bytes} as {_MANIFEST} says")
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256:
                raise DamagedError(f"{_STATE}: its checksum differs")
        values = torch.load(path, map_location="cpu", weights_only=True)
        state = TrainState(manifest.position, values["model"], values["momentum"])
        found = _dtypes(state)
    except DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{_STATE}: {_reason(error)}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DamagedError(f"{_STATE}: no PyTorch file of tensors") from error
    if manifest.dtypes is not None and found != manifest.dtypes:
        raise DamagedError(f"{_STATE}: tensors {found}, not {manifest.dtypes} as {_MANIFEST} says")
    return state


class _HashedFile:
    """What `torch.save` writes into: a file whose checksum and length are taken on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _write_state(path: Path, state: TrainState) -> tuple[int, str]:
    with open(path, "wb") as file:
        hashed = _HashedFile(file)
        try:
            torch.save({"model": dict(state.model), "momentum": dict(state.momentum)}, cast(IO[bytes], hashed))
        except RuntimeError:
            # torch hides an error of the file behind one of its own, about a wrong position in it.
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return hashed.size, hashed.digest.hexdigest()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # `.cpu()` copies nothing on a CPU, and a view would be saved with all of the storage behind it.
    return {
        name: torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value.detach())
        for name, value in tensors.items()
    }


def _dtypes(state: TrainState) -> dict[str, dict[str, int]]:
    parts = {"model": state.model, "momentum": state.momentum}
    return {
        part: dict(sorted(Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values()).items()))
        for part, tensors in parts.items()
    }


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
