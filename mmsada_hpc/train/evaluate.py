"""Scoring: five centre-cropped windows a segment, mean of their softmaxes, argmax over all outputs (spec 1.2, 4.4,
4.6).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mmsada_hpc.data.plan import ClipPlan
from mmsada_hpc.data.schedule import TestSchedule, plan_test_windows
from mmsada_hpc.observe.progress import Progress
from mmsada_hpc.observe.reliability import reliability
from mmsada_hpc.observe.screen import Screen
from mmsada_hpc.train.engine import Engine
from mmsada_hpc.train.setup import Setup

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SetScores:
    """Test-mode outputs of one set, in the store's order of segments, the same on every rank."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: Mapping[str, Floats]
    """`fused` and each stream: `(segments, K)`, mean softmax over the windows."""
    features: Mapping[str, Floats]
    """Per stream `(segments, D)`, mean over the windows."""
    centre_features: Mapping[str, Floats]
    """Per stream `(segments, D)`, of the middle window alone, as the heads see a clip in training."""
    seconds: float

    def predictions(self, stream: str = "fused") -> NDArray[np.int64]:
        return self.probabilities[stream].argmax(axis=1).astype(np.int64)

    def probe(self, engine: Engine, *, domain: int) -> dict[str, object]:
        """True accuracies of the discriminators and of the correspondence head, in percent: each segment's middle
        window, and for false pairs the next segment's (call it on every rank).
        """
        features = {stream: torch.from_numpy(value) for stream, value in self.centre_features.items()}
        return {name: round(value, 4) for name, value in engine.probe(features, domain).items()}

    def summary(self, num_classes: int) -> dict[str, object]:
        """Percentages and the confusion matrix, as in result.json."""
        confusion = confusion_matrix(self.labels, self.predictions(), num_classes)
        recall = per_class_recall(confusion)
        present = [r for r in recall if r is not None]
        streams = {
            f"top1_{s}": _percent(self.predictions(s) == self.labels) for s in self.probabilities if s != "fused"
        }
        return {
            "top1": _percent(self.predictions() == self.labels),
            **streams,
            "mean_recall": round(float(np.mean(present)), 4),
            "segments": len(self.labels),
            "confusion": confusion.tolist(),
            "per_class_recall": recall,
            "reliability": reliability(self.probabilities["fused"], self.labels),
        }


def score_set(setup: Setup, engine: Engine, name: str, screen: Screen, *, check: Callable[[], None]) -> SetScores:
    """Score a set such as `target/test`. Every rank takes every world-size-th segment; call it on every rank.

    Args:
        check: called before each batch, on every rank equally often; may raise to leave.
    """
    begin = time.perf_counter()
    side, _, split = name.partition("/")
    rows = setup.rows(getattr(setup.config.data, side), split, key=f"data.{side}")
    mine = rows[setup.world.rank :: setup.world.size]
    most = -(-len(rows) // setup.world.size)
    plan = _test_plan(setup, mine, most=most, domain=int(side == "target"))
    schedule = TestSchedule(plan, setup.config.eval.batch)
    with Progress(screen, len(schedule), f"evaluate {name}", unit="batch", keep=False) as progress:
        outputs = _score(setup, engine, schedule, progress, segments=len(mine), check=check)
    gathered: list[dict[str, Floats]] = [{}] * setup.world.size
    dist.all_gather_object(gathered, outputs)
    order = np.argsort(
        np.concatenate([rows[rank :: setup.world.size] for rank in range(setup.world.size)]), kind="stable"
    )
    joined = {key: np.concatenate([part[key] for part in gathered])[order] for key in outputs}
    split_by = {
        prefix: {key.split("/")[1]: value for key, value in joined.items() if key.startswith(prefix)}
        for prefix in ("probability/", "feature/", "centre/")
    }
    ordered = np.sort(rows)
    return SetScores(
        ordered,
        setup.store.segments.label[ordered],
        split_by["probability/"],
        split_by["feature/"],
        split_by["centre/"],
        time.perf_counter() - begin,
    )


def _test_plan(setup: Setup, mine: NDArray[np.int64], *, most: int, domain: int) -> ClipPlan:
    """Windows of this rank's segments. Ranks with fewer than `most` repeat some, because ZeRO 3 wants equal numbers of
    forwards.
    """
    segments = setup.store.segments
    padded = np.resize(mine, most) if len(mine) else np.zeros(most, np.int64)
    return plan_test_windows(
        rows=padded,
        start=segments.start[padded],
        stop=segments.stop[padded],
        label=segments.label[padded],
        domain=domain,
        rule=setup.rule,
        windows=setup.config.eval.windows,
        frame_size=setup.frame_size,
        streams=setup.streams,
    )


def _score(
    setup: Setup,
    engine: Engine,
    schedule: TestSchedule,
    progress: Progress,
    *,
    segments: int,
    check: Callable[[], None],
) -> dict[str, Floats]:
    """Mean outputs over the windows of each of the first `segments` segments."""
    loader = setup.test_loader(schedule)
    parts: dict[str, list[Floats]] = {}
    for done in range(len(schedule)):
        check()
        logits, features = engine.evaluate(loader.next())
        for stream, value in logits.items():
            parts.setdefault(f"probability/{stream}", []).append(torch.softmax(value.double(), dim=1).cpu().numpy())
        for stream, value in features.items():
            parts.setdefault(f"feature/{stream}", []).append(value.double().cpu().numpy())
        progress.update(done + 1)
    windows = setup.config.eval.windows
    joined = {key: np.concatenate(v).reshape(-1, windows, v[0].shape[1])[:segments] for key, v in parts.items()}
    means = {key: v.mean(axis=1) for key, v in joined.items()}
    centres = {f"centre/{key.split('/')[1]}": v[:, windows // 2] for key, v in joined.items() if key[0] == "f"}
    return means | centres


def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """`(classes, classes + 1)`: rows true, columns predicted; the last column counts the spare outputs of the released
    classifier.
    """
    matrix = np.zeros((num_classes, num_classes + 1), np.int64)
    np.add.at(matrix, (labels, np.minimum(predictions, num_classes)), 1)
    return matrix


def per_class_recall(confusion: NDArray[np.int64]) -> list[float | None]:
    """Percent of each class found; None where the set has no such segment."""
    total = confusion.sum(axis=1)
    return [round(100 * float(confusion[c, c]) / int(n), 4) if n else None for c, n in enumerate(total)]


def _percent(hits: NDArray[np.bool_]) -> float:
    return round(100 * float(np.mean(hits)), 4)
