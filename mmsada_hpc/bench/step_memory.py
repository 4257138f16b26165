"""Peak memory of a step per clip: from fresh processes at two batch sizes, so that what does not grow drops out."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mmsada_hpc.bench.rows import Report, Row, row
from mmsada_hpc.bench.step_model import Form, Shape, make_step
from mmsada_hpc.errors import UserError

FORMS = (Form("naive", bf16=False), Form("modules", bf16=True), Form("fused", bf16=True), Form("fused", bf16=False))
BUDGET_MB = 20_000
_TIMEOUT_SECONDS = 900


def measure(shape: Shape, device: torch.device, report: Report) -> None:
    """MB per clip of every form, and the largest batch that `BUDGET_MB` would hold."""
    baseline: Row | None = None
    for form in FORMS:
        small, large = (replace(shape, clips=n) for n in (shape.clips, 2 * shape.clips))
        at_small, at_large = (_peak_mb(s, form, device) for s in (small, large))
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


def _peak_mb(shape: Shape, form: Form, device: torch.device) -> float:
    told = json.dumps({"shape": asdict(shape), "form": asdict(form), "device": str(device)})
    command = [sys.executable, "-m", "mmsada_hpc.bench.step_memory", told]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"bench step --memory: {form} {shape} took more than {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        why = (done.stderr.splitlines() or [f"exit status {done.returncode}; memory may be short"])[-1]
        raise UserError(f"bench step --memory: {form} {shape} could not be run: {why}")
    return float(done.stdout.split()[-1])


def _child(told: str) -> None:
    """Two steps (the second one has momentum), then the peak in MB."""
    values = json.loads(told)
    device = torch.device(values["device"])
    step = make_step(Shape(**values["shape"]), Form(**values["form"]), device)
    step()
    step()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        status = Path("/proc/self/status").read_text()  # not ru_maxrss, which begins at the parent's
        peak_kb = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        print(int(peak_kb) * 1024 / 1e6)


if __name__ == "__main__":
    _child(sys.argv[1])
