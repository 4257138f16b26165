"""`mmsada bench heads`: the fused adaptation heads, beside plain PyTorch and `torch.compile` of it.

A measurement is the forward and backward of all heads of MM-SADA on one micro-batch, with autograd and everything that
Python does for it. All forms are called in turn, so each finds the caches as the others leave them, as in a step.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmsada_hpc.bench.device import bench_device, set_as_training, settings, timer
from mmsada_hpc.bench.rows import Report, Row, interleaved, row
from mmsada_hpc.bench.step import has_fast_bf16
from mmsada_hpc.bench.step_model import Form, Shape, make_step
from mmsada_hpc.errors import UserError
from mmsada_kernels import adaptation_heads, cpu, reference
from mmsada_kernels.reference import AdaptationLosses, Linear, Mlp

HELP = "the fused adaptation heads, beside plain PyTorch and torch.compile of it: forward and backward by clips"
STREAMS, WIDTH, HIDDEN, CLASSES = 2, 1024, 100, 8  # as published, two logits per class
CALLS = 20  # a repetition is the median of as many calls
Heads = Callable[..., AdaptationLosses]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench heads`."""
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512], metavar="N", help="default: 8 to 512"
    )
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--no-step", action="store_true", help="leave the share of a whole step out")


def run(args: argparse.Namespace, report: Report) -> None:
    """Measure and report."""
    if min(args.clips) < 1:
        raise UserError(f"--clips {min(args.clips)}: must be at least 1")
    device = bench_device(args.device)
    set_as_training(device, report.world)
    step = Shape(2, 8, 64, 0.25) if args.quick else Shape(4, 16, 224, 1.0)
    for bf16 in (True, False):
        if bf16 and not has_fast_bf16(device):
            continue
        seconds = 0.0 if args.no_step else _step_seconds(step, device, bf16=bf16)
        for clips in [32] if args.quick else args.clips:
            case = make_case(clips, device, bf16=bf16)
            rows = _measure(case, args.repeats, report, compiles=not (args.no_compile or args.quick))
            if seconds:
                _add_shares(rows, case, step, seconds, report)


@dataclass(frozen=True)
class Case:
    """The heads of one micro-batch with random numbers."""

    features: list[Tensor]
    dropout: list[Tensor]
    given: Mapping[str, Any]
    factor_T: Tensor
    bf16: bool

    @property
    def clips(self) -> int:
        return len(self.features[0])

    @property
    def device(self) -> torch.device:
        return self.features[0].device

    @property
    def name(self) -> str:
        return f"{'bf16' if self.bf16 else 'fp32'} N={self.clips}"

    @property
    def leaves(self) -> list[Tensor]:
        heads = [*self.given["classifier_S"], *self.given["discriminator_S"], self.given["correspondence_head"]]
        return [*self.features, *(x for head in heads for x in head)]

    def __call__(self, heads: Heads) -> None:
        """Forward and backward; the total is taken as `Method.losses` takes it."""
        for x in self.leaves:
            x.grad = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = heads(self.features, self.dropout, **self.given)
        terms = [found.classified.scored, found.corresponds, *found.domain_S]
        (self.factor_T * torch.stack([term.loss for term in terms])).sum().backward()


