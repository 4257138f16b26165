"""The table a run ends with in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmsada_hpc.observe.wording import cost, headline, in_report_order, is_number, percent, streams, with_error


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def result_table(result: Mapping[str, Any]) -> str:
    """result.json as aligned lines: accuracies in percent (fused ± one binomial standard error), the cost below."""
    evaluations = result.get("evaluations") or {}
    scored = streams({key for row in evaluations.values() for key in row}, "top1_")
    rows = [["top-1 %", "fused", *scored, "mean recall", "segments"]]
    for name in in_report_order(evaluations):
        row = evaluations[name]
        scores = [percent(row.get(key)) for key in (*(f"top1_{s}" for s in scored), "mean_recall")]
        rows.append([name, with_error(row.get("top1"), row.get("segments")), *scores, str(row.get("segments", "-"))])
    if is_number(result.get("chance")):
        rows.append(["chance", percent(result["chance"]), *[""] * (len(rows[0]) - 2)])
    table = [f"  {line}".rstrip() for line in _aligned(rows)]
    return "\n".join([headline(result), "", *table, "", cost(result)]).rstrip()
