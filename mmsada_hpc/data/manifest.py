"""The manifest of a store: what `store.json` says, typed, and written so that it exists whole or not at all."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmsada_hpc.errors import UserError

MANIFEST = "store.json"
VERSION = 1
Stream = Literal["rgb", "flow"]
STREAMS: tuple[Stream, Stream] = ("rgb", "flow")


@dataclass(frozen=True)
class FlowConvention:
    """Flow file t is the motion from RGB frame stride*t to stride*(t+dilation), in pixels clipped to +-bound (spec
    4.3).
    """

    method: str
    bound: float = 25.0
    stride: int = 2
    dilation: int = 3

    def count(self, rgb_frames: int) -> int:
        """Number of flow files that `rgb_frames` frames (numbered from 1) allow."""
        return max(0, rgb_frames // self.stride - self.dilation)

    def last_frame(self, flow_files: int) -> int:
        """Last RGB frame n whose flow file n // stride exists."""
        return self.stride * (flow_files + 1) - 1


@dataclass(frozen=True)
class FileEntry:
    """One file of the store; `stream` is "rgb" or "flow" for a shard and "" for a table or index."""

    file: str
    bytes: int
    sha256: str
    stream: str = ""


@dataclass(frozen=True)
class StoreManifest:
    """Everything `store.json` holds. `fps` is the rate of the RGB frame numbers; `height` and `width` hold for every
    stored frame.
    """

    kind: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    fps: float
    height: int
    width: int
    rgb_form: str
    flow: FlowConvention
    shards: tuple[FileEntry, ...]
    tables: tuple[FileEntry, ...]
    frames: dict[str, int]
    skipped: tuple[dict[str, str], ...] = ()
    command: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """The text of `store.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def read_manifest(folder: Path) -> StoreManifest:
    """Read `folder`/store.json; UserError when it is absent, not JSON, of another version, or incomplete."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: not a store (no {MANIFEST}); build one with `mmsada prepare ... --out {folder}`")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("version") != VERSION:
            raise UserError(
                f"{path}: store version {raw.get('version')}, this program reads version {VERSION}; prepare it "
                f"again with --force"
            )
        return _from_dict(raw)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged manifest ({type(error).__name__}: {error}); prepare the store again with --force"
        ) from error


def _from_dict(raw: dict[str, Any]) -> StoreManifest:
    values = dict(raw)
    values["classes"], values["domains"] = tuple(raw["classes"]), tuple(raw["domains"])
    values["flow"] = FlowConvention(**raw["flow"])
    values["shards"] = tuple(FileEntry(**entry) for entry in raw["shards"])
    values["tables"] = tuple(FileEntry(**entry) for entry in raw["tables"])
    values["skipped"] = tuple(raw["skipped"])
    return StoreManifest(**values)
