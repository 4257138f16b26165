"""The checks themselves, on this machine."""

import os
import socket
from pathlib import Path

import pytest

from mmsada_hpc.doctor import codecs, compute, folder, gpu, host, mpi, network
from mmsada_hpc.doctor.compute import Timed
from mmsada_hpc.doctor.network import Names
from mmsada_hpc.doctor.report import Ask


def test_one_core_of_eight_promised_by_slurm_fails() -> None:
    env = {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "8"}
    assert host.judge(8, env).level == "ok"
    assert host.judge(4, env).level == "warn"
    starved = host.judge(1, env)
    assert (starved.level, starved.text[:45]) == ("fail", "1 core for this process but Slurm's --cpus-pe")
    assert "SRUN_CPUS_PER_TASK" in starved.remedy


def test_threads_held_down_by_torchrun_are_told() -> None:
    line = host.judge(8, {"OMP_NUM_THREADS": "1"})
    assert (line.level, "torchrun" in line.remedy) == ("warn", True)
    assert host.judge(8, {"OMP_NUM_THREADS": "8"}).level == "ok"


def test_jpeg_and_the_free_video_codecs_decode_and_h264_is_said_to_need_a_gpu() -> None:
    device, results = codecs.try_all("cpu")
    assert {name for name, why in results.items() if why is None} == {"JPEG", "VP9", "MJPEG"}
    line = codecs.judge(device, results)
    assert line.level == "ok"
    assert ("H.264 is refused there" in line.text) == ("H.264" in results)


def test_a_codec_that_is_missing_is_judged_by_who_needs_it() -> None:
    assert codecs.judge("cpu", {"JPEG": None, "VP9": "refused"}).level == "warn"
    assert codecs.judge("gpu", {"JPEG": None, "VP9": None, "H.264": "refused"}).level == "warn"
    assert codecs.judge("cpu", {"JPEG": "broken", "VP9": None}).level == "fail"


def test_a_convolution_gives_the_same_in_both_precisions() -> None:
    timed = compute.measure("cpu")
    assert 0 < timed["bf16"].error < 0.01
    assert timed["fp32"].ms > 0 < timed["bf16"].ms


@pytest.mark.parametrize(
    ("bf16", "level", "remedy"),
    [
        (Timed(10, 0.004), "ok", ""),
        (Timed(40, 0.004), "warn", "train.precision=fp32"),
        (Timed(10, 0.9), "fail", "wrong results"),
        (Timed(10, float("nan")), "fail", "wrong results"),
    ],
    ids=["fast", "slow", "wrong", "nan"],
)
def test_bf16_must_be_right_and_should_be_fast(bf16: Timed, level: str, remedy: str) -> None:
    line = compute.judge({"fp32": Timed(20, 0.0), "bf16": bf16}, "on the CPU", on_gpu=False)
    assert line.level == level
    assert remedy in line.remedy


def test_what_the_cpu_has_for_bf16_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags : fpu avx512f avx512_bf16 amx_bf16\n")
    assert compute.cpu_features(tmp_path / "cpuinfo") == "AMX and AVX-512 bf16"
    (tmp_path / "cpuinfo").write_text("flags : fpu avx2\n")
    assert compute.cpu_features(tmp_path / "cpuinfo") == "no bf16 instructions"


def test_gpu_code_runs_on_its_own_generation_and_ptx_on_later_ones() -> None:
    assert gpu._can_run("sm_80", (8, 6))
    assert not gpu._can_run("sm_86", (8, 0))
    assert not gpu._can_run("sm_80", (9, 0))
    assert gpu._can_run("compute_80", (9, 0))
    assert gpu._can_run("sm_90a", (9, 0))


def test_two_real_processes_add_up_under_mpiexec() -> None:
    if mpi.find_mpiexec() is None:
        pytest.skip("no mpiexec in this environment: install the extra `mpi`")
    (line,) = mpi.check(Ask())
    assert (line.level, "add up" in line.text) == ("ok", True), line.text


