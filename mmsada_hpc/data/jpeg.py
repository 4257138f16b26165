"""Reading a JPEG's header, without decoding: size, number of components, and whether the file ends where it should."""

from dataclasses import dataclass

_START, _END = b"\xff\xd8", b"\xff\xd9"
# Start-of-frame markers: C0-CF without C4 (Huffman tables), C8 (reserved) and CC (arithmetic tables). ITU-T T.81,
# table B.1.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class JpegHeader:
    """Size in pixels and number of components (1 grey, 3 colour)."""

    height: int
    width: int
    components: int


def read_header(payload: bytes) -> JpegHeader:
    """The header of a whole JPEG file; ValueError saying what is wrong when it is none, or was cut off."""
    if payload[:2] != _START:
        raise ValueError("not a JPEG file")
    if _END not in payload[-64:]:
        raise ValueError("a JPEG that was cut off (no end marker)")
    place = 2
    while place + 9 < len(payload) and payload[place] == 0xFF:
        marker = payload[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = (
                int.from_bytes(payload[place + 5 : place + 7], "big"),
                int.from_bytes(payload[place + 7 : place + 9], "big"),
            )
            return JpegHeader(height, width, payload[place + 9])
        place += 2 + int.from_bytes(payload[place + 2 : place + 4], "big")
    raise ValueError("a JPEG without a frame header")
