"""Writes a run folder as a training would leave it, with plausible numbers, in no time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsada_hpc.observe.reliability import reliability

CLASSES = ["take", "put", "wash", "open", "close", "cut", "mix", "pour"]
CONFIG = """\
recipe: released
method:
  name: {method}
  lambda_d: {lambda_d:g}
data:
  store: stores/toy-kitchens
  source: [{source}]
  target: [{target}]
train:
  lr: 0.01
  batch: 32
seed: {seed}
run:
  dir: {folder}
"""


def _train_row(step: int, stages: tuple[int, int], method: str, random: np.random.RandomState) -> dict[str, Any]:
    stage = 1 if step <= stages[0] else 2
    progress = step / sum(stages)
    noise = random.normal(0, 1, 12)
    ce = 2.1 * math.exp(-3 * progress) + 0.12 * abs(noise[0]) + 0.1
    corr = 0.693 - 0.35 * progress + 0.05 * noise[1]
    step_s = 0.86 + 0.05 * abs(noise[2]) + (4.0 if step in (1, stages[0] + 1) else 0)
    row: dict[str, Any] = {"kind": "train", "stage": stage, "step": step if stage == 1 else step - stages[0]}
    row |= {"global_step": step, "loss_ce": ce, "top1": min(100.0, 12.5 + 95 * progress**0.7 + 6 * noise[3])}
    row |= {"lr": 0.01, "grad_norm": 3 + noise[4], "step_s": step_s, "clips_per_s": 32 / step_s}
    row |= {"data_wait_s": 0.02 + 0.01 * abs(noise[5]), "time": 1.79e9 + step}
    if method == "source_only":
        return row | {"loss": ce}
    row |= {"loss_corr": corr, "corr_acc": 50 + 35 * progress + 6 * noise[6], "loss": ce + 5 * corr}
    if stage == 2:
        ease = math.exp(-6 * (progress - 0.3))
        row |= {"loss_domain_rgb": 0.69 - 0.3 * ease + 0.05 * noise[7], "domain_acc_rgb": 52 + 35 * ease + 5 * noise[8]}
        row |= {
            "loss_domain_flow": 0.69 - 0.1 * ease + 0.04 * noise[9],
            "domain_acc_flow": 51 + 12 * ease + 5 * noise[10],
        }
        row |= {"loss": 0.2 * ce + corr + row["loss_domain_rgb"] + row["loss_domain_flow"], "grl": 0.1}
    return row


def _evaluation(top1: float, segments: int, random: np.random.RandomState) -> dict[str, Any]:
    label = np.arange(segments) % len(CLASSES)
    right = random.uniform(size=segments) < top1 / 100
    wrong = np.where(random.uniform(size=segments) < 0.6, label ^ 1, random.randint(0, len(CLASSES), segments))
    confusion = np.zeros((len(CLASSES), len(CLASSES) + 1), int)
    np.add.at(confusion, (label, np.where(right, label, wrong)), 1)
    recall = 100 * np.diag(confusion) / confusion.sum(axis=1).clip(1)
    score = 100 * float(np.trace(confusion)) / segments
    scores: dict[str, Any] = {
        "top1": score,
        "top1_rgb": 0.8 * score,
        "top1_flow": 0.9 * score,
        "mean_recall": float(recall.mean()),
    }
    sure = np.clip(0.5 + 0.5 * right - 0.3 * random.uniform(size=segments), 0, 1)
    probabilities = np.full((segments, len(CLASSES)), 0.0)
    probabilities[np.arange(segments), np.where(right, label, wrong)] = sure
    scores["reliability"] = reliability(probabilities, label)
    scores |= {"domain_acc_rgb": 61.0, "domain_acc_flow": 54.0, "corr_acc": 77.0}
    return {**scores, "segments": segments, "confusion": confusion.tolist(), "per_class_recall": recall.tolist()}


def write_result_alone(
    folder: Path,
    *,
    label: str,
    shift: tuple[str, str] = ("K1", "K2"),
    seed: int = 0,
    top1: float | None = 50.0,
    streams: Mapping[str, float] | None = None,
    config: str = "train: {lr: 0.01}\n",
    extra: Mapping[str, Any] | None = None,
    segments: int = 8,
    **scores: float,
) -> Path:
    """Writes a run folder with chosen numbers: config.yaml and, unless top1 is None, result.json; returns the folder.

    The confusion matrix has `segments` segments, half of them of the first class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"label": label, "method": label.partition(" (")[0], "seed": seed, "recipe": "released"}
    names = f"data: {{source: [{shift[0]}], target: [{shift[1]}]}}\n"
    (folder / "config.yaml").write_text(
        f"recipe: released\nmethod: {{name: {about['method']}}}\n{names}seed: {seed}\nrun: {{dir: {folder}}}\n{config}"
    )
    (folder / "metrics.jsonl").touch()
    if top1 is None:
        return folder
    confusion = np.zeros((len(CLASSES), len(CLASSES) + 1), int)
    confusion[:2, 0] = segments - segments // 2, segments // 2
    row: dict[str, Any] = {"top1": top1, **{f"top1_{name}": value for name, value in (streams or {}).items()}, **scores}
    row |= {"segments": segments, "confusion": confusion.tolist()}
    result = {**about, "source": [shift[0]], "target": [shift[1]], "classes": CLASSES, "chance": 12.5}
    result |= {"evaluations": {"target/test": row}, "target_top1": top1, **(extra or {})}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_features(path: Path, *, apart: float, clips: int = 160, seed: int = 0) -> None:
    """Features (rgb and flow, 32 wide) of two domains that lie `apart` from each other, with classes in clusters."""
    random = np.random.RandomState(seed)
    label, domain = np.arange(clips) % len(CLASSES), np.arange(clips) // max(1, clips // 2)
    centres = 0.9 * random.normal(size=(2, len(CLASSES), 32))
    shift = apart * random.normal(size=(2, 32))
    rgb, flow = (centres[k][label] + shift[k] * domain[:, None] + random.normal(size=(clips, 32)) for k in (0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, rgb=rgb.astype(np.float32), flow=flow.astype(np.float32), domain=domain.clip(0, 1), label=label)


def write_run(
    folder: Path,
    *,
    method: str = "mmsada",
    seed: int = 0,
    stages: tuple[int, int] = (60, 120),
    target_top1: float = 58.0,
    finished: bool = True,
    features: bool = True,
    shift: tuple[str, str] = ("K1", "K2"),
    lambda_d: float = 1.0,
    label: str | None = None,
) -> Path:
    """Writes a whole run folder, or (finished=False) one of a run that is still going; returns the folder."""
    random = np.random.RandomState(seed)
    folder.mkdir(parents=True, exist_ok=True)
    total, rows = sum(stages), []
    for step in range(1, total + 1):
        rows.append(_train_row(step, stages, method, random))
        if step % max(1, total // 9) == 0:
            place = {key: rows[-1][key] for key in ("stage", "step", "global_step")}
            for name, final in (("target/test", target_top1), ("source/test", 92.0)):
                top1 = 12.5 + (final - 12.5) * (step / total) ** 0.6 + 2 * random.normal()
                rows.append({"kind": "eval", **place, "set": name, "top1": top1, "segments": 72, "seconds": 3.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(
        CONFIG.format(method=method, seed=seed, folder=folder.name, source=shift[0], target=shift[1], lambda_d=lambda_d)
    )
    if features:
        write_features(folder / "features" / "before.npz", apart=1.0, seed=seed)
        write_features(folder / "features" / "after.npz", apart=0.3, seed=seed)
    if finished:
        about = {"method": method, **({"label": label} if label else {}), "seed": seed}
        write_result(
            folder, {**about, "source": [shift[0]], "target": [shift[1]]}, target_top1=target_top1, steps=total
        )
    return folder


def write_result(folder: Path, about: dict[str, Any], *, target_top1: float, steps: int) -> dict[str, Any]:
    """Writes result.json and returns it; `about` holds method, seed, source, target and perhaps a label."""
    seed = about["seed"]
    random = np.random.RandomState(seed)
    evaluations = {
        "target/test": _evaluation(target_top1, 72, random),
        "source/test": _evaluation(92.0, 72, random),
        "target/all": _evaluation(target_top1, 240, random),
    }
    result = {
        **about,
        "recipe": "released",
        "classes": CLASSES,
        "target_top1": evaluations["target/test"]["top1"],
        "source_top1": evaluations["source/test"]["top1"],
        "target_segments": 72,
        "source_segments": 72,
        "steps": steps,
        "seconds": 187.4,
        "clips_per_s": 36.2,
        "world_size": 2,
        "chance": 12.5,
        "evaluations": evaluations,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return result
