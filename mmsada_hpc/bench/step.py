"""`mmsada bench step`: a training step against the machine's GEMM rate and beside the naive form of the model.

All of it in one run, the forms in turn. Rates count what convolutions execute (`step_model.executed_flops`).
"""

import argparse
import math
from collections.abc import Callable

import torch

from mmsada_hpc.bench import step_inference, step_memory, step_parts
from mmsada_hpc.bench.device import bench_device, set_as_training, settings, timer
from mmsada_hpc.bench.rows import Report, Row, interleaved, row
from mmsada_hpc.bench.step_model import Form, Shape, executed_flops, make_step
from mmsada_hpc.errors import UserError

HELP = "the training step against the machine's GEMM rate and beside the naive form of the model; inference"
NAIVE = Form("naive", bf16=False)
_GEMM = {"cpu": 2048, "cuda": 8192}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench step`."""
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="micro-batch (default %(default)s)")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="of a clip (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="side of a frame (default %(default)s)")
    parser.add_argument("--width", type=float, default=1.0, help="of the networks (default %(default)s)")
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--memory", action="store_true", help="peak memory per clip and the largest batch, too")
    parser.add_argument("--parts", action="store_true", help="every candidate of docs/performance.md alone, too")


def run(args: argparse.Namespace, report: Report) -> None:
    """Measure and report."""
    shape, device = _shape(args), bench_device(args.device)
    set_as_training(device, report.world)
    _measure_steps(shape, device, args.repeats, report)
    step_inference.measure(shape, device, args.repeats, report, types=list(_types(device)))
    if args.memory:
        step_memory.measure(shape, device, report)
    if args.parts:
        step_parts.measure(shape, device, args.repeats, report)


def _shape(args: argparse.Namespace) -> Shape:
    """What the options ask for; UserError where no step can have it."""
    if args.clips < 2 or args.clips % 2:
        raise UserError("--clips must be an even number: half of the clips are source, half target")
    for name in ("frames", "size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if args.parts and (args.frames < 2 or args.size < 8):
        raise UserError("--parts: needs --frames 2 and --size 8, or more")
    if not (math.isfinite(args.width) and args.width > 0):
        raise UserError(f"--width {args.width:g}: must be above 0")
    return Shape(2, 8, 64, 0.25) if args.quick else Shape(args.clips, args.frames, args.size, args.width)


def _measure_steps(shape: Shape, device: torch.device, repeats: int, report: Report) -> None:
    types = _types(device)
    forms = [NAIVE, *(Form(network, name == "bf16") for name in types for network in ("modules", "fused"))]
    steps = {str(form): make_step(shape, form, device) for form in forms}
    for name, step in steps.items():
        step()
        report.profile(step, name=name)
    products = {name: _products(dtype, device) for name, dtype in types.items()}
    seconds = interleaved({name: timer(run, device) for name, run in {**products, **steps}.items()}, repeats)
    gemm = {name: _gemm_row(name, seconds[name], device) for name in types}
    for found in gemm.values():
        report.add(found)
    naive: Row | None = None
    for form in forms:
        clips, share = _step_rows(form, shape, seconds[str(form)], gemm["bf16" if form.bf16 else "fp32"], naive, device)
        naive = naive or clips
        report.add(clips)
        report.add(share)


def _types(device: torch.device) -> dict[str, torch.dtype]:
    """What products may be of here."""
    return {**({"bf16": torch.bfloat16} if has_fast_bf16(device) else {}), "fp32": torch.float32}


def has_fast_bf16(device: torch.device) -> bool:
    """Whether products of bf16 have instructions of their own here; without them fp32 is the measure."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


_PRODUCTS = 10


def _products(dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    size = _GEMM[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def run() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    run()
    return run


def _gemm_row(name: str, seconds: list[float], device: torch.device) -> Row:
    size = _GEMM[device.type]
    rates = [_PRODUCTS * 2 * size**3 / s / 1e9 for s in seconds]
    return row("step", f"GEMM {name} {size}^3", rates, "GFLOP/s", better="higher")


def _step_rows(
    form: Form, shape: Shape, seconds: list[float], gemm: Row, naive: Row | None, device: torch.device
) -> tuple[Row, Row]:
    """Clips/s beside the naive form, and the share of the rate of matrix products."""
    flops = executed_flops(shape)
    told = {"clips": shape.clips, "executed_gflop": round(flops / 1e9, 1), **settings(device)}
    rates = [shape.clips / s for s in seconds]
    shares = [100 * flops / s / 1e9 / gemm.value for s in seconds]
    return (
        row("step", f"{form} {shape}", rates, "clips/s", better="higher", baseline=naive, details=told),
        row("step", f"share of GEMM, {form} {shape}", shares, "%", better="higher", details=told),
    )
