"""Which run folders a person means: a folder, a folder of runs, or a run's name below `runs`."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.cluster.job_record import JOBS_FILE
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.metrics import METRICS_FILE
from mmsada_hpc.observe.record import RECORD_FILE

DEFAULT_FOLDER = "runs"
CONFIG_FILE = "config.yaml"
_SIGNS = (JOBS_FILE, METRICS_FILE, RECORD_FILE)
_MOST_NAMED = 5


@dataclass(frozen=True)
class Found:
    """A run folder, and the name that tables give it."""

    path: Path
    name: str


def find_runs(words: Sequence[str]) -> list[Found]:
    """The runs among and below `words`, each once; with no words, those below `runs`.

    Raises:
        UserError: a word is no run and no folder of runs; names the nearest, or what was looked for.
    """
    if not words and not Path(DEFAULT_FOLDER).is_dir():
        raise UserError(f"there is no folder {DEFAULT_FOLDER} here: give a run (its run.dir) or a folder of runs")
    found = [run for word in words or [DEFAULT_FOLDER] for run in _of_word(word, is_only=len(words) < 2)]
    return list({run.path.resolve(): run for run in reversed(found)}.values())[::-1]


def find_run(word: str) -> Path:
    """The one run that `word` is.

    Raises:
        UserError: none, or a folder of several.
    """
    found = _of_word(word, is_only=True)
    if len(found) == 1 and _is_same(found[0].path, word):
        return found[0].path
    names = [str(run.path) for run in found]
    raise UserError(f"{word} is a folder of runs, give one of its {len(found)}: {_some(names)}")


def _of_word(word: str, *, is_only: bool) -> list[Found]:
    path = Path(word)
    if not path.is_dir():
        return [Found(match, str(match)) for match in [_by_name(word)]]
    inside = sorted(_run_folders(path))
    if not inside:
        raise UserError(
            f"{word}: no run in it; a run is a folder, at any depth, with {CONFIG_FILE} and one of {', '.join(_SIGNS)}"
        )
    if inside == [path]:
        return [Found(path, str(path))]
    return [Found(run, str(run.relative_to(path)) if is_only else str(run)) for run in inside]


def _run_folders(top: Path) -> Iterator[Path]:
    """A run's own folders are not searched."""
    for folder, inner, files in os.walk(top):
        if CONFIG_FILE in files and any(sign in files for sign in _SIGNS):
            inner.clear()
            yield Path(folder)
        inner[:] = [name for name in inner if not name.startswith(".")]


def _by_name(word: str) -> Path:
    """The run whose folder ends in `word`, if there is one such; looks below what exists of the path, or `runs`."""
    parents = [parent for parent in Path(word).parents if parent.is_dir() and parent not in (Path("."), Path("/"))]
    top = parents[0] if parents else Path(DEFAULT_FOLDER)
    runs = sorted(_run_folders(top)) if top.is_dir() else []
    parts = Path(word).parts
    matches = [run for run in runs if run.parts[-len(parts) :] == parts]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{word} may be {_some([str(match) for match in matches])}: give more of the path")
    raise UserError(f"{word}: no such run{_nearest(word, runs) or f', and none below {top}'}")


def _nearest(word: str, runs: Sequence[Path]) -> str:
    """`; did you mean A, B?`, by the whole path or by the end of it."""
    if not runs:
        return ""
    by_text = {text: run for run in reversed(runs) for text in (str(run), run.name, "/".join(run.parts[-2:]))}
    near = difflib.get_close_matches(word, by_text, n=_MOST_NAMED, cutoff=0.6)
    names = list(dict.fromkeys(str(by_text[text]) for text in near))
    return f"; did you mean {_some(names)}?" if names else f"; there are {_some([str(run) for run in runs])}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _is_same(run: Path, word: str) -> bool:
    return not Path(word).is_dir() or run == Path(word)
