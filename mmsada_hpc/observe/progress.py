"""The live line of a loop: rewritten in place in a terminal, a whole line now and then in a log file or pipe."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from mmsada_hpc.observe.screen import Screen
from mmsada_hpc.observe.wording import duration, streams

RECENT_STEPS = 50
# Named and ordered as a person reads them; any other loss_* key follows under its own name.
_SHORT_NAMES = {"loss_ce": "ce", "loss_corr": "corr"}
_DOMAIN = "loss_domain_"


def _number(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return "nan"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _losses(row: Mapping[str, Any]) -> tuple[str, str]:
    """The total, and the terms in brackets; empty where the row has none."""
    names = {**_SHORT_NAMES, **{_DOMAIN + stream: f"dom-{stream}" for stream in streams(row, _DOMAIN)}}
    others = [key for key in row if key.startswith("loss_") and key not in names]
    keys = [*(key for key in names if key in row), *others]
    terms = [f"{names.get(key, key.removeprefix('loss_'))} {_number(row[key])}" for key in keys]
    total = f"loss {_number(row['loss'])}" if "loss" in row else ""
    return total, f"({' '.join(terms)})" if len(terms) > 1 else ""


def fit(parts: list[tuple[int, str]], *, columns: int) -> str:
    """Joins the texts of (rank, text), leaving out the highest ranks until the line is under `columns` characters.

    Rank 0 always stays, cut short if it must be: a line that wraps cannot be rewritten in place.
    """
    kept = [(rank, text) for rank, text in parts if text]
    while len(kept) > 1 and sum(len(text) + 2 for _, text in kept) - 2 >= columns:
        worst = max(kept, key=lambda part: part[0])
        if worst[0] == 0:
            break
        kept.remove(worst)
    line = "  ".join(text for _, text in kept).replace("  (", " (")
    return line[: max(1, columns - 1)]


class Progress:
    """Progress of a loop of `total` steps (or any other `unit`), e.g. `Progress(screen, 400, "stage 2/2")`.

    In a terminal one line is rewritten, at most every `redraw_seconds`; elsewhere a whole line is printed at the start,
    every `log_seconds` and at the end. The time left comes from the median of the recent steps, so neither the first
    step (warm-up, compilation) nor a pause for an evaluation disturbs it.

    `start` is the step that a resumed loop begins after. `keep=False` is for a short loop inside another one: its line
    goes away at the end, and a log file sees it only if it takes longer than `log_seconds`.
    """

    def __init__(
        self,
        screen: Screen,
        total: int,
        label: str,
        *,
        start: int = 0,
        unit: str = "step",
        log_seconds: float = 15.0,
        redraw_seconds: float = 0.1,
        keep: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen, self._total, self._label, self._unit, self._keep = screen, total, label, unit, keep
        self._period = redraw_seconds if screen.is_tty else log_seconds
        self._clock = clock
        self._step = start
        self._row: Mapping[str, Any] = {}
        self._seen_at: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=RECENT_STEPS)
        self._shown_step, self._drawn_at = -1, clock()
        if self._is_lasting:
            self._draw()

    def update(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """Says that `step` steps are done. `row` is a line of metrics.jsonl; its losses, `clips_per_s`, `step_s` and
        `data_wait_s` are shown where present."""
        now = self._clock()
        # The first update is shown at once: it is the news that the loop got through its start-up
        is_first = self._seen_at is None
        if self._seen_at is not None and step > self._step:
            self._step_seconds.append((now - self._seen_at) / (step - self._step))
            self._rows.append(row or {})
        self._seen_at, self._step, self._row = now, step, row or self._row
        if (is_first and self._is_lasting) or now - self._drawn_at >= self._period:
            self._draw()

    def message(self, text: str) -> None:
        """Prints lines above the live line."""
        self._screen.print(text)

    def close(self) -> None:
        """Shows the last state and leaves it standing (or takes the line away, with `keep=False`)."""
        if self._is_lasting and self._shown_step != self._step:
            self._draw()
        if self._keep:
            self._screen.keep_live()
        else:
            self._screen.set_live("")

    def line(self, *, columns: int) -> str:
        """The line as it stands, cut to fit `columns` characters by leaving out the least important parts."""
        position = f"{self._unit} {self._step}/{self._total}"
        total, terms = _losses(self._row)
        return fit(
            [
                (0, self._label),
                (0, position),
                (2, total),
                (5, terms),
                (3, self._rate()),
                (4, self._wait()),
                (1, self._left()),
            ],
            columns=columns,
        )

    @property
    def _is_lasting(self) -> bool:
        return self._keep or self._screen.is_tty

    def _rate(self) -> str:
        rates = [row["clips_per_s"] for row in self._rows or [self._row] if row.get("clips_per_s")]
        return f"{statistics.median(rates):.1f} clips/s" if rates else ""

    def _wait(self) -> str:
        timed = [row for row in self._rows or [self._row] if row.get("step_s") and row.get("data_wait_s") is not None]
        if not timed:
            return ""
        share = sum(row["data_wait_s"] for row in timed) / sum(row["step_s"] for row in timed)
        return f"wait {100 * share:.0f}%"

    def _left(self) -> str:
        if self._step >= self._total:
            return "done"
        if not self._step_seconds:
            return "eta -:--"
        return f"eta {duration(statistics.median(self._step_seconds) * (self._total - self._step))}"

    def _draw(self) -> None:
        self._drawn_at, self._shown_step = self._clock(), self._step
        if self._screen.is_tty:
            self._screen.set_live(self.line(columns=self._screen.columns))
        else:
            self._screen.print(self.line(columns=10_000))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
