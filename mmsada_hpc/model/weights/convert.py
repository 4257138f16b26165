"""From any layout to ours and back: `mmsada weights convert`, `mmsada weights show`."""

import argparse
import io
from pathlib import Path

import numpy as np
import torch

from mmsada_hpc.errors import UserError
from mmsada_hpc.model.pretrained import Pretrained, save_pretrained, write_file
from mmsada_hpc.model.weights.files import WeightsFile, read_weights
from mmsada_hpc.model.weights.fold import without_gamma
from mmsada_hpc.model.weights.layouts import LAYOUTS, read_layout, write_layout

_TITLES = {
    "tf": "DeepMind TensorFlow checkpoint",
    "piergiaj": "PyTorch, piergiaj's layout",
    "hassony2": "PyTorch, hassony2's layout",
    "ours": "ours",
}


def convert(source: Path, out: Path, *, to: str = "ours", stream: str | None = None) -> Pretrained:
    """Read `source`, write `out` in the layout `to`, and return what our file holds of it.

    Args:
        stream: rgb or flow; needed for a checkpoint of both, otherwise checked.

    Raises:
        UserError: as `read_weights` and `read_layout`; or `out` could not be written.
    """
    content = as_ours(read_weights(source), stream=stream)
    if to == "ours":
        save_pretrained(out, content)
        return content
    ours = {name: tensor.numpy() for name, tensor in content.tensors.items()}
    arrays, _ = read_layout("ours", ours, where=str(source))
    written = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in write_layout(to, arrays).items()}
    buffer = io.BytesIO()
    torch.save(written, buffer)
    write_file(out, buffer.getbuffer())
    return content


def as_ours(file: WeightsFile, *, stream: str | None = None) -> Pretrained:
    """The tensors of our layout, in the precision of the file; a scale of the batch norms is folded away."""
    arrays, found = read_layout(file.layout, file.arrays, where=str(file.path), stream=stream)
    scaled = [name for name, gamma in arrays.gamma.items() if not np.all(gamma == 1)]
    tensors = write_layout("ours", without_gamma(arrays))
    metadata = {
        "stream": found,
        "source": _TITLES[file.layout],
        "source_file": file.path.name,
        "source_sha256": file.sha256,
        "folded_gamma": str(len(scaled)),
    }
    if file.layout == "ours":
        metadata |= file.metadata
    return Pretrained({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in tensors.items()}, metadata)


def describe(file: WeightsFile) -> str:
    """Layout, stream and checksum, then one line per tensor."""
    values = sum(array.size for array in file.arrays.values())
    lines = [
        f"{file.path}",
        f"  layout      {_TITLES[file.layout]}",
        f"  tensors     {len(file.arrays)} with {values:,} values",
        f"  sha256      {file.sha256}",
        f"  {_understood(file)}",
    ]
    lines += [f"  {key:<13} {value}" for key, value in sorted(file.metadata.items())]
    width = max(map(len, file.arrays))
    return "\n".join([*lines, *(f"    {n:<{width}}  {a.dtype}  {a.shape}" for n, a in sorted(file.arrays.items()))])


def _understood(file: WeightsFile) -> str:
    try:
        arrays, stream = read_layout(file.layout, file.arrays, where=str(file.path))
    except UserError as error:
        return f"cannot be converted as it is: {str(error).removeprefix(f'{file.path}: ')}"
    return f"I3D         {stream}, {arrays.logits_w.shape[1]} features, {arrays.logits_b.size} classes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada weights`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    convert_parser = actions.add_parser("convert", help="to our file, or from any layout to a PyTorch one")
    convert_parser.add_argument(
        "source", type=Path, metavar="IN", help="TensorFlow checkpoint (name without .index), .pt, .pth or .safetensors"
    )
    convert_parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="file to write")
    convert_parser.add_argument("--stream", choices=("rgb", "flow"), help="which; needed where IN holds both")
    convert_parser.add_argument(
        "--to",
        choices=[title for title in LAYOUTS if title != "tf"],
        default="ours",
        help="layout of OUT (default %(default)s)",
    )
    show_parser = actions.add_parser("show", help="what a file of weights holds")
    show_parser.add_argument("source", type=Path, metavar="FILE", help="as IN of `mmsada weights convert`")


def run(args: argparse.Namespace) -> int:
    """Convert or show."""
    if args.action == "show":
        print(describe(read_weights(args.source)))
        return 0
    content = convert(args.source, args.out, to=args.to, stream=args.stream)
    print(f"{args.out}: {content.describe()}, {len(content.tensors)} tensors")
    if content.metadata["folded_gamma"] != "0":
        print(f"  the scale of {content.metadata['folded_gamma']} batch norms was folded (docs/weights.md)")
    return 0
