"""The part of a run's report about what it was scored on: sets, classes, confusion, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmsada_hpc.observe.compare import target_row
from mmsada_hpc.observe.page import figure, note, table
from mmsada_hpc.observe.panels import confusion_svg, reliability_svg
from mmsada_hpc.observe.runs import Row, Run
from mmsada_hpc.observe.wording import in_report_order, is_number, percent, streams, with_error


def evaluation_table(run: Run) -> str:
    """Every evaluated set: fused and single streams, recall, and what the other heads make of it."""
    if not run.evaluations:
        return note("No evaluation yet.")
    keys = {key for row in run.evaluations.values() for key in row}
    scored, domains = streams(keys, "top1_"), streams(keys, "domain_acc_")
    probes = [f"domain_acc_{name}" for name in domains] + (["corr_acc"] if "corr_acc" in keys else [])
    rows = []
    for name in in_report_order(run.evaluations):
        row = run.evaluations[name]
        scores = [percent(row.get(key)) for key in (*(f"top1_{stream}" for stream in scored), "mean_recall", *probes)]
        rows.append([name, with_error(row.get("top1"), row.get("segments")), str(row.get("segments", "-")), *scores])
    heads = [f"domain {name}" for name in domains] + (["corr."] if "corr_acc" in keys else [])
    header = ["set", "fused %", "segments", *scored, "recall", *heads]
    return table(header, rows) + note(_reading(scored, has_domain=bool(domains), has_corr="corr_acc" in keys))


def _reading(scored: Sequence[str], *, has_domain: bool, has_corr: bool) -> str:
    parts = ["fused: top-1 ± one binomial standard error."]
    parts += [f"{', '.join(scored)}: the joint model's streams, scored alone."] if scored else []
    parts.append("recall: mean over the classes.")
    if has_domain:
        parts.append(
            "domain: clips that the discriminator puts into the domain they come from; near 50 on average over a "
            "source and a target set, it cannot tell them apart."
        )
    parts += ["corr.: pairs that the correspondence head tells right; guessing gives 50."] if has_corr else []
    return " ".join(parts)


def class_names(run: Run, count: int) -> list[str]:
    """The names of the first `count` classes, numbered where they are not known."""
    classes = run.about.get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    return names[:count] + [f"class {index}" for index in range(len(names), count)]


def _confusion_of(row: Row) -> list[list[int]] | None:
    matrix = row.get("confusion")
    if not isinstance(matrix, list) or not matrix or len({len(line) for line in matrix}) != 1:
        return None
    return matrix


def confusion(run: Run) -> str:
    """The confusion matrix of the target."""
    matrix = _confusion_of(target_row(run))
    if matrix is None:
        return note("No confusion matrix: none in result.json.")
    drawing = confusion_svg(matrix, class_names(run, len(matrix)))
    caption = "Rows: true class. Number: segments. Shade: share of the row. Right: recall in percent."
    return figure(f"Confusion on {run.target_set}", drawing, caption=caption)


def twin_baseline(run: Run, runs: Sequence[Run]) -> Run | None:
    """The finished source_only run of the same shift, seed and evaluated set; None where none is among `runs`."""
    if run.label == "source_only":
        return None
    for other in runs:
        same = (other.shift, other.about.get("seed"), other.target_set) == (
            run.shift,
            run.about.get("seed"),
            run.target_set,
        )
        if (
            other.is_finished
            and other.label == "source_only"
            and same
            and other.result.get("recipe") == run.about.get("recipe")
        ):
            return other
    return None


def _change(value: Any, before: Any) -> str:
    return f"{value - before:+.1f}" if is_number(value) and is_number(before) else "-"


def class_table(run: Run, runs: Sequence[Run]) -> str:
    """Recall of every class on the target, and what it gained on source_only's."""
    row = target_row(run)
    matrix, recall = _confusion_of(row), row.get("per_class_recall")
    if matrix is None or not isinstance(recall, list) or len(recall) != len(matrix):
        return ""
    baseline = twin_baseline(run, runs)
    before = target_row(baseline).get("per_class_recall") if baseline else None
    is_compared = isinstance(before, list) and len(before) == len(recall)
    rows = []
    for index, name in enumerate(class_names(run, len(recall))):
        change = [percent(before[index]), _change(recall[index], before[index])] if is_compared and before else []
        rows.append([name, str(sum(matrix[index])), percent(recall[index]), *change])
    header = ["class", "segments", "recall %", *(["source_only", "change"] if is_compared else [])]
    caption = ""
    if is_compared and baseline:
        caption = f"source_only: the run {baseline.name}, of the same shift and seed. Change in percentage points."
    return figure(f"Recall by class on {run.target_set}", table(header, rows), caption=caption)


def reliability_chart(run: Run) -> str:
    """Accuracy against confidence on the target."""
    found = target_row(run).get("reliability")
    bins = found.get("bins") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not bins:
        return note("No reliability curve: none in result.json.") if run.is_finished else ""
    caption = (
        f"Expected calibration error {percent(found.get('ece'))} %. A point is the mean of one tenth of the confidence "
        "(the fused softmax's largest value), its size grows with the number of segments; on the diagonal, confidence "
        "can be taken at its word, below it the run is too sure."
    )
    return figure(f"Reliability on {run.target_set}", reliability_svg(bins), caption=caption)
