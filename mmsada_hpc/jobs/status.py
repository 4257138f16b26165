"""`mmsada status`: a table of runs, or all about one."""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from mmsada_hpc.errors import UserError
from mmsada_hpc.jobs.detail import detail
from mmsada_hpc.jobs.find import Found, find_runs
from mmsada_hpc.jobs.state import STATES
from mmsada_hpc.jobs.summary import Seen, look
from mmsada_hpc.jobs.table import count, table

_WATCH_S, _LEAST_WATCH_S = 5.0, 1.0
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada status`."""
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_OR_FOLDER", help="runs, or folders of runs at any depth (default: runs)"
    )
    parser.add_argument("--state", metavar="A,B", default="", help=f"only runs in these states: {', '.join(STATES)}")
    parser.add_argument("--json", action="store_true", help="one JSON array, for programs")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=_WATCH_S,
        metavar="SECONDS",
        help=f"draw it again every SECONDS ({_WATCH_S:.0f}) until Ctrl-C; put it last",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, or all about one run; returns the exit status."""
    states = _states(args.state)
    if args.watch is not None:
        return _watch(args.runs, states, args.watch, as_json=args.json)
    runs = find_runs(args.runs)
    seen = look(runs)
    if args.json:
        chosen = [summary.as_json() for summary in seen.summaries if not states or summary.state in states]
        print(json.dumps(chosen, indent=1))
        return 0
    print(_text(seen, states, is_one=_is_one(args.runs, runs), columns=_columns()))
    return 0


def _text(seen: Seen, states: Sequence[str], *, is_one: bool, columns: int | None) -> str:
    if is_one and not states:
        return detail(seen.facts[0], seen.summaries[0], seen.queue, columns=columns)
    chosen = [summary for summary in seen.summaries if not states or summary.state in states]
    silent = f"Slurm does not answer ({seen.queue.silent}): states by the files alone" if seen.queue.silent else ""
    notes = textwrap.wrap(silent, columns or max(1, len(silent)))
    if not chosen:
        return "\n".join([f"no run is {' or '.join(states)}; {count(seen.summaries)}", *notes])
    return "\n".join([table(chosen, columns=columns), *notes])


def _watch(words: Sequence[str], states: Sequence[str], seconds: float, *, as_json: bool) -> int:
    if as_json or not sys.stdout.isatty():
        raise UserError("--watch draws on a terminal; in a script, call `status --json` now and then")
    sys.stdout.write(_HOME + _CLEAR_BELOW)
    while True:
        begin = time.monotonic()
        runs = find_runs(words)
        size = shutil.get_terminal_size()
        text = _text(look(runs), states, is_one=_is_one(words, runs), columns=size.columns)
        lines = [f"{time.strftime('%H:%M:%S')}, every {seconds:g} s, Ctrl-C ends this", "", *text.splitlines()]
        if len(lines) >= size.lines:
            lines = [*lines[: size.lines - 3], f"... {len(lines) - size.lines + 3} more lines", lines[-1]]
        sys.stdout.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW)
        sys.stdout.flush()
        try:
            time.sleep(max(0.2, seconds - (time.monotonic() - begin)))
        except KeyboardInterrupt:
            return 0


def _is_one(words: Sequence[str], runs: Sequence[Found]) -> bool:
    """Whether a person asked for one run, and not for a folder that happens to hold one."""
    return len(words) == 1 and len(runs) == 1 and (runs[0].path == Path(words[0]) or not Path(words[0]).is_dir())


def _columns() -> int | None:
    """Of the terminal, or of $COLUMNS; None where the output goes to a file or a program."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def _states(text: str) -> list[str]:
    chosen = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in chosen if word not in STATES]
    if wrong:
        raise UserError(f"--state {wrong[0]}: no such state; choose from {', '.join(STATES)}")
    return chosen


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds; put runs before --watch") from None
    if value < _LEAST_WATCH_S:
        raise argparse.ArgumentTypeError(f"at least {_LEAST_WATCH_S:g} s")
    return value
