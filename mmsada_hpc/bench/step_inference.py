"""Features at test: both streams with batch norm folded into the convolutions, beside their modules one by one."""

from collections.abc import Callable, Sequence

import torch

from mmsada_hpc.bench.device import settings, timer
from mmsada_hpc.bench.rows import Report, Row, interleaved, row
from mmsada_hpc.bench.step_model import Form, Shape, StepModel, resident_clips
from mmsada_hpc.model.streams import use_ndhwc_weights


def measure(shape: Shape, device: torch.device, repeats: int, report: Report, *, types: Sequence[str]) -> None:
    """Clips/s of both ways in turn, for every type of `types` (bf16, fp32)."""
    for name in types:
        forms = [Form(network, name == "bf16") for network in ("modules", "fused")]
        ways = {form.network: timer(make_inference(shape, form, device), device) for form in forms}
        for once in ways.values():
            once()
        found = interleaved(ways, repeats)
        plain: Row | None = None
        for form in forms:
            label, values, told = (
                f"inference {form} {shape}",
                [shape.clips / s for s in found[form.network]],
                settings(device),
            )
            one = row("step", label, values, "clips/s", better="higher", baseline=plain, details=told)
            plain = plain or one
            report.add(one)


def make_inference(shape: Shape, form: Form, device: torch.device) -> Callable[[], dict[str, torch.Tensor]]:
    """One forward at test, which gives every stream's features `(N, D)`."""
    model, clips = StepModel(shape, form).to(device).eval(), resident_clips(shape, device)
    use_ndhwc_weights(model)

    def forward() -> dict[str, torch.Tensor]:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=form.bf16):
            features: dict[str, torch.Tensor] = model.streams(clips)
        return features

    return forward
