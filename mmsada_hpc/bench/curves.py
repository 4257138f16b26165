"""`mmsada bench curves RUN RUN...`: how far apart the losses of runs are that differ in a way that should not matter,
such as precision, engine or the number of ranks.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.shards import writing
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.curves import running_mean
from mmsada_hpc.observe.metrics import read_metrics

HELP = (
    "Loss curves of two or more finished or running runs, smoothed, and their mean distance from those of the first; "
    "--out draws them. For runs that ought to be alike: bf16 and fp32, one rank and many, DeepSpeed and DDP."
)
_TERMS = {"loss": "total loss", "loss_ce": "classification loss"}
# As the report's page has them, on paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#c98a00", "#3f9fd6")
_INK, _MUTED, _GRID = "#1c2129", "#626b78", "#eceff2"


@dataclass(frozen=True)
class Curves:
    """The train rows of one run."""

    name: str
    stages: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    """By term of `_TERMS`, an update each."""

    def smoothed(self, term: str, window: int) -> NDArray[np.float64]:
        """Running mean, each stage for itself: the weights of the terms change between them."""
        parts = [running_mean(self.values[term][self.stages == stage], window) for stage in np.unique(self.stages)]
        return np.concatenate(parts)


def read_curves(run_dir: Path) -> Curves:
    """UserError where there is no run, or not one update of it."""
    rows = [row for row in read_metrics(run_dir) if row.get("kind") == "train"]
    if not rows:
        raise UserError(f"{run_dir} has no update yet: wait for its first, or name another run")
    values = {term: np.array([row.get(term, np.nan) for row in rows], dtype=np.float64) for term in _TERMS}
    return Curves(run_dir.name, np.array([row["stage"] for row in rows], dtype=np.float64), values)


def distance(first: Curves, other: Curves, term: str, window: int) -> tuple[float, float]:
    """Mean absolute difference of two smoothed curves over the updates that both have, and the first one's mean."""
    both = min(len(first.stages), len(other.stages))
    if not np.array_equal(first.stages[:both], other.stages[:both]):
        raise UserError(f"{first.name} and {other.name} change the stage at different updates: they cannot be compared")
    a, b = (curves.smoothed(term, window)[:both] for curves in (first, other))
    return float(np.nanmean(np.abs(a - b))), float(np.nanmean(a))


def describe(runs: Sequence[Curves], window: int) -> list[str]:
    """A line for each other run and term."""
    first, lines = runs[0], []
    for other in runs[1:]:
        both = min(len(first.stages), len(other.stages))
        for term, name in _TERMS.items():
            apart, mean = distance(first, other, term, window)
            lines.append(
                f"{other.name} against {first.name}, {name}: {apart:.4f} apart in the mean over {both} updates, "
                f"{100 * apart / mean:.1f} % of {mean:.3f} (smoothed over {window})"
            )
    return lines


def draw(runs: Sequence[Curves], window: int, out: Path) -> None:
    """One panel a term; single updates pale, smoothed ones in front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained", facecolor="white")
    for axis, (term, title) in zip(figure.subplots(1, len(_TERMS)), _TERMS.items(), strict=True):
        for k, run in enumerate(runs):
            steps, colour = np.arange(1, len(run.stages) + 1), _COLOURS[k % len(_COLOURS)]
            axis.plot(steps, run.values[term], color=colour, linewidth=0.6, alpha=0.25)
            style = "-" if k == 0 else (0, (5, 1 + k))
            axis.plot(steps, run.smoothed(term, window), linestyle=style, color=colour, linewidth=1.6, label=run.name)
        for change in np.flatnonzero(np.diff(runs[0].stages)):
            axis.axvline(change + 1.5, color=_MUTED, linewidth=0.8, linestyle=":")
        _dress(axis, f"{title}, running mean over {window} updates")
    writing(out, lambda: out.parent.mkdir(parents=True, exist_ok=True))
    writing(out, lambda: figure.savefig(out, dpi=150))


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=9, color=_INK)
    axis.set_xlabel("update (dotted: stage 2 begins)", fontsize=8, color=_MUTED)
    axis.grid(color=_GRID)
    axis.tick_params(colors=_MUTED, labelsize=8, length=3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench curves`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs; the first is the yardstick")
    parser.add_argument("--window", type=int, default=21, metavar="N", help="updates to smooth over (default 21)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture (.png or .svg)")


def run(args: argparse.Namespace) -> int:
    """Say how far apart they are, and draw them."""
    if len(args.runs) < 2:
        raise UserError("bench curves: name two or more runs")
    if args.window < 1:
        raise UserError("--window must be at least 1")
    if args.out is not None and args.out.suffix not in (".png", ".svg"):
        raise UserError(f"--out {args.out}: a picture's name ends in .png or .svg")
    if args.out is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed: pip install matplotlib, or the extra report")
    runs = [read_curves(folder) for folder in args.runs]
    print("\n".join(describe(runs, args.window)))
    if args.out is not None:
        draw(runs, args.window, args.out)
        print(args.out)
    return 0
