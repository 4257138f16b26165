"""Fused adaptation heads of MM-SADA. Needs torch alone; the plain PyTorch definition is `mmsada_kernels.reference`."""

from mmsada_kernels.heads import adaptation_heads
from mmsada_kernels.reference import (
    Classified,
    Scored,
    classify,
    correspondence,
    discriminate,
    reverse_gradient,
    wide,
)

__all__ = [
    "Classified",
    "Scored",
    "adaptation_heads",
    "classify",
    "correspondence",
    "discriminate",
    "reverse_gradient",
    "wide",
]
