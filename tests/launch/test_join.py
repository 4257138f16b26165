"""Two real processes find each other under every launcher that one machine has."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from mmsada_hpc.cluster.join import agree, join, leave
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.errors import UserError

BIN = Path(sys.executable).parent
SUM_OVER_RANKS = """
import os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from mmsada_hpc.cluster.join import agree, join, leave
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.errors import UserError

world = join(find_world(), timeout=timedelta(seconds=60))
number = torch.tensor([world.rank + 1.0])
dist.all_reduce(number)
agree(world, "equal", what="config")
print(f"{world.launcher} sum={number.item():.0f} network={os.environ['GLOO_SOCKET_IFNAME']}", flush=True)
try:
    agree(world, "abc" if world.rank else "def", what="store")
except UserError as error:
    print(error, flush=True)
leave()
"""
DIFFER = "store is not the same on all ranks: 1 of 2 have def, but rank 1 on"


def clean_environ() -> dict[str, str]:
    prefixes = ("SLURM", "PMI", "MPI", "OMPI", "SUBMITIT", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC")
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)} | {"OMP_NUM_THREADS": "1"}


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], env=clean_environ(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "sum_over_ranks.py"
    path.write_text(SUM_OVER_RANKS)
    return path


def test_two_ranks_under_mpiexec_agree_on_an_address_and_reduce(script: Path) -> None:
    if not (BIN / "mpiexec").exists():
        pytest.skip("no mpiexec in this environment: install the extra `mpi`")
    out = run(BIN / "mpiexec", "-n", "2", sys.executable, script)
    assert out.count("mpiexec sum=3 network=lo") == 2
    assert out.count(DIFFER) == 2


def test_two_ranks_under_torchrun_reduce(script: Path) -> None:
    out = run(BIN / "torchrun", "--standalone", "--nproc-per-node", "2", script)
    assert out.count("torchrun sum=3 network=lo") == 2
    assert out.count(DIFFER) == 2


def test_a_process_alone_has_a_group_too_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - set(clean_environ()):
        monkeypatch.delenv(name)
    before = dict(os.environ)
    world = join(find_world(), timeout=timedelta(seconds=20))
    agree(world, "alone", what="config")
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
    assert os.environ["MASTER_PORT"] == str(world.master_port)
    leave()
    assert dict(os.environ) == before


def test_a_rank_whose_peers_never_come_gives_up_in_time() -> None:
    lonely = World(
        rank=0,
        size=2,
        local_rank=0,
        local_size=2,
        host="here",
        launcher="environment",
        master_addr="127.0.0.1",
        master_port=0,
    )
    with pytest.raises(UserError, match=r"rank 0 of 2 on here .* within 2 s: is every rank running"):
        join(lonely, timeout=timedelta(seconds=2))
    leave()
