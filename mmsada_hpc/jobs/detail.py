"""All about one run: its jobs and starts, where its time went, who is slow, what it kept and said, what comes next."""

import textwrap
import time
from collections.abc import Iterator, Sequence

from mmsada_hpc.jobs.facts import Facts, checkpoint_words
from mmsada_hpc.jobs.output import last_clean_lines, output_of
from mmsada_hpc.jobs.queue import Queue
from mmsada_hpc.jobs.summary import Summary
from mmsada_hpc.jobs.table import where
from mmsada_hpc.observe.goodput import Goodput, read_goodput
from mmsada_hpc.observe.wording import duration, headline

_LOG_LINES, _MOST_ROWS = 6, 8
_LOG = "  | "
_PARTS = {
    "useful_s": "useful",
    "data_wait_s": "data wait",
    "evaluate_s": "evaluation",
    "checkpoint_s": "checkpoint",
    "start_s": "start",
    "restart_s": "restart",
    "lost_s": "lost",
    "other_s": "other",
}
_NEXT = {
    "running": ("logs -f {run}", "cancel {run}"),
    "saving": ("logs -f {run}",),
    "requeued": ("logs -f {run}", "cancel {run}"),
    "waiting": ("logs -f {run}", "cancel {run}"),
    "finished": (),
}
_GO_ON = ("resume {run}", "logs {run} --err")


def detail(facts: Facts, run: Summary, queue: Queue, *, columns: int | None) -> str:
    """The longer view of one run, in lines that fit the terminal."""
    lines = [_cut(line, columns) for part in _parts(facts, run, queue) for line in part]
    return "\n".join(lines)


def _parts(facts: Facts, run: Summary, queue: Queue) -> Iterator[list[str]]:
    yield [str(facts.path), *_about(facts), "", *_state(run)]
    if queue.silent:
        yield [f"           Slurm does not answer ({queue.silent}): this is what the files say"]
    yield from (["", *part] for part in (_jobs(facts, queue), _starts(facts)) if part)
    spent = read_goodput(facts.path)
    if spent is not None:
        yield ["", *_time(spent)]
        yield from (["", *part] for part in [_ranks(spent)] if part)
    yield ["", *_checkpoints(facts)]
    path = output_of(facts).path
    said = last_clean_lines(path, _LOG_LINES) if path is not None and path.exists() else []
    yield ["", f"log        {path}", *(f"{_LOG}{line}" for line in said)] if said else []
    yield ["", *_next(facts, run)]


def _about(facts: Facts) -> list[str]:
    method, data = (part if isinstance(part, dict) else {} for part in map(facts.config.get, ("method", "data")))
    known = {
        "method": method.get("name"),
        "recipe": facts.config.get("recipe"),
        "source": data.get("source"),
        "target": data.get("target"),
        "seed": facts.config.get("seed"),
    }
    return [headline({**known, **(facts.result or {})})] if method else []


def _state(run: Summary) -> list[str]:
    left = "" if run.eta_s is None else f", {duration(run.eta_s)} left"
    lines = [f"state      {run.state}{f': {run.note}' if run.note else ''}{left}"]
    if run.hosts:
        lines.append(f"where      {len(run.hosts)} rank{'s' * (len(run.hosts) > 1)} on {where(run.hosts)}")
    rate = "" if run.clips_per_s is None else f", {run.clips_per_s:.1f} clips/s"
    lines.append(
        f"step       {run.step}/{run.stage_steps} of stage {run.stage}, {run.global_step}/{run.steps} in all{rate}"
    )
    if run.top1 is not None:
        when = "in the end" if run.state == "finished" else "in the last evaluation"
        lines.append(f"top-1      {run.top1:.1f} % on the {run.top1_of} {when}")
    return lines