def test_an_mpiexec_of_another_mpi_is_told() -> None:
    line = mpi.judge("/usr/bin/mpiexec", 0, "[found 1 1 MPICH Version: 5.0.2]\n[found 1 1 MPICH Version: 5.0.2]\n", "")
    assert line.level == "fail"
    assert "each saw 1" in line.text
    assert mpi.judge("mpiexec", 1, "", "x\nImportError: libmpi.so.12\n").text.endswith("ImportError: libmpi.so.12")


NODE = Names("n1", "10.0.0.1", "n1.cluster", {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "ib0": ["10.1.0.1"]})


def test_a_name_that_leads_to_the_loopback_breaks_several_hosts_only() -> None:
    local = Names("n1", "127.0.1.1", "n1", NODE.interfaces)
    assert network.judge_name(local, nodes=1, env={}).level == "ok"
    line = network.judge_name(local, nodes=2, env={})
    assert (line.level, "eth0, ib0" in line.remedy) == ("fail", True)
    assert network.judge_name(local, nodes=2, env={"GLOO_SOCKET_IFNAME": "eth0"}).level == "warn"


def test_a_name_must_lead_both_ways_between_hosts() -> None:
    assert network.judge_name(NODE, nodes=2, env={}).level == "ok"
    assert network.judge_name(Names("n1", "10.0.0.1", "other", NODE.interfaces), nodes=2, env={}).level == "warn"
    assert network.judge_name(Names("n1", None, None, NODE.interfaces), nodes=2, env={}).level == "fail"
    assert network.judge_name(Names("n1", "10.9.9.9", "n1", NODE.interfaces), nodes=2, env={}).level == "fail"


@pytest.mark.parametrize(
    ("variable", "value", "level"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", "ok"),
        ("GLOO_SOCKET_IFNAME", "eth", "fail"),
        ("GLOO_SOCKET_IFNAME", "lo", "fail"),
        ("NCCL_SOCKET_IFNAME", "eth", "ok"),
        ("NCCL_SOCKET_IFNAME", "=eth", "fail"),
        ("NCCL_SOCKET_IFNAME", "^lo,docker", "ok"),
        ("NCCL_SOCKET_IFNAME", "hsn", "fail"),
    ],
)
def test_an_interface_that_is_named_must_exist(variable: str, value: str, level: str) -> None:
    assert network.judge_variables(NODE, {variable: value}, nodes=2).level == level


def test_this_host_is_looked_at() -> None:
    names = network.look()
    assert names.name == socket.gethostname()
    assert "lo" in names.interfaces


def test_a_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    assert folder.write_speed(tmp_path, 8) > 0
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_measured_where_it_would_be(tmp_path: Path) -> None:
    place = folder.find(tmp_path / "not" / "yet")
    assert place.folder == tmp_path.resolve()
    assert not (tmp_path / "not").exists()


def test_a_folder_in_memory_or_slow_or_full_is_warned_about() -> None:
    ask, there = Ask(folder="/"), folder.Place(Path("/scratch/runs"), "lustre", 1e6)
    assert folder.judge(ask, there, 500.0).level == "ok"
    assert "slow" in folder.judge(ask, there, 5.0).text
    assert "in memory" in folder.judge(ask, folder.Place(Path("/mnt"), "tmpfs", 1e6), 500.0).text
    assert "this host's own" in folder.judge(ask, folder.Place(Path("/tmp/runs"), "ext4", 1e6), 500.0).text
    assert "ten checkpoints" in folder.judge(ask, folder.Place(Path("/scratch"), "nfs4", 100.0), 500.0).text


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = [
        "22 1 254:0 / / rw - ext4 /dev/vda rw",
        "30 22 0:40 / /scratch rw shared:1 - lustre mds:/s rw",
        "31 30 0:41 / /scratch/my\\040runs rw - nfs4 server:/r rw",
    ]
    assert folder.file_system(Path("/home/x"), mounts) == "ext4"
    assert folder.file_system(Path("/scratch/x"), mounts) == "lustre"
    assert folder.file_system(Path("/scratch/my runs/x"), mounts) == "nfs4"
