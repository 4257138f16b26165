"""The forward and backward written by hand, and the folded form at test, against the modules they stand for."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmsada_hpc.model.batch_norm import GroupBatchNorm, GroupContext
from mmsada_hpc.model.convolution import convolve, convolve_backward
from mmsada_hpc.model.fused import Pool
from mmsada_hpc.model.i3d import I3d, Mixed, SameMaxPool3d, Unit3d
from mmsada_kernels import cpu

compiled = pytest.mark.skipif(cpu.level() == "reference", reason="the compiled operators are not built here")


@dataclass(frozen=True)
class Outcome:
    """Of one forward and backward in training."""

    features: Tensor
    statistics: Tensor
    """What the batch-norm layers recorded."""
    gradients: dict[str, Tensor]
    """Of the parameters and of the input."""


def network(*, width: float = 0.125, group_size: int = 2) -> I3d:
    torch.manual_seed(0)
    found = I3d(3, GroupContext(group_size=group_size, test="mixture"), width=width)
    for name, parameter in found.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return found


def clips(*shape: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(shape[0], 3, *shape[1:], generator=rng, dtype=torch.float64) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last_3d)


def train(model: I3d, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Outcome:
    model.zero_grad()
    x = x.detach().to(next(model.parameters()).dtype).requires_grad_()
    layers = [m for m in model.modules() if isinstance(m, GroupBatchNorm)]
    groups = len(x) // model.Conv3d_1a_7x7.bn.context.group_size
    with layers[0].context.recorded([index % 2 for index in range(groups)]):
        features = (forward or model)(x)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (features.double() * weights).sum().backward()
    assert x.grad is not None
    statistics = torch.cat([layer.sum_DSC.flatten() for layer in layers]).double()
    for layer in layers:
        layer.sum_DSC.zero_()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return Outcome(features.detach().double(), statistics, {**gradients, "clips": x.grad.double()})


def distance(found: Tensor, wanted: Tensor, *, least: float = 1e-6) -> float:
    """Relative, but for norms below `least`, of which only rounding is left."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(least))


@pytest.mark.parametrize(
    ("shape", "group_size"), [((4, 8, 32, 32), 2), ((2, 16, 33, 41), 1), ((2, 7, 30, 47), 2), ((1, 16, 64, 64), 1)]
)
def test_by_hand_gives_what_the_modules_and_autograd_give(shape: tuple[int, ...], group_size: int) -> None:
    """In fp64, where only the order of sums is left to differ."""
    model = network(group_size=group_size).double()
    wanted = train(model, clips(*shape))
    found = train(model, clips(*shape), lambda x: model._train_fused(x, torch.float64).mean(dim=(2, 3, 4)))
    assert distance(found.features, wanted.features) < 1e-9
    assert distance(found.statistics, wanted.statistics) < 1e-9
    assert found.gradients.keys() == wanted.gradients.keys()
    for name, gradient in wanted.gradients.items():
        assert distance(found.gradients[name], gradient, least=1e-3) < 1e-7, name


LAYERS: dict[str, Callable[[GroupContext], Unit3d | Mixed]] = {
    "stem": lambda context: Unit3d(3, 16, context, kernel=7, stride=2),
    "1x1x1": lambda context: Unit3d(3, 24, context),
    "3x3x3": lambda context: Unit3d(3, 20, context, kernel=3),
    "block": lambda context: Mixed(3, (16, 12, 24, 4, 8, 20), context),
}


@compiled
@pytest.mark.parametrize("pool", [None, Pool((1, 3, 3), (1, 2, 2)), Pool((3, 3, 3), (2, 2, 2))])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_is_as_near_to_the_exact_one_as_its_modules(
    dtype: torch.dtype, name: str, pool: Pool | None
) -> None:
    """Output, gradients of the input and of every parameter, each for itself; fp64 on the same rounded values."""
    torch.manual_seed(3)
    layer = LAYERS[name](GroupContext(group_size=2, test="mixture"))
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    x = clips(4, 5, 12, 14).to(dtype)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)

    def by_modules(layer: Unit3d | Mixed, x: Tensor) -> Tensor:
        y = layer(x)
        return SameMaxPool3d(*pool)(y) if pool else y

    def outcome(layer: Unit3d | Mixed, x: Tensor, forward: Callable[[Unit3d | Mixed, Tensor], Tensor]) -> list[Tensor]:
        x = x.detach().requires_grad_()
        y = forward(layer, x)
        gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        found = torch.autograd.grad(y, [x, *layer.parameters()], gy.to(dtype).to(y.dtype))
        return [y.detach().double(), *(g.double() for g in found)]

    exact = outcome(copy.deepcopy(layer).double(), x.double(), by_modules)
    with autocast:
        modules = outcome(layer, x, by_modules)
        by_hand = outcome(layer, x, lambda layer, x: layer.train_fused(x, dtype, pool))
    for found, other, wanted in zip(by_hand, modules, exact, strict=True):
        assert distance(found, wanted) < 1.5 * distance(other, wanted) + 64 * torch.finfo(torch.float32).eps


