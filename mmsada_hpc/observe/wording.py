"""Numbers and names as a person reads them, the same in the terminal and on the report page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number (None and NaN stand for "not measured")."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """Seconds as a clock: 0:42, 3:12, 1:02:05, 2d 03:10."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(value: Any) -> str:
    """A percentage with one decimal, "-" where there is none."""
    return f"{value:.1f}" if is_number(value) else "-"


def standard_error(percentage: Any, segments: Any) -> float | None:
    """Binomial standard error, in percentage points, of an accuracy measured on `segments` segments."""
    if not is_number(percentage) or not is_number(segments) or segments <= 0:
        return None
    share = min(max(percentage / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / segments)


def with_error(percentage: Any, segments: Any) -> str:
    """`61.1 ± 11.5`: an accuracy and its binomial standard error, in percent."""
    error = standard_error(percentage, segments)
    return percent(percentage) if error is None else f"{percent(percentage)} ± {error:.1f}"


def joined(names: Any) -> str:
    """`P01+P22` from ["P01", "P22"] or from a single name."""
    return "+".join(str(name) for name in names) if isinstance(names, (list, tuple)) else str(names)


def in_report_order(evaluations: Mapping[str, Any]) -> list[str]:
    """Names of the evaluated sets, target first: it is what the run is for."""
    return sorted(evaluations, key=lambda name: (not name.startswith("target"), not name.endswith("/test"), name))


def method_name(result: Mapping[str, Any]) -> str:
    """`mmsada (paper)`, or with a label `mmsada (lambda_d 1), paper`."""
    recipe, label = result.get("recipe"), result.get("label")
    if label:
        return f"{label}, {recipe}" if recipe else str(label)
    return f"{result.get('method') or 'unknown method'}{f' ({recipe})' if recipe else ''}"


def headline(result: Mapping[str, Any]) -> str:
    """`mmsada (paper), P01 to P08, 8 classes, seed 0`, from what is known."""
    parts = [method_name(result)]
    if result.get("source") and result.get("target"):
        parts.append(f"{joined(result['source'])} to {joined(result['target'])}")
    if result.get("classes"):
        parts.append(f"{len(result['classes'])} classes")
    if result.get("seed") is not None:
        parts.append(f"seed {result['seed']}")
    return ", ".join(parts)


def cost(result: Mapping[str, Any]) -> str:
    """`400 steps, 2 ranks, 37.1 clips/s, 5:12`, from what is known."""
    parts = []
    if is_number(result.get("steps")):
        parts.append(f"{result['steps']} steps")
    if is_number(result.get("world_size")):
        parts.append(f"{result['world_size']} rank{'' if result['world_size'] == 1 else 's'}")
    if is_number(result.get("clips_per_s")):
        parts.append(f"{result['clips_per_s']:.1f} clips/s")
    if is_number(result.get("seconds")):
        parts.append(duration(result["seconds"]))
    return ", ".join(parts)


def streams(keys: Iterable[str], prefix: str) -> list[str]:
    """What follows `prefix` in the keys that have it: rgb and flow first, then any other stream by name."""
    names = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    return sorted(names, key=lambda name: (name != "rgb", name != "flow", name))
