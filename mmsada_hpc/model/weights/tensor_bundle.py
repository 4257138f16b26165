"""TensorFlow checkpoints (`NAME.index` and `NAME.data-00000-of-00001`) without TensorFlow (spec 9.1).

The index is a sorted table: under "" a header, under every tensor's name a protobuf with its type, shape, place and
checksum. The data are the tensors' bytes, little-endian.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.errors import UserError
from mmsada_hpc.model.weights.crc32c import masked_crc32c
from mmsada_hpc.model.weights.sstable import DamagedError, read_table, take, varint

# Numbers of tensorflow.DataType; what is not here is listed but cannot be read.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
Message = Mapping[int, list[int | bytes]]


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    dtype: str | None
    """NumPy's name; None for a type that is not read here."""
    shape: tuple[int, ...]
    offset: int
    size: int
    crc: int


class TensorBundle:
    """A checkpoint whose index was read; a tensor's bytes are read, and checked, when it is asked for."""

    def __init__(self, prefix: Path) -> None:
        """Args:
            prefix: the path without `.index`.

        Raises:
            UserError: a file is missing or damaged, or the checkpoint is of a kind that is not read; names the file.
        """
        self.prefix = prefix
        self.index_path = prefix.with_name(prefix.name + ".index")
        self.data_path = prefix.with_name(prefix.name + ".data-00000-of-00001")
        for path in (self.index_path, self.data_path):
            if not path.is_file():
                raise UserError(f"{path}: no such file; a TensorFlow checkpoint is {self._pair()} side by side")
        try:
            self.entries = dict(self._read_index(self.index_path.read_bytes()))
        except DamagedError as error:
            raise UserError(
                f"{self.index_path}: not a whole checkpoint index ({error}); copy it once more from its source"
            ) from None

    def read(self, name: str) -> NDArray[np.generic]:
        """One tensor.

        Raises:
            UserError: its bytes are not those that were written.
        """
        entry = self.entries[name]
        if entry.dtype is None:
            raise UserError(f"{self.index_path}: {name} is of a type that is not read here; weights are float32")
        with open(self.data_path, "rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        if len(raw) != entry.size or masked_crc32c(raw) != entry.crc:
            what = "ends too early for" if len(raw) != entry.size else "differs from its checksum at"
            raise UserError(f"{self.data_path}: {what} {name}; copy it once more from its source")
        return np.frombuffer(raw, entry.dtype).reshape(entry.shape).copy()

    def _pair(self) -> str:
        return f"{self.index_path.name} and {self.data_path.name}"

    def _read_index(self, data: bytes) -> Iterator[tuple[str, Entry]]:
        for key, value in read_table(data).items():
            message = _fields(value)
            if key:
                name = key.decode(errors="replace")
                yield name, self._entry(name, message)
            else:
                self._check_header(message)

    def _check_header(self, header: Message) -> None:
        shards, endianness = _number(header, 1), _number(header, 2)
        if shards != 1:
            raise UserError(f"{self.index_path}: its data lie in {shards} files, one is read here; save it once more")
        if endianness:
            raise UserError(f"{self.index_path}: was written on a big-endian machine, which is not read here")

    def _entry(self, name: str, message: Message) -> Entry:
        if 7 in message:
            raise UserError(f"{self.index_path}: {name} is a partitioned variable, which is not read here")
        shape = _bytes(message, 2)
        sizes = tuple(_number(_fields(d), 1) for d in _fields(shape).get(2, []) if isinstance(d, bytes))
        dtype = _DTYPES.get(_number(message, 1))
        offset, size = _number(message, 4), _number(message, 5)
        if dtype is not None and np.dtype(dtype).itemsize * int(np.prod(sizes, dtype=np.int64)) != size:
            raise DamagedError(f"{name} has {size} bytes for the shape {sizes}")
        return Entry(dtype, sizes, offset, size, _number(message, 6))


def _fields(data: bytes) -> Message:
    """A protobuf message as field number -> values: numbers, or the bytes of a string or message."""
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        field, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, at = varint(data, at)
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            value, at = int.from_bytes(take(data, at, width), "little"), at + width
        elif wire == 2:
            size, at = varint(data, at)
            value, at = take(data, at, size), at + size
        else:
            raise DamagedError(f"a message has an unknown field type ({wire})")
        found.setdefault(field, []).append(value)
    return found


def _number(message: Message, field: int) -> int:
    """The last value of a number field, 0 where it is left out."""
    value = message.get(field, [0])[-1]
    if isinstance(value, bytes):
        raise DamagedError(f"field {field} is not a number")
    return value


def _bytes(message: Message, field: int) -> bytes:
    value = message.get(field, [b""])[-1]
    if isinstance(value, int):
        raise DamagedError(f"field {field} is not a message")
    return value
