"""metrics.jsonl: one JSON object a line, whole lines only, whatever happens to the process that writes them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from mmsada_hpc.errors import UserError

METRICS_FILE = "metrics.jsonl"
# Rows of these kinds belong to a step: they are written again when a run resumes from before that step.
STEPPED_KINDS = frozenset({"train", "eval"})


class ScalarWriter(Protocol):
    """The part of `torch.utils.tensorboard.SummaryWriter` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy and torch scalars become Python numbers, NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of the file. A last line torn by a kill is dropped; a damaged line before it is a UserError."""
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line) if line.strip() else None
        if row is not None:
            rows.append(row)
        elif line.strip() and any(later.strip() for later in lines[number:]):
            raise UserError(f"{path}: line {number} is not a JSON object; remove that line or restore the file")
    return rows


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of `run_dir`/metrics.jsonl, oldest first.

    Raises UserError when there is no such file or a line before the last is damaged.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{run_dir} has no {METRICS_FILE}: give the folder of a run (what `run.dir` was set to)")
    return _read_rows(path)


def _write_atomically(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _drop_torn_tail(path: Path) -> None:
    """Leaves the file empty or ending in a newline, so that the next row starts a line of its own."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    whole = content.rfind(b"\n") + 1
    if _parse(content[whole:]) is not None:
        with path.open("ab") as file:
            file.write(b"\n")
    else:
        os.truncate(path, whole)


def _open_tensorboard(folder: Path, *, first_step: int | None) -> ScalarWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"TensorBoard is switched on but cannot be loaded ({error}): `pip install tensorboard`, or switch it off"
        ) from error
    # purge_step hides the points of the steps that are about to be run again
    writer: ScalarWriter = SummaryWriter(log_dir=str(folder), purge_step=first_step)
    return writer


class MetricsLog:
    """Appends rows to `run_dir`/metrics.jsonl, and to TensorBoard when asked.

    With `enabled=False` (every rank but 0) nothing is opened and nothing is written.
    """

    def __init__(self, run_dir: str | Path, *, tensorboard: bool, enabled: bool) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self._tensorboard_dir = Path(run_dir) / "tensorboard" if tensorboard else None
        self._first_step: int | None = None
        self._board: ScalarWriter | None = None
        self._file: IO[str] | None = None
        self._enabled = enabled
        if enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_tail(self.path)
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row, with `time` (unix seconds) if it has none. The line is with the operating system on return."""
        if self._file is None:
            return
        whole = plain({**row, "time": row.get("time", round(time.time(), 3))})
        try:
            self._file.write(json.dumps(whole) + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up()
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free space, then resume the run"
            ) from error
        if self._tensorboard_dir is not None:
            self._write_board(whole)

    def sync(self) -> None:
        """The rows so far are on the disk on return."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def truncate_after(self, global_step: int, *, evaluations_too: bool = False) -> list[dict[str, Any]]:
        """Removes the train and eval rows of later steps, so that the steps run again after a kill replace them.

        The file is rewritten whole or not at all. Rows of other kinds stay. -1 removes every train and eval row.

        Args:
            evaluations_too: also those of `global_step` itself, which are about to be made again.

        Returns:
            What was removed: work that was lost.
        """
        if self._file is None:
            return []
        self._first_step = global_step + 1
        self._file.close()
        kept, lost = list[dict[str, Any]](), list[dict[str, Any]]()
        for row in _read_rows(self.path):
            last = global_step - (evaluations_too and row.get("kind") == "eval")
            is_later = row.get("kind") in STEPPED_KINDS and row.get("global_step", 0) > last
            (lost if is_later else kept).append(row)
        if lost:
            _write_atomically(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")
        return lost

    def _write_board(self, row: Mapping[str, Any]) -> None:
        assert self._tensorboard_dir is not None
        if self._board is None:
            self._board = _open_tensorboard(self._tensorboard_dir, first_step=self._first_step)
        prefix = "/".join(str(part) for part in (f"stage{row.get('stage', 0)}", row.get("set", "")) if part)
        for key, value in row.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and key not in {"stage", "step", "global_step", "time"}:
                self._board.add_scalar(f"{prefix}/{key}", float(value), int(row.get("global_step", 0)))
        self._board.flush()

    def _give_up(self) -> None:
        """A text that could not be written would be tried again at the close, and fail again."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None

    def close(self) -> None:
        """Closes both outputs; may be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
