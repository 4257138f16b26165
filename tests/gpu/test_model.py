"""The two-stream network on a GPU: what the CPU computes, in NDHWC throughout, and the same under every switch."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.streams import MultiStream, use_ndhwc_weights

Result = dict[str, Tensor]
SWITCHES = {
    "graphs": {"graphs": True},
    "side by side": {"side_by_side": True},
    "graphs side by side": {"graphs": True, "side_by_side": True},
}
UPDATES = (((0, 1), (0, 1)), ((0, 0), (1, 1)), ((0, 1), (0, 1)))
"""Domains of the groups of each micro-batch, of three updates of two micro-batches."""


def network(*, fuses: bool = True, device: str = "cuda", width: float = 0.25) -> MultiStream:
    torch.manual_seed(0)
    model = MultiStream(width=width, group_size=2, test_statistics="mixture").to(device).train()
    for stream in model.streams.values():
        assert isinstance(stream, I3d)
        stream.fuses = fuses
    use_ndhwc_weights(model)
    return model


def clips(seed: int, *, device: str = "cuda", number: int = 4) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"rgb": (number, 8, 64, 64, 3), "flow": (number, 8, 64, 64, 2)}
    return {name: (torch.rand(shape, generator=rng) * 2 - 1).to(device) for name, shape in shapes.items()}


def passed(model: MultiStream, batch: Mapping[str, Tensor], domains: tuple[int, ...] = (0, 1)) -> Result:
    """Features of a forward; its backward adds to the gradients."""
    features = model(batch, domains)
    torch.stack([x.float().square().sum() for x in features.values()]).sum().backward()
    return {name: x.detach().clone() for name, x in features.items()}


def state(model: MultiStream) -> Result:
    """Gradients and sums of statistics."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: b for name, b in model.named_buffers() if name.endswith("sum_DSC")}


def same(found: Result, wanted: Result, *, within: float) -> None:
    """Each to a share of its norm."""
    assert found.keys() == wanted.keys() and found
    off = {n: ((found[n].cpu() - w.cpu()).norm() / w.cpu().norm().clamp(min=1e-6)).item() for n, w in wanted.items()}
    wrong = {name: f"{value:.1e}" for name, value in off.items() if not value <= within}
    assert not wrong, f"departs: {wrong}"


@pytest.mark.usefixtures("exact_fp32")
@pytest.mark.parametrize("fuses", [True, False], ids=["fused", "modules"])
def test_a_gpu_computes_what_the_cpu_does(fuses: bool) -> None:
    """Gradients of the first layers have gone through 22 batch norms, each of which passes rounding on enlarged."""
    here, there = network(fuses=fuses), network(fuses=fuses, device="cpu")
    same(passed(here, clips(1)), passed(there, clips(1, device="cpu")), within=1e-3)
    same(state(here), state(there), within=1e-2)
    with torch.no_grad():
        same(here.eval()(clips(2)), there.eval()(clips(2, device="cpu")), within=1e-3)


@pytest.mark.usefixtures("exact_fp32")
def test_passes_by_hand_give_what_the_modules_give() -> None:
    by_hand, modules = network(), network(fuses=False)
    same(passed(by_hand, clips(1)), passed(modules, clips(1)), within=1e-3)
    same(state(by_hand), state(modules), within=1e-2)


@pytest.mark.usefixtures("exact_fp32")
def test_passes_by_hand_in_bf16_are_no_further_from_fp32_than_the_modules() -> None:
    exact = passed(network(fuses=False), clips(1))
    off = []
    for fuses in (True, False):
        with torch.autocast("cuda", torch.bfloat16):
            found = passed(network(fuses=fuses), clips(1))
        off.append(max(((found[n] - x).norm() / x.norm()).item() for n, x in exact.items()))
    assert off[0] <= 1.5 * off[1], f"{off[0]:.2e} against {off[1]:.2e}"


@pytest.mark.parametrize("fuses", [True, False], ids=["fused", "modules"])
def test_no_kernel_changes_the_memory_format(fuses: bool) -> None:
    model = network(fuses=fuses, width=1.0)
    batch = clips(1)
    with torch.autocast("cuda", torch.bfloat16):
        passed(model, batch)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            passed(model, batch)
    names = {event.key for event in profile.key_averages()}
    changing = [name for name in names if "nchwToNhwc" in name or "nhwcToNchw" in name]
    assert names and not changing, f"{changing}"


def test_every_map_of_the_modules_is_ndhwc() -> None:
    model, strays = network(fuses=False), []

    def look(module: torch.nn.Module, args: object, out: Tensor) -> None:
        if out.ndim == 5 and not out.is_contiguous(memory_format=torch.channels_last_3d):
            strays.append((type(module).__name__, tuple(out.shape)))

    for module in model.streams.modules():
        if not isinstance(module, torch.nn.ModuleDict | I3d):
            module.register_forward_hook(look)
    passed(model, clips(1, number=16), (0,) * 4 + (1,) * 4)
    assert strays == []


@pytest.mark.usefixtures("exact_fp32")
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_leaves_the_result_as_it_is(name: str, bf16: bool) -> None:
    """Three updates of two micro-batches, domains in turn: features, gradients that add up, statistics; weights that
    change in place are seen.
    """
    plain, switched = network(), network()
    switched.on_gpu(**SWITCHES[name])
    for update, micro_batches in enumerate(UPDATES):
        for micro, domains in enumerate(micro_batches):
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                wanted, found = (passed(model, clips(10 * update + micro), domains) for model in (plain, switched))
            same(found, wanted, within=1e-3)
        same(state(switched), state(plain), within=1e-2)
        with torch.no_grad():
            for ours, theirs in zip(switched.parameters(), plain.parameters(), strict=True):
                assert theirs.grad is not None
                theirs.sub_(theirs.grad / theirs.grad.norm(), alpha=0.01)
                ours.copy_(theirs)  # the same bits: a difference would grow from update to update
                ours.grad = theirs.grad = None


def test_one_capture_serves_all_batches_of_a_shape() -> None:
    model = network()
    model.on_gpu(graphs=True)
    passed(model, clips(1))
    before = torch.cuda.memory_reserved()
    for seed in range(2, 6):
        passed(model, clips(seed))
    assert torch.cuda.memory_reserved() <= before + 64 * 2**20
    with torch.no_grad():
        assert model.eval()(clips(7))["rgb"].isfinite().all()


def test_a_capture_survives_hooks_that_an_engine_hung_on_before_it() -> None:
    model = network()
    arrived: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(arrived.append)
    passed(model, clips(1))  # gradients' accumulators now belong to this stream
    arrived.clear()
    model.on_gpu(graphs=True)
    passed(model, clips(1))
    assert len(arrived) == len(list(model.parameters()))


def test_torch_compile_gives_what_the_modules_give() -> None:
    plain = network(fuses=False)
    compiled = copy.deepcopy(plain)
    compiled.on_gpu(compiled=True)
    same(passed(compiled, clips(1)), passed(plain, clips(1)), within=1e-2)
