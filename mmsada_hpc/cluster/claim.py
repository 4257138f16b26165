"""Claim a run folder for one start of a run: shows that every host sees the same folder, and that no former start,
cut off from the others but still alive, goes on writing there.
"""

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from mmsada_hpc.cluster.join import gather, say_to_all
from mmsada_hpc.cluster.world import World
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError

_CLAIM = "claim.json"
# A folder that is shared by NFS may show a new file late.
_PATIENCE_S = 15.0


def claim(run_dir: Path, world: World, *, start: str) -> str:
    """Rank 0 writes a token into the run folder, every rank reads it; returns this start's own name.

    Args:
        start: job and restart, from `slurm_start_id`.

    Raises:
        UserError: on every rank, naming the hosts that do not see the folder of rank 0.
    """
    if world.rank == 0:
        token = f"{start}-{uuid.uuid4().hex[:8]}"
        try:
            write_atomically(run_dir / _CLAIM, json.dumps({"start": token, "host": world.host}).encode())
        except OSError as error:
            raise UserError(
                f"run.dir={run_dir} cannot be written ({error.strerror}): free space, or choose another run.dir"
            ) from None
    else:
        token = None
    token = say_to_all(token)
    seen = gather(world, (_sees(run_dir, token), world.host))
    blind = sorted({host for sees, host in seen if not sees})
    if blind:
        raise UserError(
            f"run.dir={run_dir} is not shared: {', '.join(blind)} does not see what rank 0 wrote there on "
            f"{seen[0][1]}; choose a folder on a file system that all nodes mount"
        )
    return token


def holds_claim(run_dir: Path, start: str) -> Callable[[], None]:
    """A check for whoever is about to write: raises UserError once another start has taken the run over."""

    def check() -> None:
        try:
            found = json.loads((run_dir / _CLAIM).read_text())
        except (OSError, ValueError):
            return  # the write that follows tells what is wrong with the folder
        if found.get("start") != start:
            raise UserError(
                f"{run_dir} was taken over by another start of this run ({found.get('start')} on {found.get('host')}): "
                f"this one, {start}, writes nothing more"
            )

    return check


def _sees(run_dir: Path, token: str) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.listdir(run_dir)  # makes an NFS client look again
            if json.loads((run_dir / _CLAIM).read_text())["start"] == token:
                return True
        except (OSError, ValueError, KeyError):
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
