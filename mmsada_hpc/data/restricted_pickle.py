"""Reading the pickled pandas tables of MM-SADA (spec 4.2) without pandas, and without running anything they name.

A pickle is a program: it may call whatever its globals name. Here the only globals are the eight names that those
tables use, and each of them gives an inert record that keeps its arguments and state. Not even NumPy's own names are
real: `ndarray.__setstate__` trusts its input too much to be fed a stranger's file.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from mmsada_hpc.errors import UserError

MAGIC = b"\x80"  # the PROTO opcode, first in every pickle of protocol 2 or later
_WHAT_TO_DO = "use the csv of the same table"


class _Sealed(type):
    """A pickle may set attributes of what it names; of these classes it may not."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets {name} of {cls.__name__}")


class _Record(metaclass=_Sealed):
    """What a global of the file stands for: keeps what it is called with and its state, and does nothing."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "_Record":
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: object) -> None:
        self.state = state


class _DataFrame(_Record):
    """State: a dict whose `_data` is the block manager."""


class _BlockManager(_Record):
    """State: a tuple whose last entry is `{"0.14.1": {"axes": [columns, rows], "blocks": [...]}}`."""


class _Index(_Record):
    """Made by `_new_Index(class, {"data": array, ...})`."""


class _Array(_Record):
    """State: version, shape, dtype, whether in Fortran order, and a list of objects or the raw bytes."""


class _DType(_Record):
    """Arguments: a code such as "i8" or "O8"; state: version, byte order, ..."""


class _Name(_Record):
    """A class that is only ever passed as an argument."""


_ALLOWED: dict[tuple[str, str], type[_Record]] = {
    ("pandas.core.frame", "DataFrame"): _DataFrame,
    ("pandas.core.internals.managers", "BlockManager"): _BlockManager,
    ("pandas.core.indexes.base", "_new_Index"): _Index,
    ("pandas.core.indexes.base", "Index"): _Name,
    ("pandas.core.indexes.range", "RangeIndex"): _Name,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _DType,
}


class _Unpickler(pickle._Unpickler):
    """Python's own, not the one in C: there a flipped byte in a memo index asks for gigabytes."""

    def __init__(self, payload: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(payload))
        self._path = path

    def find_class(self, module: str, name: str) -> type[_Record]:
        """The stand-in of an allowed name; nothing is ever imported or looked up by attribute."""
        stand_in = _ALLOWED.get((module, name))
        if stand_in is None:
            raise UserError(
                f"{self._path}: refused: it names {module}.{name}, which no MM-SADA table does (a pickle can run any "
                f"program; nothing was run); {_WHAT_TO_DO}"
            )
        return stand_in


def read_frame(path: Path) -> dict[str, list[Any]]:
    """The columns of a pickled table, in file order, as lists of str and int.

    UserError naming the file when it is cut off or malformed, is no such table, or names anything outside the
    allow-list; nothing it names is ever run.
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        frame = _Unpickler(payload, path).load()
    except UserError:
        raise
    except Exception as error:  # Python documents no closed list of what a malformed pickle raises
        raise UserError(f"{path}: a damaged or cut off pickle ({_reason(error)}); copy it again") from error
    try:
        return _columns(frame)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a pickle, but not a table as MM-SADA's ({_reason(error)}); {_WHAT_TO_DO}") from error


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _columns(frame: Any) -> dict[str, list[Any]]:
    manager = _state(_state(frame, _DataFrame)["_data"], _BlockManager)[-1]["0.14.1"]
    if not isinstance(manager["axes"][0], _Index):
        raise TypeError(f"its columns are a {type(manager['axes'][0]).__name__}")
    (names,) = _lines(manager["axes"][0].args[1]["data"])
    columns: dict[str, list[Any]] = {}
    for block in manager["blocks"]:
        (places,) = _lines(block["mgr_locs"])
        for place, line in zip(places, _lines(block["values"]), strict=True):
            columns[names[place]] = line
    if len({len(line) for line in columns.values()}) > 1 or len(columns) != len(names):
        raise ValueError("its columns have different lengths, or some are absent")
    return {name: columns[name] for name in names}


def _state(record: Any, kind: type[_Record]) -> Any:
    if not isinstance(record, kind):
        raise TypeError(f"{type(record).__name__} where a {kind.__name__.strip('_')} should be")
    return record.state


def _lines(array: Any) -> list[list[Any]]:
    """The rows of a pickled array of one or two axes; one row for one axis."""
    _, shape, dtype, fortran, payload = _state(array, _Array)
    rows, length = (1, *shape) if len(shape) == 1 else shape
    if min(rows, length) < 1:
        raise ValueError(f"an array of {rows} x {length}")
    if isinstance(payload, list):  # objects; a list is in row order whatever the array's
        if len(payload) != rows * length or not all(isinstance(value, str | int) for value in payload):
            raise ValueError(f"{len(payload)} values for {rows} x {length}, or one that is neither text nor a number")
        return [payload[i * length : (i + 1) * length] for i in range(rows)]
    flat = np.frombuffer(payload, _numbers(dtype))
    lines: list[list[Any]] = flat.reshape((rows, length), order="F" if fortran else "C").tolist()
    return lines


def _numbers(dtype: Any) -> str:
    """The NumPy code of a pickled dtype; ValueError for anything but whole numbers."""
    state, code = _state(dtype, _DType), dtype.args[0]
    if not (isinstance(code, str) and re.fullmatch(r"[iu][1248]", code) and state[1] in ("<", ">", "|")):
        raise ValueError(f"a column of type {code!r}, where text or whole numbers should be")
    return f"{state[1]}{code}"
