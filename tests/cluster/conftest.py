"""The test cluster as a fixture."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster import life
from tests.cluster.cluster import Cluster

WANTED_VARIABLE = "MMSADA_TEST_CLUSTER"


@pytest.fixture(scope="session")
def may_cluster() -> None:
    """Skips where no cluster can or should be brought up: nobody wants daemons started on a real login node."""
    if os.environ.get(WANTED_VARIABLE) != "1" and os.environ.get("CI") != "true":
        pytest.skip(f"the test cluster is only started when asked for: set {WANTED_VARIABLE}=1 (as root)")
    if reason := life.obstacle():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(may_cluster: None) -> Iterator[Cluster]:
    """A real Slurm of two nodes; the one that is up by hand is taken as it is, and left up."""
    with life.session() as running:
        yield running
