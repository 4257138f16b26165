"""Our file of one stream's I3D weights: safetensors with the names of `I3d`'s own state, and a classifier beside it.

`logits.weight` `(K, features)` and `logits.bias` (K = 400 for Kinetics) are kept for going back to other layouts; a run
starts from all but them (spec 1.1). Running statistics are there once per domain, equal for both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.i3d import I3d

FORMAT, VERSION = "mmsada-hpc i3d", "1"
LOGITS = ("logits.weight", "logits.bias")
_KEY = "i3d"  # where safetensors' own metadata keeps ours, as JSON
_STEM = "Conv3d_1a_7x7.conv3d.weight"
_CHANNELS = {"rgb": 3, "flow": 2}


@dataclass(frozen=True)
class Pretrained:
    """What a file of ours holds."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    """format, version, stream, source (its layout), source_file (its name), source_sha256, folded_gamma."""

    @property
    def stream(self) -> str:
        return self.metadata["stream"]

    def describe(self) -> str:
        """Stream, source and checksum in a few words."""
        return (
            f"{self.stream} from {self.metadata['source_file']} ({self.metadata['source']}, sha256 "
            f"{self.metadata['source_sha256'][:12]})"
        )


def save_pretrained(path: Path, content: Pretrained) -> None:
    """Write the file whole or not at all; the same content gives the same bytes.

    Raises:
        UserError: it could not be written.
    """
    metadata = json.dumps({**content.metadata, "format": FORMAT, "version": VERSION}, sort_keys=True)
    tensors = {name: tensor.contiguous() for name, tensor in content.tensors.items()}
    write_file(path, safetensors.torch.save(tensors, {_KEY: metadata}))  # one key: several come in random order


def write_file(path: Path, payload: bytes | memoryview) -> None:
    """`write_atomically`, with an error that names the file."""
    try:
        write_atomically(path, payload)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); choose another --out") from None


def read_metadata(header: Mapping[str, str] | None) -> dict[str, str]:
    """Our metadata inside those of a safetensors file; empty where it is not ours."""
    try:
        found = json.loads((header or {}).get(_KEY, "{}"))
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def open_pretrained(path: Path) -> Pretrained:
    """Read a file of ours.

    Raises:
        UserError: missing, damaged, or not such a file; says how to make one.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `mmsada weights convert` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = read_metadata(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); other formats go through `mmsada weights convert` first"
        ) from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not made by `mmsada weights convert`; convert it first")
    if metadata.get("version") != VERSION:
        raise UserError(
            f"{path}: version {metadata.get('version')} of the format, this release reads {VERSION}; convert the "
            f"source once more"
        )
    return Pretrained(tensors, metadata)


def check_pretrained(files: Mapping[str, Path], *, width: float) -> None:
    """Whether each stream's file fits a network of `width`, before there is one.

    Raises:
        UserError: as `load_pretrained`.
    """
    for stream, path in files.items():
        with torch.device("meta"):  # shapes without memory
            network = I3d(_CHANNELS[stream], GroupContext(group_size=1, test="mixture"), width=width)
        load_pretrained(network, path, stream=stream)


@torch.no_grad()
def load_pretrained(network: I3d, path: Path, *, stream: str) -> Pretrained:
    """Start `network` from a file, all but its classifier; both domains get the file's running statistics.

    Args:
        stream: rgb or flow, which the file must be of.

    Raises:
        UserError: no such file, another stream, or another width; names the key and the file.
    """
    found, key = open_pretrained(path), f"model.pretrained.{stream}"
    channels = found.tensors[_STEM].shape[1] if _STEM in found.tensors else 0
    if channels != _CHANNELS[stream]:
        raise UserError(
            f"{key}={path}: holds {found.stream} weights: {channels} channels go into its first convolution, "
            f"{_CHANNELS[stream]} are needed"
        )
    own = network.state_dict()
    given = {name: tensor for name, tensor in found.tensors.items() if name not in LOGITS}
    odd = sorted(own.keys() ^ given.keys())
    if odd:
        raise UserError(f"{key}={path}: {odd[0]} is {'missing' if odd[0] in own else 'not of I3D'}; convert it anew")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{key}={path}: is of another width: {name} has the shape {tuple(tensor.shape)}, model.width makes "
                f"{tuple(own[name].shape)}; Kinetics weights need model.width=1"
            )
    for name, tensor in given.items():
        own[name].copy_(tensor)
    return found
