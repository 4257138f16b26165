"""The command as people run it, and checks that hang, crash or raise."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.doctor.report import Ask, Line
from mmsada_hpc.doctor.runner import CHECKS, run_checks
from mmsada_hpc.doctor.srun import Launch, read, srun_words
from mmsada_hpc.doctor.within import within

BIN = Path(sys.executable).parent
FOREIGN = ("SLURM", "PMI", "MPI", "OMPI", "SUBMITIT", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC")


def doctor(*words: str | Path, launcher: tuple[str | Path, ...] = (), **env: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    command = [*launcher, sys.executable, "-m", "mmsada_hpc.cli", "doctor", *words]
    return subprocess.run([str(w) for w in command], env=kept | env, capture_output=True, text=True, timeout=120)


def skip_all_but(*names: str) -> str:
    return ",".join(name for name in CHECKS if name not in names)


def test_one_host_as_json() -> None:
    done = doctor("--json", "--skip", skip_all_but("host", "network", "folder"))
    found = json.loads(done.stdout)
    (lines,) = found["hosts"].values()
    assert [line["name"] for line in lines] == ["host name", "interface", "cores", "folder"]
    assert lines[-1]["seen"]["MB_per_s"] > 0
    assert (done.returncode, found["ok"]) == (0, True)


def test_an_interface_that_does_not_exist_is_a_failure_and_exit_code_1() -> None:
    done = doctor("--skip", skip_all_but("network"), GLOO_SOCKET_IFNAME="no_such0")
    assert done.returncode == 1
    assert "fail  interface  GLOO_SOCKET_IFNAME=no_such0: no such interface is up\n" in done.stdout
    assert "-> name one that is: " in done.stdout


def test_two_ranks_of_one_host_speak_with_one_voice() -> None:
    if not (BIN / "mpiexec").exists():
        pytest.skip("no mpiexec in this environment: install the extra `mpi`")
    words = ("--skip", skip_all_but("host"), "--floor", "1", "--json")
    done = doctor(*words, launcher=(BIN / "mpiexec", "-n", "2"), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [line["name"] for line in found["between"]] == ["names", "gloo all-reduce"]
    assert len(found["hosts"]) == 1


def test_an_all_reduce_below_the_floor_fails() -> None:
    if not (BIN / "mpiexec").exists():
        pytest.skip("no mpiexec in this environment: install the extra `mpi`")
    words = ("--skip", skip_all_but("host"), "--floor", "1e9")
    done = doctor(*words, launcher=(BIN / "mpiexec", "-n", "2"), OMP_NUM_THREADS="1")
    assert done.returncode == 1
    assert "below the floor of 1000000000 MB/s" in done.stdout


def test_options_that_cannot_be_are_refused() -> None:
    assert "--skip weather: not one of network, host" in doctor("--skip", "weather").stderr
    assert "not in a Slurm allocation; name a profile by --cluster" in doctor("--nodes", "2").stderr
    assert "need a profile with executor: slurm" in doctor("--nodes", "1", "--cluster", "local").stderr


@pytest.fixture
def broken_cv2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that the codec check imports, to be broken in the way the test wants."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path / "cv2.py"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import time; time.sleep(60)", "no answer within 4 s, so it was ended"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the check was killed by SIGKILL"),
        ("import sys; print('broken.so: wrong', file=sys.stderr); sys.exit(3)", "exit code 3 (broken.so: wrong)"),
        ("raise ImportError('libGL.so.1 is missing')", "the check raised ImportError: libGL.so.1 is missing"),
    ],
    ids=["hangs", "is killed", "exits", "raises"],
)
def test_a_check_that_breaks_is_a_failure_and_the_next_one_runs(broken_cv2: Path, code: str, told: str) -> None:
    broken_cv2.write_text(code)
    begin = time.monotonic()
    patience_s = 4 if "sleep" in code else 30
    lines = {line.name: line for line in run_checks(["host", "codecs", "network"], Ask(patience_s=patience_s))}
    assert lines["codecs"].level == "fail"
    assert told in lines["codecs"].text
    assert {"cores", "host name"} < set(lines)
    assert time.monotonic() - begin < 30


def test_a_call_that_never_returns_is_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"joining the others took more than 0 s"):
        within(0.2, lambda: time.sleep(30), what="joining the others")
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0, what="a division")
    assert within(5, lambda: 7, what="seven") == 7


PROFILE = Profile(
    executor="slurm", tasks_per_node=8, cpus_per_task=12, gpus_per_node=8, partition="gpu", interface="ib0",
    setup=("module load cuda",), srun_args=("--container-image=x",), sbatch={"reservation": "r", "requeue": True},
)  # fmt: skip


def launch(profile: Profile | None) -> Launch:
    return Launch(nodes=2, words=["--json"], profile=profile, wait_s=9, run_s=600)


def test_srun_asks_for_what_the_profile_asks_for_but_one_task_a_node() -> None:
    words = srun_words(launch(PROFILE))
    for word in ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12", "--gpus-per-node=8", "--partition=gpu",
                 "--reservation=r", "--container-image=x", "--immediate=9"):  # fmt: skip
        assert word in words
    assert not any(word.startswith("--requeue") for word in words), "srun has no such option"
    first, *exports, last = words[-1].splitlines()
    assert first == "module load cuda"
    assert exports == ["export GLOO_SOCKET_IFNAME=ib0", "export NCCL_SOCKET_IFNAME=ib0"]
    assert last.endswith(" -m mmsada_hpc.cli doctor --json")


def test_inside_an_allocation_srun_shares_it() -> None:
    words = srun_words(launch(None))
    assert "--overlap" in words
    assert not any(word.startswith(("--partition", "--time")) for word in words)


def answered(*hosts: str, between: Line) -> str:
    line = {"name": "cores", "level": "ok", "what": "8 cores", "remedy": "", "seen": {}}
    both = [{"ok": True, "hosts": {host: [line]}, "between": [between.to_json()]} for host in hosts]
    return "noise\n" + "".join(json.dumps(one) + "\n" for one in both)


def test_nodes_that_could_not_come_together_are_told_in_one_line() -> None:
    def alone(host: str) -> Line:
        return Line("between nodes", "fail", "{host} could not join", "see above", {"host": host})

    out = answered("n2", between=alone("n2")) + answered("n1", between=alone("n1"))
    found = read(out, "", code=1, launch=launch(None), bound_s=609)
    assert list(found.hosts) == ["n1", "n2"]
    assert [line.text for line in found.between] == ["n2, n1 could not join"]


@pytest.mark.parametrize(
    ("err", "code", "told"),
    [
        ("srun: error: Unable to allocate resources: Requested nodes are busy\n", 1, "no 2 nodes within 9 s"),
        ("bash: /no/python: No such file\nsrun: error: n1: task 0: Exited\n", 127, "answered (bash: /no/python: No"),
        ("", None, "no end within 609 s, 0 of 2 nodes had answered"),
    ],
)
def test_what_srun_could_not_do_is_a_failure(err: str, code: int | None, told: str) -> None:
    found = read("", err, code=code, launch=launch(None), bound_s=609)
    assert found.exit_code == 1
    assert told in found.between[0].text
