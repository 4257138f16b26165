"""Queue a training run: `python launch/submit.py --config configs/epic/d1_d2.yaml --nodes 4` (or `mmsada submit`)."""

import importlib.util
import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def use_checkout_environment() -> None:
    """Where this Python lacks the package, start again with the one that `make install` set up."""
    python = CHECKOUT / ".venv" / "bin" / "python"
    if importlib.util.find_spec("mmsada_hpc") is not None:
        return
    if not python.exists() or Path(sys.prefix) == python.parent.parent:
        sys.exit(f"error: mmsada_hpc is not installed for {sys.executable}: run `make install` in {CHECKOUT}")
    os.execv(python, [str(python), *sys.argv])


if __name__ == "__main__":
    use_checkout_environment()
    from mmsada_hpc.submit.command import main

    sys.exit(main())
