"""`mmsada ...`: every subcommand is a few lines that call its room."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmsada_hpc
from mmsada_hpc.config import config_hash, dump_config, load_config
from mmsada_hpc.config_keys import describe_keys
from mmsada_hpc.errors import UserError

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """A subcommand; its room is imported when it is asked for, so that `mmsada --help` needs no torch."""

    help: str
    room: Callable[[], tuple[Callable[[Parser], None], Run]]


def _config_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--config", type=Path, help="YAML of the run, a file or a name in configs/ (default: the defaults)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted keys of the config, e.g. train.stage1.lr=0.005 seed=1"
    )


def _config() -> tuple[Callable[[Parser], None], Run]:
    def arguments(parser: Parser) -> None:
        _config_arguments(parser)
        parser.add_argument("--explain", action="store_true", help="list every key with what it means")

    def run(args: argparse.Namespace) -> int:
        config = load_config(args.config, args.overrides)
        print(
            describe_keys(config) if args.explain else f"# config hash {config_hash(config)}\n{dump_config(config)}",
            end="",
        )
        return 0

    return arguments, run


def _train() -> tuple[Callable[[Parser], None], Run]:
    def arguments(parser: Parser) -> None:
        _config_arguments(parser)
        parser.epilog = "Alone, or on N ranks of this machine: mpiexec -n N mmsada train ..."

    def run(args: argparse.Namespace) -> int:
        from mmsada_hpc.train.job import run_job
        from mmsada_hpc.train.stop import Stopped

        try:
            run_job(args.config, args.overrides)
        except Stopped as stopped:
            return stopped.exit_code
        return 0

    return arguments, run


def _submit() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.submit import command

    return command.add_arguments, command.run


def _resume() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.submit import resume

    return resume.add_arguments, resume.run


def _status() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.jobs import status

    return status.add_arguments, status.run


def _logs() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.jobs import logs

    return logs.add_arguments, logs.run


def _cancel() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.jobs import cancel

    return cancel.add_arguments, cancel.run


def _prepare() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.data import prepare

    return prepare.add_arguments, prepare.run


def _inspect() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.data import inspect

    return inspect.add_arguments, inspect.run


def _check_data() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.data import check

    return check.add_arguments, check.run


def _bench() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.bench import command

    return command.add_arguments, command.run


def _scale() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.scaling import command

    return command.add_arguments, command.run


def _demo_data() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.data import demo

    return demo.add_arguments, demo.run


def _report() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.observe import report

    return report.add_arguments, report.run


def _table() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.observe import table

    return table.add_arguments, table.run


def _weights() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.model.weights import convert

    return convert.add_arguments, convert.run


def _doctor() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc.doctor import command

    return command.add_arguments, command.run


def _demo() -> tuple[Callable[[Parser], None], Run]:
    from mmsada_hpc import demo

    return demo.add_arguments, demo.run


COMMANDS = {
    "demo": Command("make toy kitchens, train source_only and mmsada on two ranks, write the report", _demo),
    "demo-data": Command("render the toy kitchens as real video (synthetic)", _demo_data),
    "prepare": Command("video, or EPIC frames, to a store", _prepare),
    "inspect": Command("what a store holds, as counts and a contact sheet; --verify checks every byte", _inspect),
    "weights": Command("Kinetics weights of other projects to ours and back, and what a file holds", _weights),
    "check-data": Command("everything wrong with a store, or with raw EPIC frames, frame by frame", _check_data),
    "config": Command("print the resolved config", _config),
    "train": Command("train and evaluate the run of a config", _train),
    "submit": Command("queue a run on a cluster, or start it on several ranks here", _submit),
    "status": Command("a table of runs: state, step, clips/s, accuracy, restarts; all about one run", _status),
    "logs": Command("what rank 0 of a run prints; -f goes on until the run ends, also across requeues", _logs),
    "cancel": Command("stop runs for good: their jobs save and are never requeued", _cancel),
    "resume": Command("go on with a run that was stopped, cancelled or failed, also on other nodes", _resume),
    "table": Command("methods by shift, the losses' ablation, single streams: mean and spread over seeds", _table),
    "bench": Command("what things cost, beside the plain alternative", _bench),
    "scale": Command("studies of large batches: plan, run and report them, and forecast more nodes", _scale),
    "doctor": Command("is this host, or every node, fit to train: each line ok, warn or fail with what to do", _doctor),
    "report": Command("one HTML page about one or more runs", _report),
}


def make_parser(chosen: str | None) -> Parser:
    """The parser; only the room of the `chosen` subcommand is imported."""
    parser = Parser(prog="mmsada", description="Train MM-SADA and its baselines, from a laptop to a Slurm cluster.")
    parser.add_argument("--version", action="version", version=f"mmsada-hpc {mmsada_hpc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            arguments, run = command.room()
            arguments(sub)
            sub.set_defaults(run=run)
    return parser


def _parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Options and `key=value` words in any order, which subcommands alone do not allow."""
    args, more = parser.parse_known_args(words)
    stray = [word for word in more if word.startswith("-") or "=" not in word]
    if stray or (more and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(stray or more)}")
    if more:
        args.overrides = [*args.overrides, *more]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; a user's mistake is one line on standard error and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        args = _parse(make_parser(chosen), words)
        code: int = args.run(args)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        if not str(error).startswith("MMSADA_KERNELS="):  # the kernels know nothing of this package's errors
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


if __name__ == "__main__":
    sys.exit(main())