@compiled
@pytest.mark.parametrize("bf16", [False, True])
def test_the_compiled_network_is_as_near_to_the_exact_one_as_the_modules(bf16: bool) -> None:
    """Features and statistics of every batch. (Random weights amplify rounding, so the modules are the measure.)"""
    exact_model = network(width=0.25, group_size=4).double()
    for seed in range(3):
        x = clips(8, 8, 48, 48, seed=seed)
        exact = train(exact_model, x)
        outcomes = {}
        for fuses in (False, True):
            model = network(width=0.25, group_size=4)
            model.fuses = fuses
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outcomes[fuses] = train(model, x)
        for part in ("features", "statistics"):
            by_hand, modules = (distance(getattr(outcomes[f], part), getattr(exact, part)) for f in (True, False))
            assert by_hand < 2 * modules, (seed, part)


@compiled
def test_a_second_derivative_is_refused() -> None:
    model = network()
    x = clips(2, 8, 32, 32).float().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.square().sum().backward()


@compiled
@pytest.mark.parametrize("fuses", [False, True])
def test_clips_that_are_not_whole_groups_are_refused(fuses: bool) -> None:
    model = network(group_size=4)
    model.fuses = fuses
    with pytest.raises(AssertionError, match="5 clips are not whole groups of 4"):
        model(clips(5, 8, 32, 32).float())


@pytest.mark.parametrize("nan", [torch.nan, -torch.nan])
@pytest.mark.parametrize("trains", [False, True])
def test_a_nan_in_a_clip_reaches_its_features(nan: float, trains: bool) -> None:
    model = network(group_size=1).train(trains)
    x = clips(2, 8, 32, 32).float()
    x[1, 0, 3, 10, 10] = nan
    with torch.no_grad():
        features = model(x)
    assert features[1].isnan().all()
    assert not features[0].isnan().any()


@compiled
def test_training_takes_it_and_keeps_bf16_between_layers() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(clips(2, 8, 32, 32).float())
    assert features.dtype == torch.bfloat16
    assert features.grad_fn is not None
    nodes, seen = [features.grad_fn], set()
    while nodes:
        node = nodes.pop()
        seen.add(type(node).__name__)
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    assert {"UnitFunctionBackward", "MixedFunctionBackward"} <= seen
    assert not any("Convolution" in name for name in seen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_test_the_folded_form_gives_what_the_modules_give(dtype: torch.dtype) -> None:
    model = network(width=0.25).double()
    for layer in model.modules():
        if isinstance(layer, GroupBatchNorm):
            layer.running_mean_DC.normal_(std=0.2)
            layer.running_var_DC.uniform_(0.2, 2)
            layer.groups_D.copy_(torch.tensor([1.0, 3.0]))
    model = model.to(dtype).eval()
    x = clips(2, 16, 64, 64).to(dtype)
    with torch.no_grad():
        folded = model(x)
        model.fuses = False
        wanted = model(x)
    assert distance(folded.double(), wanted.double()) < (1e-10 if dtype == torch.float64 else 1e-4)
    assert not torch.equal(folded, wanted), "the folded form was taken"


def test_at_test_with_gradients_the_modules_are_taken() -> None:
    x = clips(1, 8, 32, 32).requires_grad_()
    network().double().eval()(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 2, 3, 3), (3, 8, 1, 1, 1), (20, 8, 4, 5, 5)])
def test_convolutions_of_a_few_clips_on_one_thread_stay_ndhwc(kernel: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(12, 8, *(kernel,) * 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stride, padding = (1, 1, 1), (kernel // 2,) * 3
        y = convolve(x, weight, stride=stride, padding=padding)
        gx, gw = convolve_backward(torch.ones_like(y), x, weight, stride=stride, padding=padding)
    finally:
        torch.set_num_threads(threads)
    x, weight = x.detach().double().requires_grad_(), weight.double().requires_grad_()
    wanted = torch.nn.functional.conv3d(x, weight, padding=kernel // 2)
    wanted.sum().backward()
    assert gx is not None and x.grad is not None and weight.grad is not None
    for found, exact in ((y, wanted.detach()), (gx, x.grad), (gw, weight.grad)):
        assert distance(found.double(), exact) < 1e-5
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert gx.is_contiguous(memory_format=torch.channels_last_3d)
