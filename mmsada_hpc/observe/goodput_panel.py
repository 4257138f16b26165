"""The report's panels on time: what it went to over all starts of a run, and which rank the others wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsada_hpc.observe import svg
from mmsada_hpc.observe.goodput import PARTS, Goodput, StartParts, Straggler
from mmsada_hpc.observe.page import colour, details, figure, key, note, table
from mmsada_hpc.observe.wording import duration

# From this score on a rank is called slow
SLOW = 1.2
_MOST_RANKS = 16
_WIDTH, _BAR = 400.0, 24.0
_LETTERS = 24


@dataclass(frozen=True)
class _Part:
    """How a part of the time is named, drawn and explained."""

    name: str
    colour: str
    meaning: str


_WORDS = {
    "useful_s": _Part("useful steps", colour(2), "Updates whose result the run still has. Its share is the goodput."),
    "data_wait_s": _Part("data wait", colour(4), "Within those updates: rank 0 waited for clips to be decoded."),
    "evaluate_s": _Part("evaluation", colour(0), "The loop stood still to score sets of clips."),
    "checkpoint_s": _Part("checkpoint", colour(3), "The loop stood still to save; what is written beside it is free."),
    "start_s": _Part("start-up", colour(5), "From the begin of the process to its first update, in every start anew."),
    "restart_s": _Part("restart", colour(6), "No process ran: from a start's last sign of life to the next start."),
    "lost_s": _Part("lost work", colour(1), "Updates that no checkpoint held when a start ended, so they ran again."),
    "other_s": _Part("other", "var(--rule)", "The rest: the end of a start, and what it did between the parts above."),
}
_IN_START = [name for name in PARTS if name != "restart_s"]


def goodput_panels(found: Goodput | None) -> str:
    """Both panels and what their words mean, as HTML; nothing where the run has no ledger."""
    if found is None or found.total_s <= 0:
        return ""
    figures = [_time_figure(found), *([_rank_figure(found)] if len(found.stragglers) > 1 else [])]
    return (
        f'<h3>Where the time went</h3><div class="grid">{"".join(figures)}</div>{_parts_table(found)}'
        f"{_lost_note(found)}{_starts_table(found)}"
    )


def _share(seconds: float, found: Goodput) -> str:
    share = 100 * seconds / found.total_s
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def _shown(found: Goodput) -> list[str]:
    return [name for name in PARTS if getattr(found, name) > 0]


def _swatch(css_colour: str) -> str:
    return f'<rect x="4" y="0" width="12" height="12" rx="2" style="fill:{css_colour}"/>'


def _time_figure(found: Goodput) -> str:
    legend = key([(_swatch(_WORDS[name].colour), _WORDS[name].name) for name in _shown(found)])
    caption = "Shares of the whole time; a part names itself when pointed at."
    if found.starts > 1:
        caption += (
            " Below, the same over the clock: a block is a start, with its number above. Within a block the parts are "
            "summed, not in the order in which they happened; between blocks no process ran."
        )
    return figure("Time over all starts", _time_svg(found), legend=legend, caption=caption)


def _time_svg(found: Goodput) -> str:
    scale, x, parts = _WIDTH / found.total_s, 0.0, list[str]()
    for name in PARTS:
        seconds = getattr(found, name)
        width = seconds * scale
        hint = f"{_WORDS[name].name}: {duration(seconds)}, {_share(seconds, found)}"
        parts.append(svg.rectangle(x, 18, width, _BAR, _WORDS[name].colour, hint=hint))
        if width >= 31:
            parts.append(svg.text(x + width / 2, 13, _share(seconds, found), kind="tick", anchor="middle"))
        x += width
    bottom = 18 + _BAR
    if found.starts > 1:
        parts += _clock(found, top=bottom + 24, scale=scale)
        bottom += 24 + _BAR
    return svg.drawing(
        [*parts, *_time_axis(found.total_s, bottom, scale)], width=_WIDTH, height=bottom + 34, label="Time by part"
    )


def _clock(found: Goodput, *, top: float, scale: float) -> list[str]:
    """The starts as blocks on the axis of the whole time."""
    x, labelled, parts = 0.0, -20.0, list[str]()
    for number, start in enumerate(found.history, start=1):
        gap = start.restart_s * scale
        if gap:
            hint = f"before start {number}: {duration(start.restart_s)} without a process"
            parts.append(svg.rectangle(x, top + _BAR / 2 - 2, gap, 4, _WORDS["restart_s"].colour, hint=hint))
        x += gap
        parts.append(svg.stroke(f"M{x:.1f} {top - 5}V{top + _BAR}", "var(--ink)", width=1))
        if x - labelled > 16:
            anchor, aside = ("start", 2) if x < _WIDTH - 12 else ("end", -2)
            parts.append(svg.text(x + aside, top - 4, str(number), kind="mark", anchor=anchor))
            labelled = x
        for name in _IN_START:
            width = getattr(start, name) * scale
            hint = f"start {number} ({_ending(start, found)}), {_WORDS[name].name}: {duration(getattr(start, name))}"
            parts.append(svg.rectangle(x, top, width, _BAR, _WORDS[name].colour, hint=hint))
            x += width
    return parts


def _time_axis(total_s: float, y: float, scale: float) -> list[str]:
    unit, name = next(((s, n) for s, n in ((3600, "hours"), (60, "minutes")) if total_s >= 2 * s), (1, "seconds"))
    parts = [svg.styled(f"M0 {y + 4:.1f}H{_WIDTH}", "axis")]
    for value in svg.ticks(0, total_s / unit):
        x = value * unit * scale
        anchor = "start" if x < 8 else "end" if x > _WIDTH - 12 else "middle"
        parts.append(svg.text(x, y + 17, svg.tick_label(value), kind="tick", anchor=anchor))
    return [*parts, svg.text(_WIDTH / 2, y + 30, f"{name} since the first begin", kind="name", anchor="middle")]


def _parts_table(found: Goodput) -> str:
    rows = [
        [_WORDS[name].name, duration(getattr(found, name)), _share(getattr(found, name), found), _WORDS[name].meaning]
        for name in _shown(found)
    ]
    rows.append(["in all", duration(found.total_s), "100.0 %", "From the first begin to the last sign of life."])
    last = frozenset([len(rows) - 1])
    return table(["part", "time", "share", "what it is"], rows, mean_rows=last, free_columns=frozenset([3]))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lost_note(found: Goodput) -> str:
    if found.starts == 1:
        return note("One start, never interrupted." if found.history[0].ended == "finished" else "One start so far.")
    between = f"{_counted(found.starts, 'start')}; {duration(found.restart_s)} passed between them"
    if not found.lost_steps:
        return note(f"{between}, and no update was lost.")
    again = f"{_counted(found.lost_steps, 'update')} had to run again ({duration(found.lost_s)} of work)"
    return note(f"{between}. {again}.")


def _ending(start: StartParts, found: Goodput) -> str:
    if start.ended is not None:
        return start.ended
    return "no last word yet" if start is found.history[-1] else "killed"


def _starts_table(found: Goodput) -> str:
    if found.starts == 1:
        return ""
    rows, before = [], 0.0
    for number, start in enumerate(found.history, start=1):
        before += start.restart_s
        useful = f"{100 * start.useful_s / start.total_s:.1f} %" if start.total_s else "-"
        cells = [str(number), start.name, _ending(start, found), duration(before), duration(start.total_s)]
        cells += [str(start.ranks), str(start.steps), str(start.lost_steps), duration(start.start_s), useful]
        rows.append([*cells, f"{duration(start.restart_s)} before" if number > 1 else "-"])
        before += start.total_s
    header = ["", "start", "ended", "begins at", "lasts", "ranks", "updates", "lost", "start-up", "useful", "gap"]
    return details(f"Every start ({found.starts})", table(header, rows, text_columns=3))


def _rank_figure(found: Goodput) -> str:
    slowest = sorted(found.stragglers, key=lambda rank: (-rank.score, rank.rank))
    shown = slowest[:_MOST_RANKS]
    caption = _slowest(slowest[0], found)
    if len(slowest) > len(shown):
        caption += f" The {len(shown)} slowest of {len(slowest)} ranks are shown."
    caption += (
        " A score is a rank's own time for an update, before it waits for the others, over the median of the ranks: "
        "bars in the latest 50 updates, strokes over the whole start. The update as a whole takes equally long on all."
    )
    return figure("Ranks: who the others wait for", _rank_svg(shown, found.whole_start), caption=caption)


def _slowest(slowest: Straggler, found: Goodput) -> str:
    where = f"rank {slowest.rank} on {slowest.host}"
    middle = slowest.own_s / slowest.score if slowest.score else 0.0
    times = f"{slowest.own_s:.3g} s an update against {middle:.3g} s"
    if slowest.score < SLOW:
        return f"No rank is slow: the slowest, {where}, needs {slowest.score:.2f} times the median ({times})."
    return (
        f"{where[0].upper()}{where[1:]} is slow: {slowest.score:.2f} times the median ({times}), so every update takes "
        f"about {slowest.own_s - middle:.2g} s longer on all {len(found.stragglers)} ranks."
    )


def _rank_svg(shown: Sequence[Straggler], whole_start: Sequence[Straggler]) -> str:
    names = [_shortened(f"rank {rank.rank} · {rank.host}") for rank in shown]
    left, row, top = 12 + 6.0 * max(len(name) for name in names), 20.0, 18.0
    whole = {rank.rank: rank.score for rank in whole_start}
    most = max(1.25, *(max(rank.score, whole.get(rank.rank, 0.0)) for rank in shown))
    scale, bottom = (_WIDTH - left - 88) / most, top + row * len(shown)
    parts = []
    for index, (name, rank) in enumerate(zip(names, shown, strict=True)):
        y = top + row * index
        fill = colour(1) if rank.score >= SLOW else colour(0)
        hint = f"rank {rank.rank} on {rank.host}: {rank.own_s:.4g} s of its own an update, score {rank.score:.2f}"
        parts.append(svg.text(left - 8, y + 13.5, name, kind="tick", anchor="end"))
        parts.append(svg.rectangle(left, y + 4, rank.score * scale, row - 8, fill, hint=hint))
        if rank.rank in whole:
            parts.append(svg.stroke(f"M{left + whole[rank.rank] * scale:.1f} {y + 1}v{row - 2}", "var(--ink)", width=2))
        parts.append(svg.text(_WIDTH, y + 13.5, f"{rank.score:.2f} · {rank.own_s:.3g} s", kind="tick", anchor="end"))
    middle = left + scale
    parts.append(svg.styled(f"M{middle:.1f} {top - 4}V{bottom}", "change"))
    parts.append(svg.text(middle, top - 7, "median", kind="mark", anchor="middle"))
    parts.append(svg.text(_WIDTH, bottom + 14, "score · own time an update", kind="name", anchor="end"))
    return svg.drawing(parts, width=_WIDTH, height=bottom + 22, label="Straggler score of each rank")


def _shortened(name: str) -> str:
    return name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
