"""Fixtures that several packages share: small stores made by the real `prepare` from real encoded video, and the
shared data.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.store import Store

CHECKOUT = Path(__file__).resolve().parents[1]
TINY_CLASSES = ("across", "down", "still")


def write_video(
    path: Path,
    *,
    motion: tuple[float, float],
    seed: int,
    frames: int = 40,
    size: tuple[int, int] = (72, 96),
    fps: int = 30,
) -> None:
    """Encode `frames` of a textured square that moves `motion` (x, y) pixels a frame; the suffix chooses VP9 or
    MPEG-4.
    """
    height, width = size
    rng = np.random.Generator(np.random.PCG64(seed))
    ground = rng.integers(40, 120, (height, width, 3), dtype=np.uint8)
    texture = rng.integers(120, 255, (24, 24, 3), dtype=np.uint8).repeat(1, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        stream.options = {"deadline": "realtime", "cpu-used": "8"} if path.suffix == ".webm" else {}
        for i in range(frames):
            picture = ground.copy()
            x, y = int(8 + motion[0] * i) % (width - 24), int(8 + motion[1] * i) % (height - 24)
            picture[y : y + 24, x : x + 24] = texture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labels.csv and 32 clips: kitchens "east" and "west", 12 train and 4 test clips each, three
    classes.
    """
    folder = tmp_path_factory.mktemp("tiny_videos")
    motions = {"across": (1.5, 0.0), "down": (0.0, 1.5), "still": (0.0, 0.0)}
    lines = ["file,domain,split,class"]
    for d, (domain, suffix) in enumerate((("east", ".webm"), ("west", ".avi"))):
        for i in range(16):
            name = TINY_CLASSES[i % 3]
            file = f"{domain}/{name}_{i:02d}{suffix}"
            write_video(
                folder / file, motion=motions[name], seed=100 * d + i, size=(72 + 8 * (i % 2), 96 + 16 * (i % 3))
            )
            lines.append(f"{file},{domain},{'train' if i < 12 else 'test'},{name}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def _store(videos: Path, out: Path, rgb: str) -> Store:
    prepare(PrepareOptions(out, videos=videos, labels=videos / "labels.csv", size="64x80", rgb=rgb, workers=1))
    return Store.open(out)


@pytest.fixture(scope="session")
def tiny_store(tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`tiny_videos` as a store of 64x80 JPEG frames at 30 frames/s."""
    return _store(tiny_videos, tmp_path_factory.mktemp("tiny") / "store", "jpeg")


@pytest.fixture(scope="session")
def tiny_video_store(tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`tiny_videos` as a store whose RGB is short-GOP video."""
    return _store(tiny_videos, tmp_path_factory.mktemp("tiny_video") / "store", "video")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of third-party data for tests (not in the repository)."""
    folder = Path(os.environ.get("MMSADA_SHARED_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no third-party test data at {folder}; set MMSADA_SHARED_DATA to the folder that holds ut_interaction"
        )
    return folder
