"""`mmsada scale WORD`: a study of large batches from its plan to its forecast; each word's room is imported when asked.

A room has `HELP`, `add_arguments(parser)` and `run(args)`, which returns the exit status.
"""

import argparse
import importlib
from typing import Any

WORDS = {
    "plan": "every cell of a study: batch, rates, updates, expected cost, and why one cannot run",
    "run": "run or queue the cells of a study that are not finished",
    "report": "one page and CSV about the runs of a study",
    "predict": "time and efficiency on nodes one does not have",
    "validate": "predictions beside what was measured on shaped links",
}
_MODULES = {"predict": "forecast.command", "validate": "validation"}


class _Room(argparse.ArgumentParser):
    """A parser that adds a room's options when words are given to it, and takes `key=value` words behind options."""

    room = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        room, self.room = self.room, ""
        if room:
            module = _module(room)
            self.description = module.HELP
            module.add_arguments(self)
        found, more = super().parse_known_args(args, namespace)
        if hasattr(found, "overrides"):
            late = [word for word in more if "=" in word and not word.startswith("-")]
            found.overrides = [*found.overrides, *late]
            more = [word for word in more if word not in late]
        return found, more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `mmsada scale`."""
    rooms = parser.add_subparsers(dest="word", required=True, metavar="WORD", parser_class=_Room)
    for word, help in WORDS.items():
        rooms.add_parser(word, help=help).room = word


def run(args: argparse.Namespace) -> int:
    """What the word says; returns the exit status."""
    code: int = _module(args.word).run(args)
    return code


def _module(word: str) -> Any:
    return importlib.import_module(f"mmsada_hpc.scaling.{_MODULES.get(word, word)}")
