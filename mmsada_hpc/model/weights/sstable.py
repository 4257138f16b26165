"""The sorted table that is the `.index` file of a TensorFlow checkpoint: LevelDB's format, blocks plain or by Snappy.

A block is a run of entries whose keys leave out what they share with the key before, a list of restart points, one
byte for the compression and a masked CRC-32C. The last 48 bytes of the file point at the block of blocks.
"""

from collections.abc import Iterator

from mmsada_hpc.model.weights.crc32c import masked_crc32c

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER, _TRAILER = 48, 5


class DamagedError(ValueError):
    """The bytes are not what their format says."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The little-endian base-128 number at `at`, and where the next thing starts."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DamagedError("a number runs past its end")
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def take(data: bytes, at: int, size: int) -> bytes:
    """`size` bytes from `at`, all of them there."""
    if at < 0 or at + size > len(data):
        raise DamagedError(f"ends at byte {len(data)}, {at + size} are needed")
    return data[at : at + size]


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Every key with its value.

    Raises:
        DamagedError: no such table, cut short, or a checksum differs.
    """
    if data[-len(MAGIC) :] != MAGIC or len(data) < _FOOTER:
        raise DamagedError("does not end as a table does")
    footer = data[-_FOOTER:]
    _, at = varint(footer, 0)  # the block of statistics, which is not needed
    _, at = varint(footer, at)
    found: dict[bytes, bytes] = {}
    for _, handle in _entries(_block(data, footer[at:])):
        found.update(_entries(_block(data, handle)))
    return found


def _block(data: bytes, handle: bytes) -> bytes:
    """The contents of the block that a handle (offset, size) points at, checked and decompressed."""
    offset, at = varint(handle, 0)
    size, _ = varint(handle, at)
    stored = take(data, offset, size + _TRAILER)
    if masked_crc32c(stored[:-4]) != int.from_bytes(stored[-4:], "little"):
        raise DamagedError(f"the checksum of its block at byte {offset} differs")
    kind = stored[size]
    if kind not in (0, 1):
        raise DamagedError(f"its block at byte {offset} is compressed in an unknown way ({kind})")
    return uncompress_snappy(stored[:size]) if kind else stored[:size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(take(block, len(block) - 4, 4), "little")
    end, at, key = len(block) - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = varint(block, at)
        added, at = varint(block, at)
        size, at = varint(block, at)
        key = take(key, 0, shared) + take(block, at, added)
        yield key, take(block, at + added, size)
        at += added + size


def uncompress_snappy(data: bytes) -> bytes:
    """Snappy's raw format: the length, then literals and copies of what was written before."""
    length, at = varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        kind, size = tag & 3, (tag >> 2) + 1
        if kind == 0:
            if size > 60:
                extra = size - 60
                size, at = int.from_bytes(take(data, at, extra), "little") + 1, at + extra
            out += take(data, at, size)
            at += size
            continue
        width = (0, 1, 2, 4)[kind]
        offset, at = int.from_bytes(take(data, at, width), "little"), at + width
        if kind == 1:
            offset, size = offset | (tag >> 5) << 8, (tag >> 2 & 7) + 4
        if not 0 < offset <= len(out):
            raise DamagedError("a compressed block copies from before its start")
        for _ in range(size):  # byte by byte: a copy may read what it writes
            out.append(out[-offset])
    if len(out) != length:
        raise DamagedError(f"a compressed block holds {len(out)} bytes in place of {length}")
    return bytes(out)
