"""Weights of all three layouts, converted, give our I3D the features and logits of a plain one (spec 9)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.pretrained import Pretrained, load_pretrained, save_pretrained
from mmsada_hpc.model.weights.convert import as_ours, convert
from mmsada_hpc.model.weights.files import WeightsFile
from tests.model.plain_i3d import hassony2_state, piergiaj_state, plain_i3d
from tests.model.plain_weights import Params, random_params

SIZES = [(16, 224, 224), (8, 112, 112), (9, 97, 83)]
CHANNELS = {"rgb": 3, "flow": 2}


def clip(stream: str, size: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(size[1])
    return torch.rand(1, CHANNELS[stream], *size, generator=generator, dtype=torch.float64) * 2 - 1


def from_tf(params: Params, stream: str) -> Pretrained:
    prefix = {"rgb": "RGB", "flow": "Flow"}[stream]
    arrays = {f"{prefix}/inception_i3d/{name}": array for name, array in params.items()}
    return as_ours(WeightsFile(Path("model.ckpt"), "tf", arrays, sha256=""))


@torch.no_grad()
def check(given: Pretrained, params: Params, sizes: list[tuple[int, int, int]], folder: Path) -> None:
    """In fp64 and fp32, at every size; the plain network computes in fp64."""
    file, stream = folder / "weights.safetensors", given.stream
    save_pretrained(file, given)
    w, b = (given.tensors[f"logits.{part}"] for part in ("weight", "bias"))
    wants = [plain_i3d(params, clip(stream, size)) for size in sizes]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        network = I3d(CHANNELS[stream], GroupContext(group_size=1, test="mixture")).to(dtype).eval()
        load_pretrained(network, file, stream=stream)
        for size, (features, logits) in zip(sizes, wants, strict=True):
            got = network(clip(stream, size).to(dtype))
            assert got.shape == (1, 1024) and logits.shape == (1, 400)
            assert features.abs().mean() > 0.1, "else nothing would be compared"
            assert float((got - features).abs().max()) < tolerance, (stream, size, dtype)
            assert float((got @ w.to(dtype).T + b.to(dtype) - logits).abs().max()) < tolerance, (stream, size, dtype)


def test_tensorflow_weights_give_the_plain_networks_outputs(tmp_path: Path) -> None:
    params = random_params(3, gamma=False)
    check(from_tf(params, "rgb"), params, SIZES, tmp_path)


def test_flow_weights_do_too(tmp_path: Path) -> None:
    params = random_params(2, gamma=False)
    check(from_tf(params, "flow"), params, SIZES[1:], tmp_path)


def test_both_pytorch_layouts_with_a_scale_give_the_plain_networks_outputs(tmp_path: Path) -> None:
    params = random_params(3, gamma=True)
    gammas = np.concatenate([array for name, array in params.items() if name.endswith("gamma")])
    assert (gammas < 0).any() and (gammas == 0).any()
    torch.save(piergiaj_state(params), tmp_path / "piergiaj.pt")
    torch.save(hassony2_state(params), tmp_path / "hassony2.pth")
    given, other = (convert(tmp_path / name, tmp_path / "out.safetensors") for name in ("piergiaj.pt", "hassony2.pth"))
    assert given.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in given.tensors.items())
    check(given, params, SIZES, tmp_path)


@pytest.mark.parametrize("place", ["Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w", "Conv3d_1a_7x7/batch_norm/moving_mean"])
def test_a_changed_weight_changes_the_outputs(place: str) -> None:
    """The comparisons above can fail."""
    params = random_params(3, gamma=False)
    network = I3d(3, GroupContext(group_size=1, test="mixture")).double().eval()
    moved = params | {place: params[place] * 1.01}
    network.load_state_dict({n: t for n, t in from_tf(moved, "rgb").tensors.items() if not n.startswith("logits")})
    with torch.no_grad():
        features, _ = plain_i3d(params, clip("rgb", SIZES[1]))
        assert float((network(clip("rgb", SIZES[1])) - features).abs().max()) > 1e-6