def make_case(clips: int, device: torch.device, *, bf16: bool) -> Case:
    """Half source, half target, half of each corresponding, as the released batches."""
    rng = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=rng)).to(device).requires_grad_()

    def mlp(inputs: int) -> Mlp:
        return Mlp(leaf(HIDDEN, inputs, scale=inputs**-0.5), leaf(HIDDEN), leaf(2, HIDDEN, scale=0.1), leaf(2))

    domain_N = (torch.arange(clips) >= clips // 2).long()
    corresponds_N = torch.arange(clips) % 2 == 0
    weights = {name: torch.full((clips,), 1 / clips).to(device) for name in ("weight_corr_N", "weight_domain_N")}
    given = {
        "classifier_S": [Linear(leaf(2 * CLASSES, WIDTH, scale=0.03), leaf(2 * CLASSES)) for _ in range(STREAMS)],
        "discriminator_S": [mlp(WIDTH) for _ in range(STREAMS)],
        "correspondence_head": mlp(STREAMS * WIDTH),
        "label_N": (torch.arange(clips) % CLASSES).to(device),
        "domain_N": domain_N.to(device),
        "corresponds_N": corresponds_N.to(device),
        "weight_ce_N": (((domain_N == 0) & corresponds_N) * (4 / clips)).to(device),
        **weights,
        "reversal": torch.tensor(0.5, device=device),
        "num_classes": CLASSES,
    }
    dtype = torch.bfloat16 if bf16 else torch.float32
    features = [leaf(clips, WIDTH).detach().relu().to(dtype).requires_grad_() for _ in range(STREAMS)]
    dropout = [2.0 * (torch.rand(clips, WIDTH, generator=rng) < 0.5).to(device) for _ in range(STREAMS)]
    return Case(features, dropout, given, torch.tensor([1.0, 5.0, 1.0, 1.0], device=device), bf16)


def _measure(case: Case, repeats: int, report: Report, *, compiles: bool) -> dict[str, Row]:
    ways: dict[str, Callable[[], object]] = {
        "eager": partial(case, reference.adaptation_heads),
        "fused": partial(case, adaptation_heads),
    }
    if compiles:
        torch.compiler.reset()  # one shape at a time: no recompilation for changing sizes
        ways["compile"] = partial(case, torch.compile(reference.adaptation_heads, dynamic=False))
    ways["GEMMs"] = _products(case)
    for name, way in list(ways.items()):
        try:
            for _ in range(3):
                way()
        except Exception as error:
            if name != "compile":
                raise
            del ways[name]  # torch.compile needs a compiler at run time and may not know this Python
            lines = str(error).strip().splitlines()
            reason = next((line for line in lines if " error: " in line), lines[0]).partition(" error: ")
            print(f"  compile {case.name}: left out ({reason[2] or reason[0]})")
    report.profile(ways["fused"], name=case.name)
    seconds = interleaved({name: timer(way, case.device) for name, way in ways.items()}, repeats * CALLS)
    calls = {name: [1e3 * s for s in values] for name, values in seconds.items()}
    rows: dict[str, Row] = {}
    for name, values in calls.items():
        medians = [statistics.median(values[i : i + CALLS]) for i in range(0, len(values), CALLS)]
        baseline = rows["eager"] if name in ("fused", "compile") else None
        details = {**_details(case), "calls": CALLS, "fastest_call_ms": min(values)}
        rows[name] = row(
            "heads", f"{name} {case.name}", medians, "ms", better="lower", baseline=baseline, details=details
        )
        report.add(rows[name])
    return rows


def _details(case: Case) -> dict[str, Any]:
    return {
        "streams": STREAMS,
        "features": WIDTH,
        "hidden": HIDDEN,
        "logits": 2 * CLASSES,
        "device": str(case.device),
        **settings(case.device),
        "kernels": cpu.level() if case.device.type == "cpu" else "triton",
    }


def _products(case: Case) -> Callable[[], object]:
    """The large products alone, on operands of their type: of every stream with its discriminator and its part of the
    correspondence head, forward, by the features and by the weights.
    """
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    x_SND = [x.detach().to(dtype) for x in case.features]
    weight_HD = torch.randn(2 * HIDDEN, WIDTH, device=case.device, dtype=dtype)
    slope_NH = torch.randn(case.clips, 2 * HIDDEN, device=case.device, dtype=dtype)

    def products() -> None:
        for x_ND in x_SND:
            torch.mm(x_ND, weight_HD.t())
            torch.mm(slope_NH, weight_HD)
            torch.mm(slope_NH.t(), x_ND)

    return products


def _step_seconds(shape: Shape, device: torch.device, *, bf16: bool) -> float:
    """Of one training step, heads and update in it: the median of three."""
    step = make_step(shape, Form("fused", bf16), device)
    step()
    return statistics.median(timer(step, device)() for _ in range(3))


def _add_shares(rows: Mapping[str, Row], case: Case, shape: Shape, seconds: float, report: Report) -> None:
    """Against the step of as many clips, if a clip costs as much as in the step that was measured."""
    whole_ms = 1e3 * seconds * case.clips / shape.clips
    details = {"step": str(shape), "step_ms": 1e3 * seconds, "formula": "heads(N) / (step / clips of the step * N)"}
    details |= settings(case.device)
    eager: Row | None = None
    for name in ("eager", "fused"):
        values = [100 * ms / whole_ms for ms in (rows[name].min, rows[name].value, rows[name].max)]
        found = row(
            "heads",
            f"share of a step, {name} {case.name}",
            values,
            "%",
            better="lower",
            baseline=eager,
            details=details,
        )
        eager = eager or found
        report.add(found)
