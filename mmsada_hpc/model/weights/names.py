"""I3D as a table: every unit's name in each layout, its kernel, and the units it reads (spec 1.1, 9.5).

`w` is a convolution `(out, in, k, k, k)`, `beta`, `mean`, `var` and `gamma` its batch norm `(out,)`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.model.i3d import MIXED

Array = NDArray[np.floating]
STEM = "Conv3d_1a_7x7"


@dataclass(frozen=True)
class UnitName:
    """One convolution with its batch norm."""

    ours: str
    tf: str
    hassony2: str
    kernel: int
    inputs: tuple[str, ...]
    """Units (by our name) whose joined outputs it reads; empty = the clip."""


def _mixed_units(block: str, before: tuple[str, ...]) -> Iterator[UnitName]:
    # DeepMind's one exception: in Mixed_5b the second convolution of branch 2 is called 0a too.
    second = "Conv3d_0a_3x3" if block == "Mixed_5b" else "Conv3d_0b_3x3"
    for ours, tf, hassony2, kernel, inner in (
        ("b0", "Branch_0/Conv3d_0a_1x1", "branch_0", 1, None),
        ("b1a", "Branch_1/Conv3d_0a_1x1", "branch_1.0", 1, None),
        ("b1b", "Branch_1/Conv3d_0b_3x3", "branch_1.1", 3, "b1a"),
        ("b2a", "Branch_2/Conv3d_0a_1x1", "branch_2.0", 1, None),
        ("b2b", f"Branch_2/{second}", "branch_2.1", 3, "b2a"),
        ("b3b", "Branch_3/Conv3d_0b_1x1", "branch_3.1", 1, None),
    ):
        inputs = (f"{block}.{inner}",) if inner else before
        yield UnitName(f"{block}.{ours}", f"{block}/{tf}", f"{block.lower()}.{hassony2}", kernel, inputs)


def _outputs(block: str) -> tuple[str, ...]:
    return tuple(f"{block}.{branch}" for branch in ("b0", "b1b", "b2b", "b3b"))


def _units() -> Iterator[UnitName]:
    before: tuple[str, ...] = ()
    for name, kernel in ((STEM, 7), ("Conv3d_2b_1x1", 1), ("Conv3d_2c_3x3", 3)):
        yield UnitName(name, name, name.lower(), kernel, before)
        before = (name,)
    for block in MIXED:
        yield from _mixed_units(block, before)
        before = _outputs(block)


UNITS = tuple(_units())
"""All 57, each after the units it reads."""
FEATURES = _outputs("Mixed_5c")
"""The units whose joined and averaged outputs are the 1024-d feature."""


@dataclass(frozen=True)
class I3dArrays:
    """One stream's weights in no project's layout: `(out, in, kT, kH, kW)` convolutions, `(C,)` batch norms."""

    w: Mapping[str, Array]
    """By our unit name, as the four below."""
    beta: Mapping[str, Array]
    mean: Mapping[str, Array]
    var: Mapping[str, Array]
    logits_w: Array
    """`(K, features)`, K = 400 for Kinetics."""
    logits_b: Array
    gamma: Mapping[str, Array] = field(default_factory=dict)
    """Empty where the source has no scale."""

    @property
    def stream(self) -> str:
        """rgb or flow, by the channels of the stem."""
        return {3: "rgb", 2: "flow"}[self.w[STEM].shape[1]]
