"""`mmsada table RUNS...`: the paper's three tables from the runs there are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.runs import find_runs, read_runs
from mmsada_hpc.observe.table_formats import FORMATS, as_terminal
from mmsada_hpc.observe.tables import Options, Tables, build_tables

_SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mmsada table`."""
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="folders of runs, or folders with runs at any depth")
    parser.add_argument("--set", default="target/test", metavar="SET", help="evaluated set (default: %(default)s)")
    parser.add_argument("--recall", action="store_true", help="add a column of mean class recall")
    parser.add_argument(
        "--paper", action="store_true", help="the paper's figures beside, each with its mark: nearly all are unverified"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: by the suffix of --out, else text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _print(tables: Tables, form: str) -> None:
    text = FORMATS[form](tables)
    if form == "text" and not _can_show(text):
        text = as_terminal(tables, unicode=False)
    print(text, end="")


def _write(path: Path, text: str) -> None:
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name the file to write")
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"--out {path}: cannot write ({error.strerror}); choose another file") from error
    print(f"table: {path}")


def run(args: argparse.Namespace) -> int:
    """`mmsada table`: prints the tables, or writes them and prints where."""
    runs = read_runs(find_runs(args.runs), metrics=False)
    tables = build_tables(runs, Options(set_name=args.set, recall=args.recall, paper=args.paper))
    form = args.format or (_SUFFIXES.get(args.out.suffix, "text") if args.out else "text")
    if args.out:
        _write(args.out, FORMATS[form](tables))
    else:
        _print(tables, form)
    return 0
