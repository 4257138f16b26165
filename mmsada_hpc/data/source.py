"""What a packer needs of one input video, whatever it is made of: a look at it before, and its frames."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.shards import ShardWriter
from mmsada_hpc.errors import UserError


class BadVideo(UserError):
    """An input video that cannot be used; an error of the whole run unless --skip-bad is given."""


@dataclass(frozen=True)
class Survey:
    """A first look at a video: what it is (`identity` changes when the input does), about how large it will be, or
    why it cannot be used.
    """

    identity: str = ""
    frames: int = 0
    estimated_bytes: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    problem: str = ""


@dataclass(frozen=True)
class PackedVideo:
    """One video as it lies in a shard: index rows per stream, first frame numbers, and what it measured."""

    name: str
    height: int
    width: int
    fps: float
    frames: int
    rgb_first: int
    flow_first: int
    rgb_rows: NDArray[np.void] = field(repr=False)
    flow_rows: NDArray[np.void] = field(repr=False)


@dataclass(frozen=True)
class Shards:
    """The two shards a video is packed into, and a function to call with the number of frames just done."""

    rgb: ShardWriter
    flow: ShardWriter
    advance: Callable[[int], None]


class Source(Protocol):
    """One input video. Picklable; both methods run in worker processes and raise BadVideo naming the input that is at
    fault.
    """

    @property
    def name(self) -> str:
        """Name in the store, also the folder inside the shards."""

    def survey(self) -> Survey:
        """Look without decoding; a problem is returned, not raised."""

    def pack(self, shards: Shards) -> PackedVideo:
        """Write every frame into the shards."""
