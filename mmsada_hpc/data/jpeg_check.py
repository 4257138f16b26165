"""Whether one JPEG file is what a store wants: whole, of the right size and colours, and decodable to the end."""

import av

from mmsada_hpc.data.jpeg import JpegHeader, read_header
from mmsada_hpc.data.problems import SIZE, TRUNCATED, UNREADABLE

# libjpeg fills what it cannot read with grey and goes on; FFmpeg, told to, refuses.
_STRICT = {"err_detect": "explode+crccheck+bitstream+buffer"}
Fault = tuple[str, str]


def find_fault(payload: bytes, *, size: tuple[int, int] | None, components: int) -> Fault | None:
    """(kind, what) of the first thing wrong with a JPEG, decoded in full; None when nothing is.

    Args:
        size: wanted height and width in pixels; None = any.
        components: 3 for RGB, 1 for flow.
    """
    if not payload:
        return TRUNCATED, "an empty file"
    try:
        header = read_header(payload)
    except ValueError as error:
        return (TRUNCATED if payload[:2] == b"\xff\xd8" else UNREADABLE), str(error)
    if header.components != components:
        return UNREADABLE, f"{header.components} colour components, should be {components}"
    if size is not None and (header.height, header.width) != size:
        return SIZE, f"{header.height}x{header.width}, should be {size[0]}x{size[1]}"
    return _decode_fault(payload, header)


def _decode_fault(payload: bytes, header: JpegHeader) -> Fault | None:
    decoder = av.VideoCodecContext.create("mjpeg", "r")
    decoder.options, decoder.thread_count = dict(_STRICT), 1
    try:
        frames = decoder.decode(av.Packet(payload)) + decoder.decode(None)
    except (av.FFmpegError, ValueError, IndexError):
        frames = []
    if len(frames) != 1 or (frames[0].height, frames[0].width) != (header.height, header.width):
        return UNREADABLE, "its image data is corrupt"
    return None
