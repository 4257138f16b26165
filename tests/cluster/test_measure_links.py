"""What a campaign of measurements still has to do, and one small one that is really done."""

import argparse
import json
from pathlib import Path

import pytest

from mmsada_hpc.bench.command import add_arguments
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.validation_file import Measurement, Validation, read_validation
from tests.cluster import links
from tests.cluster.cluster import Cluster
from tests.cluster.measure_links import Job, jobs_left, measure

FILE = """
folder: {folder}
links: {{near: {{rate_mbit: 500, delay_ms: 0.5}}, far: {{rate_mbit: 100, delay_ms: 5}}}}
ranks: [2, 3]
clips: [2, 4]
engines: [DDP, DeepSpeed stage 0 overlap]
sizes: [32K]
steps: 1
repeats: 1
fit: {{links: [near], ranks: [2], clips: [2]}}
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Validation:
    path = tmp_path / "validation.yaml"
    path.write_text(FILE.format(folder=tmp_path / "out"))
    return read_validation(path)


def test_what_was_measured_is_not_measured_again(campaign: Validation) -> None:
    jobs = jobs_left(campaign)
    assert len(jobs) == 8 and sum(job.all_reduce for job in jobs) == 4
    assert jobs[0] == Job("near", 2, Measurement("near", 2, 2, "fp32"), all_reduce=True)
    (campaign.folder / "near").mkdir(parents=True)
    campaign.engines_file(Measurement("near", 2, 2, "fp32")).write_text("")
    assert jobs_left(campaign)[0] == Job("near", 2, Measurement("near", 2, 4, "fp32"), all_reduce=True)
    campaign.engines_file(Measurement("near", 2, 4, "fp32")).write_text("")
    assert jobs_left(campaign)[0] == Job("near", 2, None, all_reduce=True)
    campaign.all_reduce_file("near", 2).write_text("")
    assert len(jobs_left(campaign)) == 6
    assert [job.ranks for job in jobs_left(campaign, links=["far"], ranks=[3])] == [3, 3]


def test_a_link_that_the_file_does_not_name_is_told(campaign: Validation) -> None:
    with pytest.raises(UserError, match="wide: none of the file's near, far"):
        jobs_left(campaign, links=["wide"])


def test_every_job_is_a_command_that_the_benchmark_reads(campaign: Validation) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for job in jobs_left(campaign):
        read = parser.parse_args(job.words(campaign))
        assert (read.steps, read.repeats, read.part) == (1, 1, None if job.all_reduce else "engines")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_is_measured_on_its_link_and_kept(cluster: Cluster, campaign: Validation) -> None:
    job = jobs_left(campaign, links=["near"], ranks=[2])[0]
    measure(cluster, campaign, [job])
    assert job.cell is not None
    rows = [json.loads(line) for line in campaign.engines_file(job.cell).read_text().splitlines()]
    assert [row["details"]["engine"] for row in rows] == ["DDP", "no communication", "DeepSpeed stage 0 overlap"]
    assert {row["details"]["interface"] for row in rows} == {"eth0"}
    reduced = [json.loads(line) for line in campaign.all_reduce_file("near", 2).read_text().splitlines()]
    assert [row["details"]["bytes"] for row in reduced] == [32768]
    assert reduced[0]["value"] > 1, "a ring of two takes two steps, of half a millisecond each"
    assert links.limits(cluster) == []
    assert len(jobs_left(campaign, links=["near"], ranks=[2])) == 1
