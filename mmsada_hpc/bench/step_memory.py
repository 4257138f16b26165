"""Peak memory of a step per clip: from fresh processes at two batch sizes, so that what does not grow drops out."""

from dataclasses import replace

import torch

from mmsada_hpc.bench.device import settings
from mmsada_hpc.bench.rows import SHOWN, Report, Row, row
from mmsada_hpc.bench.step_child import run_steps
from mmsada_hpc.bench.step_model import Form, Shape
from mmsada_hpc.errors import UserError

FORMS = (Form("naive", bf16=False), Form("modules", bf16=True), Form("fused", bf16=True), Form("fused", bf16=False))
BUDGET_MB = 20_000


def measure(shape: Shape, device: torch.device, report: Report) -> None:
    """MB per clip of every form, and the largest batch that `BUDGET_MB` would hold. A form that fails is named.

    Raises:
        UserError: no form could be measured.
    """
    naive: Row | None = None
    failed: list[UserError] = []
    for form in FORMS:
        try:
            found = _measure(shape, form, device, naive, report)
        except UserError as error:
            print(f"  memory per clip, {form} {shape}: left out ({error})", flush=True)
            failed.append(error)
        else:
            naive = naive or (found if form.network == "naive" else None)
    if len(failed) == len(FORMS):
        raise failed[0]


def _measure(shape: Shape, form: Form, device: torch.device, naive: Row | None, report: Report) -> Row:
    small, large = (replace(shape, clips=n) for n in (shape.clips, 2 * shape.clips))
    at_small, at_large = (run_steps(s, form, device).peak_mb for s in (small, large))
    per_clip = (at_large - at_small) / (large.clips - small.clips)
    fixed = at_small - small.clips * per_clip
    told = {"fixed_mb": round(fixed), "clips": [small.clips, large.clips], **settings(device)}
    found = row(
        "step", f"memory per clip, {form} {shape}", [per_clip], "MB", better="lower", baseline=naive, details=told
    )
    report.add(found)
    if per_clip > 0:  # clips too small to be seen beside the rest of the process have no such figure
        name, largest = f"largest batch in 20 GB, {form} {shape}", largest_batch(fixed, per_clip)
        report.add(row("step", name, [largest], "clips", better="higher", details={**told, SHOWN: "extrapolated"}))
    return found


def largest_batch(fixed_mb: float, per_clip_mb: float) -> int:
    """Clips that `BUDGET_MB` would hold, by a line through two sizes."""
    return max(0, int((BUDGET_MB - fixed_mb) / per_clip_mb))
