"""CRC-32C (Castagnoli) of large buffers in NumPy, and the masked form that TensorFlow stores (spec 9.1).

A buffer is cut into lanes of equal length that go through the table side by side; their sums are then joined by the
linear map "append so many zero bytes".
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # bits reversed
_MASK_DELTA = 0xA282EAD8
_LANES = 2048
Words = NDArray[np.uint32]


@cache
def _table() -> Words:
    value: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        value = ((value >> 1) ^ (value & 1) * _POLYNOMIAL).astype(np.uint32)
    return value


def _advance(crc: Words, bytes_LN: NDArray[np.uint8]) -> Words:
    """The raw register of every lane after its bytes, `bytes_LN[lane, position]`."""
    table = _table()
    for column in np.ascontiguousarray(bytes_LN.T):
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return crc


@cache
def _append_zeros(count: int) -> tuple[int, ...]:
    """Where each of the 32 bits of a register goes when `count` zero bytes follow."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if count <= 64:
        return tuple(_advance(bits, np.zeros((32, count), np.uint8)).tolist())
    half, rest = _append_zeros(count // 2), _append_zeros(count - count // 2)
    return tuple(_apply(rest, column) for column in half)


def _apply(matrix: tuple[int, ...], register: int) -> int:
    found = 0
    for bit, column in enumerate(matrix):
        if register >> bit & 1:
            found ^= column
    return found


def crc32c(data: bytes | memoryview) -> int:
    """The plain checksum of `data`; `crc32c(b"123456789")` is 0xE3069283."""
    values = np.frombuffer(data, np.uint8)
    lane = len(values) // _LANES
    register = 0xFFFFFFFF
    if lane:
        sums = _advance(np.zeros(_LANES, np.uint32), values[: lane * _LANES].reshape(_LANES, lane))
        matrix = _append_zeros(lane)
        for part in sums.tolist():
            register = _apply(matrix, register) ^ part
    rest = values[lane * _LANES :].reshape(1, -1)
    return int(_advance(np.array([register], np.uint32), rest)[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TensorFlow stores it: rotated by 15 bits and shifted by a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
