"""The process of the checks: reads what is asked from standard input, answers with one JSON line per check."""

import importlib
import json
import os
import sys
from typing import Any

from mmsada_hpc.doctor.report import Ask, Line


def answer(name: str, ask: Ask) -> list[Line]:
    """A check's lines; what it raises becomes one."""
    try:
        found: list[Line] = importlib.import_module(f"mmsada_hpc.doctor.{name}").check(ask)
        return found
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return [
            Line(
                name,
                "fail",
                f"the check raised {type(error).__name__}{f': {text}' if text else ''}",
                "see what the message names; where a library is broken, install again on this host",
            )
        ]


def main() -> None:
    """Answer on the real standard output; libraries print on the error output instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked: dict[str, Any] = json.load(sys.stdin)
    ask = Ask(**asked["ask"])
    for name in asked["checks"]:
        lines = [line.to_json() for line in answer(name, ask)]
        print(json.dumps({"check": name, "lines": lines}), file=answers, flush=True)


if __name__ == "__main__":
    main()