def _jobs(facts: Facts, queue: Queue) -> list[str]:
    lines = []
    for job in facts.job_ids[-_MOST_ROWS:]:
        record = next((record for record in facts.jobs if record.job_id == job), None)
        entry = queue.entries.get(job)
        state = "?" if entry is None else {"GONE": "gone from Slurm's memory"}.get(entry.state, entry.state)
        reason = f" ({entry.reason})" if entry and not entry.has_ended and entry.reason not in ("", "None") else ""
        size = f"{record.nodes} x {record.tasks_per_node}, {record.minutes} min" if record else "queued by hand"
        when = f", {_when(record.submitted)}" if record else ""
        lines.append(f"{job}  {state}{reason}  {size}{when}")
    return _block("jobs", lines, len(facts.job_ids))


def _starts(facts: Facts) -> list[str]:
    lines = []
    for number, start in list(enumerate(facts.starts, 1))[-_MOST_ROWS:]:
        ranks = start.get("world_size", "?")
        name = str(start.get("start", "")).rpartition("-")[0]
        word = f"  {name}" if name else ""
        lines.append(f"{number}{word}  {str(start.get('started', '?'))[:19]}  {ranks} rank(s) by {start.get('host')}")
    return _block("starts", lines, len(facts.starts))


def _block(title: str, lines: Sequence[str], total: int) -> list[str]:
    """Lines beside a title; the oldest are left out where there are many."""
    left_out = [f"{total - len(lines)} earlier"] if total > len(lines) else []
    texts = [*left_out, *lines]
    return [f"{title if index == 0 else '':<11}{text}" for index, text in enumerate(texts)]


def _time(spent: Goodput) -> list[str]:
    """Where the time went, in shares of the whole."""
    lines = [f"time       {duration(spent.total_s)} in all, goodput {100 * spent.goodput:.0f} %"]
    for name, word in _PARTS.items():
        seconds = getattr(spent, name)
        if round(seconds):
            steps = f"  ({spent.lost_steps} updates done again)" if name == "lost_s" and spent.lost_steps else ""
            lines.append(f"           {word:<11}{duration(seconds):>9} {100 * seconds / spent.total_s:5.1f} %{steps}")
    return lines


def _ranks(spent: Goodput) -> list[str]:
    """The slowest ranks first."""
    if len(spent.stragglers) < 2:
        return []
    by_score = sorted(spent.stragglers, key=lambda straggler: -straggler.score)
    lines = [
        f"rank {one.rank:<4} {one.host:<20} {one.own_s:8.3f} s  {one.score:5.2f}x" for one in by_score[:_MOST_ROWS]
    ]
    more = len(by_score) - len(lines)
    title = "own time   of an update, and over the median of all ranks; the others wait for the slowest"
    return [title, *(f"           {line}" for line in lines), *([f"           {more} more"] if more else [])]


def _checkpoints(facts: Facts) -> list[str]:
    if not facts.checkpoints:
        return ["saved      no checkpoint yet"]
    newest = facts.path / "checkpoints" / facts.checkpoints[-1]
    others = [checkpoint_words(name) for name in facts.checkpoints[:-1]]
    words = f"saved      {checkpoint_words(newest.name)} ({_when(newest.stat().st_mtime)})"
    return [words + (f"; also {', '.join(others[-3:])}" if others else "")]


def _next(facts: Facts, run: Summary) -> list[str]:
    if run.state == "finished":
        return [f"next       mmsada report {facts.path}"]
    words = _NEXT.get(run.state, _GO_ON)
    return _block("next", [f"mmsada {word.format(run=facts.path)}" for word in words], len(words))


def _when(moment: float) -> str:
    """`12:03, 0:42 ago`."""
    ago = max(0.0, time.time() - moment)
    pattern = "%H:%M" if ago < 43_200 else "%Y-%m-%d %H:%M"
    return f"{time.strftime(pattern, time.localtime(moment))}, {duration(ago)} ago"


def _cut(line: str, columns: int | None) -> str:
    """A long line goes on below, in from the edge."""
    if columns is None or len(line) <= columns:
        return line
    if line.startswith(_LOG):
        return line[: columns - 3] + "..."
    return "\n".join(textwrap.wrap(line, columns, subsequent_indent=" " * 11, break_on_hyphens=False))
