"""Links are as slow and as far as they were asked to be, and as before afterwards."""

import pytest

from tests.cluster import links
from tests.cluster.cluster import Cluster
from tests.cluster.links import Link, parse_link
from tests.cluster.processes import ClusterError


@pytest.mark.parametrize("link", [Link(1000, 0.5), Link(200, 2), Link(50, 5)], ids=str)
def test_rate_and_round_trip_are_those_asked_for(cluster: Cluster, link: Link) -> None:
    first, second = cluster.nodes[:2]
    assert link.rate_mbit is not None and link.delay_ms is not None
    with links.shaped(cluster, link):
        for sender, receiver in ((first, second), (second, first)):
            mbit, round_ms = links.measure(cluster, sender, receiver, megabytes=link.rate_mbit / 8)
            # The rate is of whole packets with their headers, and TCP begins slowly.
            assert mbit == pytest.approx(link.rate_mbit, rel=0.12)
            assert round_ms == pytest.approx(2 * link.delay_ms, rel=0.1, abs=0.3)
    assert links.limits(cluster) == []


def test_a_cleared_link_is_as_fast_as_this_machine(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    links.shape(cluster, Link(50, 5))
    assert len(links.limits(cluster)) == 2 * len(cluster.nodes) + 2
    links.clear(cluster)
    assert links.limits(cluster) == []
    mbit, round_ms = links.measure(cluster, first, second, megabytes=100)
    assert mbit > 500, "or what a busy machine leaves of that"
    assert round_ms < 1


def test_a_rate_alone_and_a_delay_alone(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    with links.shaped(cluster, Link(rate_mbit=100)):
        mbit, round_ms = links.measure(cluster, first, second, megabytes=5)
        assert mbit == pytest.approx(100, rel=0.12) and round_ms < 1
    with links.shaped(cluster, Link(delay_ms=3)):
        assert links.measure(cluster, first, second, megabytes=1)[1] == pytest.approx(6, rel=0.1)


def test_links_are_read_as_people_write_them() -> None:
    assert parse_link("200mbit", "1ms") == Link(200, 1)
    assert parse_link("2.5gbit", "500us") == Link(2500, 0.5)
    assert parse_link(None, None) == Link()
    for rate, delay in (("200", None), ("0mbit", None), (None, "1s")):
        with pytest.raises(ClusterError, match="a number and its unit"):
            parse_link(rate, delay)
