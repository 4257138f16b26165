"""Peak memory of a step per clip: from fresh processes at two batch sizes, so that what does not grow drops out."""

from dataclasses import replace

import torch

from mmsada_hpc.bench.rows import Report, Row, row
from mmsada_hpc.bench.step_child import run_steps
from mmsada_hpc.bench.step_model import Form, Shape

FORMS = (Form("naive", bf16=False), Form("modules", bf16=True), Form("fused", bf16=True), Form("fused", bf16=False))
BUDGET_MB = 20_000


def measure(shape: Shape, device: torch.device, report: Report) -> None:
    """MB per clip of every form, and the largest batch that `BUDGET_MB` would hold."""
    baseline: Row | None = None
    for form in FORMS:
        small, large = (replace(shape, clips=n) for n in (shape.clips, 2 * shape.clips))
        at_small, at_large = (run_steps(s, form, device).peak_mb for s in (small, large))
        per_clip = (at_large - at_small) / (large.clips - small.clips)
        fixed = at_small - small.clips * per_clip
        name = f"memory per clip, {form} {shape}"
        told = {"fixed_mb": round(fixed), "clips": [small.clips, large.clips]}
        found = row("step", name, [per_clip], "MB", better="lower", baseline=baseline, details=told)
        report.add(found)
        if per_clip > 0:  # clips too small to be seen beside the rest of the process have no such figure
            largest = int((BUDGET_MB - fixed) / per_clip)
            report.add(row("step", f"largest batch in 20 GB, {form} {shape}", [largest], "clips", better="higher"))
        baseline = baseline or found
