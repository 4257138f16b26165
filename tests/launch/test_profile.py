"""Cluster profiles: YAML, flags over it, and what is refused."""

from pathlib import Path

import pytest

from mmsada_hpc.cluster.profile import load_profile, parse_gb, parse_minutes
from mmsada_hpc.config import config_folder
from mmsada_hpc.errors import UserError


@pytest.mark.parametrize("path", sorted((config_folder() / "cluster").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_in_configs_loads(path: Path) -> None:
    assert load_profile(path.stem).executor in ("slurm", "local", "debug")


def test_flags_go_over_the_profile_and_unset_flags_do_not() -> None:
    profile = load_profile("slurm", {"nodes": 4, "partition": None})
    assert profile.nodes == 4 and profile.world_size == 4 * profile.tasks_per_node


def test_a_profile_may_be_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("executor: slurm\npartition: long\n")
    assert load_profile(str(path)).partition == "long"


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30:00", 90), ("00:00:30", 1), ("2-0", 2880), ("1-12:30:00", 2190)]
)
def test_time_is_read_as_slurm_writes_it(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(("text", "gb"), [("64", 64), ("512000M", 500), ("500G", 500), ("2T", 2048), ("1.5gb", 1.5)])
def test_memory_is_read_as_slurm_writes_it(text: str, gb: float) -> None:
    assert parse_gb(text) == gb
    with pytest.raises(UserError, match="--mem"):
        parse_gb("much")


@pytest.mark.parametrize("text", ["", "1h", "10:00", "-5"])
def test_an_ambiguous_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        parse_minutes(text)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("executor: slurm\npartitoin: gpu\n", "partitoin: unknown key; did you mean partition?"),
        ("executor: slurm\nnodes: many\n", "nodes: Input should be a valid integer"),
        ("executor: pbs\n", "executor: Input should be 'slurm', 'local' or 'debug'"),
        ("executor: local\nnodes: 2\n", "--nodes 2"),
        ("executor: debug\ntasks_per_node: 2\n", "use --cluster local"),
        ("executor: local\nsetup: [module load cuda]\n", "setup: shell lines are for Slurm"),
        ("executor: debug\nmodules: [cuda]\n", "modules: shell lines are for Slurm"),
        ("executor: slurm\nminutes: 10\n", "--time 10: in a job of 12 minutes or less"),
        ("- executor\n", "expected `key: value` lines, found a list"),
    ],
)
def test_a_wrong_profile_is_told_in_one_line(tmp_path: Path, yaml: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml)
    with pytest.raises(UserError) as error:
        load_profile(str(path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_cluster_names_those_there_are() -> None:
    with pytest.raises(
        UserError,
        match=r"--cluster slrum: neither a profile \(debug, local, slurm, slurm_container, slurm_cpu\) nor a YAML file",
    ):
        load_profile("slrum")


@pytest.mark.parametrize("flag", [{"partition": "gpu"}, {"mem_gb": 3}, {"dependency": "afterok:1"}])
def test_a_flag_for_slurm_is_refused_on_this_host(flag: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(flag))} is for Slurm, and --cluster local runs on this host"):
        load_profile("local", flag)
