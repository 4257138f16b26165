"""A file of weights, whatever its format, as names -> NumPy arrays. The format is found by looking inside."""

import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmsada_hpc.errors import UserError
from mmsada_hpc.model.pretrained import read_metadata
from mmsada_hpc.model.weights.layouts import find_layout
from mmsada_hpc.model.weights.names import Array
from mmsada_hpc.model.weights.tensor_bundle import TensorBundle

_TF_ENDS = (".index", ".data-00000-of-00001")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class WeightsFile:
    """All that a file holds."""

    path: Path
    layout: str
    """tf, piergiaj, hassony2 or ours."""
    arrays: Mapping[str, Array]
    sha256: str
    """Of the file; of index and data, in this order, where it is a TensorFlow checkpoint."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weights(path: Path) -> WeightsFile:
    """Read a TensorFlow checkpoint (its prefix or one of its files), a PyTorch or a safetensors file.

    Raises:
        UserError: missing, damaged, of no known format or layout.
    """
    prefix = path
    for end in _TF_ENDS:
        if path.name.endswith(end):
            prefix = path.with_name(path.name.removesuffix(end))
    if prefix != path or (not path.is_file() and path.with_name(path.name + ".index").is_file()):
        return _read_tf(prefix)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file (nor {path.name}.index, as a TensorFlow checkpoint of this name would have)"
        )
    data = path.read_bytes()
    metadata: dict[str, str] = {}
    if data[:4] == _ZIP or data[:1] == _PICKLE:
        arrays = dict(_read_torch(path, data))
    elif data[8:9] == b"{":
        arrays, metadata = _read_safetensors(path)
    else:
        raise UserError(
            f"{path}: neither a PyTorch nor a safetensors file; for a TensorFlow checkpoint give its name without "
            f".index or .data-00000-of-00001"
        )
    return WeightsFile(path, find_layout(arrays, where=str(path)), arrays, hashlib.sha256(data).hexdigest(), metadata)


def _read_tf(prefix: Path) -> WeightsFile:
    bundle = TensorBundle(prefix)
    arrays: dict[str, Array] = {n: bundle.read(n) for n, e in bundle.entries.items() if e.dtype in ("<f4", "<f8")}  # type: ignore[misc]
    digest = hashlib.sha256(bundle.index_path.read_bytes() + bundle.data_path.read_bytes()).hexdigest()
    return WeightsFile(prefix, find_layout(arrays, where=str(prefix)), arrays, digest)


def _read_torch(path: Path, data: bytes) -> Iterator[tuple[str, Array]]:
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors, and unpickling that could run code; save its state dict alone "
            f"(torch.save(model.state_dict(), ...)) and convert that"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole PyTorch file ({' '.join(str(error).split())[:120]})") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path}: holds no state dict (names -> tensors); save model.state_dict() and convert that")
    for name, tensor in loaded.items():
        yield name.removeprefix("module."), _array(tensor)


def _read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {n: _array(file.get_tensor(n)) for n in file.keys()}, read_metadata(file.metadata())  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def _array(tensor: Tensor) -> Array:
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    array: Array = wide.detach().numpy()
    return array
