"""The networks that a forecast is for."""

from functools import cache

from mmsada_hpc.scaling.forecast.engines import Gradient
from mmsada_hpc.scaling.forecast.forecast import Traffic
from mmsada_hpc.scaling.forecast.readiness import gradients_of

_HEADS = 427_000
"""Parameters of MM-SADA's heads, which the backward has first."""
_AGREED_BYTES = 232_000
"""Batch-norm sums of both streams and domains in fp32 (`BatchNormState.take_sums`), and a few figures."""


@cache
def full_size() -> Traffic:
    """Both I3Ds at 16x224x224, and MM-SADA's heads."""
    gradients, backward = gradients_of(width=1.0, frames=16, side=224)
    return Traffic((Gradient(_HEADS, 0.0), *gradients), backward, _AGREED_BYTES)
