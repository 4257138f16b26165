"""Who a process is, from what launchers leave in the environment."""

from typing import Any

import pytest

from mmsada_hpc.cluster.world import World, expand_nodes, expand_tasks_per_node, find_world
from mmsada_hpc.errors import UserError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "mn1",
    "MASTER_PORT": "29500",
}
PLAIN = {name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
SUBMITIT = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
}
SLURM = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "mn[1-2]",
    "SLURM_CPUS_PER_TASK": "6",
}


def world(**fields: Any) -> World:
    return World(**{"host": "here", **fields})


def test_without_a_launcher_a_process_is_alone() -> None:
    expected = world(rank=0, size=1, local_rank=0, local_size=1, launcher="alone", master_addr="127.0.0.1")
    assert find_world({}, host="here") == expected


def test_torchrun_says_everything() -> None:
    expected = world(
        rank=3, size=4, local_rank=1, local_size=2, launcher="torchrun", master_addr="mn1", master_port=29500
    )
    assert find_world(TORCHRUN, host="here") == expected


@pytest.mark.parametrize("environ", [HYDRA, OPEN_MPI])
def test_mpiexec_leaves_the_address_to_be_agreed(environ: dict[str, str]) -> None:
    found = find_world(environ, host="here")
    assert (found.launcher, found.rank, found.size) == ("mpiexec", 1, 2)
    assert found.master_addr is None and found.master_port is None


def test_submitit_on_one_host_has_a_port_that_depends_on_the_job_alone() -> None:
    ranks = [find_world({**SUBMITIT, "SUBMITIT_LOCAL_GLOBALID": r, "SUBMITIT_LOCAL_LOCALID": r}) for r in "01"]
    other = find_world({**SUBMITIT, "SUBMITIT_LOCAL_JOB_ID": "4712"})
    assert ranks[0].master_port == ranks[1].master_port != other.master_port
    assert ranks[0].is_one_host and ranks[0].launcher == "submitit"


def test_a_slurm_step_finds_rank_0_on_its_first_node() -> None:
    found = find_world(SLURM, host="mn2")
    assert (found.launcher, found.rank, found.size, found.local_rank, found.local_size) == ("slurm", 3, 4, 1, 2)
    assert found.master_addr == "mn1" and found.cpus_per_task == 6


def test_a_requeued_slurm_job_takes_another_port() -> None:
    assert find_world(SLURM).master_port != find_world({**SLURM, "SLURM_RESTART_COUNT": "1"}).master_port


def test_a_stated_master_port_is_taken() -> None:
    assert find_world({**SLURM, "MASTER_PORT": "20001"}).master_port == 20001


def test_a_batch_script_of_one_task_is_alone() -> None:
    assert find_world({"SLURM_JOB_ID": "12", "SLURM_PROCID": "0"}).launcher == "alone"


def test_mpiexec_inside_a_slurm_job_goes_by_mpi() -> None:
    proxy = {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert find_world({**proxy, **HYDRA}).launcher == "mpiexec"


def test_torchrun_inside_a_slurm_step_goes_by_torchrun() -> None:
    assert find_world({**SLURM, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", **TORCHRUN}).launcher == "torchrun"


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1 WORLD_SIZE=2 but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**TORCHRUN, "RANK": "4"}, "RANK=4 WORLD_SIZE=4"),
        ({**TORCHRUN, "WORLD_SIZE": "four"}, "WORLD_SIZE='four'"),
        ({"PMI_RANK": "0", "MPI_LOCALRANKID": "0"}, "but not PMI_SIZE"),
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4 but this process was not started by srun"),
        ({**SLURM, "PMI_SIZE": "1"}, "4 tasks but PMI_SIZE=1"),
        ({**HYDRA, **PLAIN}, "RANK=3 WORLD_SIZE=4 contradict mpiexec, which says rank 1 of 2"),
    ],
)
def test_a_partial_or_contradictory_environment_says_what_was_seen(environ: dict[str, str], seen: str) -> None:
    with pytest.raises(UserError) as error:
        find_world(environ)
    assert seen in str(error.value) and "\n" not in str(error.value)


def test_slurm_short_forms_expand() -> None:
    assert expand_nodes("gpu[1-2,05]-ib,login") == ["gpu1-ib", "gpu2-ib", "gpu05-ib", "login"]
    assert expand_nodes("r[1-2]n[08-09]") == ["r1n08", "r1n09", "r2n08", "r2n09"]
    assert expand_tasks_per_node("2(x3),1") == [2, 2, 2, 1]
