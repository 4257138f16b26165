"""The closed forms of the forecast, by hand, and fits that find what measurements were made of."""

import math

import numpy as np
import pytest

from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.engines import ENGINES, Gradient, Message, exposed, find_engine
from mmsada_hpc.scaling.forecast.fitting import fit
from mmsada_hpc.scaling.forecast.goodput import Failures, best_goodput, daly_interval_s, goodput, young_interval_s
from mmsada_hpc.scaling.forecast.loader import clips_ceiling, loader_s
from mmsada_hpc.scaling.forecast.network import (
    FREE,
    Link,
    Network,
    Team,
    hierarchical_s,
    pass_s,
    pipelined_tree_s,
    ring_s,
    segmented_pass_s,
    tree_s,
)
from mmsada_hpc.scaling.forecast.stragglers import expected_maximum, slowdown, spread_of_range

MB = 1_000_000
LINK = Link(0.001, 1e-8)  # 1 ms, 100 MB/s
GRADIENTS = (Gradient(1_000_000, 0.25), Gradient(1_000_000, 0.5), Gradient(2_000_000, 1.0))


def test_a_ring_of_four_sends_six_quarters() -> None:
    assert ring_s(4 * MB, 4, LINK) == pytest.approx(6 * (0.001 + 0.01))
    assert pass_s(4 * MB, 4, LINK) == pytest.approx(3 * (0.001 + 0.01))


def test_a_tree_of_eight_goes_three_levels_up_and_three_down() -> None:
    assert tree_s(4 * MB, 8, LINK) == pytest.approx(6 * (0.001 + 0.04))
    assert pipelined_tree_s(4 * MB, 8, LINK) == pytest.approx(6 * 0.001 + 2 * 7 / 8 * 0.04)


def test_both_levels_are_a_ring_in_a_node_and_a_ring_between_nodes() -> None:
    inside = Link(0.0001, 1e-9)
    expected = 6 * (0.0001 + MB * 1e-9) + 2 * (0.001 + 2 * MB * 1e-8)
    assert hierarchical_s(4 * MB, Team(2, 4), inside, LINK) == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("latency_s", [0.0001, 0.004, 0.1])
@pytest.mark.parametrize("size", [400, 3 * MB, 17 * MB])
def test_the_segmented_ring_is_what_its_segments_do_one_by_one(ranks: int, latency_s: float, size: int) -> None:
    link = Link(latency_s, 1e-8)
    per_rank = math.ceil(max(math.ceil(size / (1 << 20)), 2 * ranks) / ranks)
    took = size / (per_rank * ranks) * 1e-8
    left, there = list[float](), list[float]()
    for i in range(per_rank * (ranks - 1)):
        left.append(max(left[i - 1] + took if i else 0.0, there[i - 2] if i > 1 else 0.0))
        there.append(left[i] + took + latency_s)
    assert segmented_pass_s(size, ranks, link) == pytest.approx(there[-1], rel=1e-6)


def test_one_rank_sends_nothing() -> None:
    for algorithm in ("auto", "ring", "tree", "hierarchical", "gloo"):
        network = Network(LINK, LINK, algorithm)
        assert network.all_reduce_s(MB, Team(1)) == network.all_gather_s(MB, Team(1)) == 0
    found = exposed(find_engine("DDP").messages(GRADIENTS), network, Team(1), backward_s=1.0, agreement_bytes=100)
    assert (found.total_s, found.shown_s) == (0, 0)


def test_links_that_cost_nothing_cost_nothing() -> None:
    network = Network(FREE, FREE)
    for name in ENGINES:
        found = exposed(find_engine(name).messages(GRADIENTS), network, Team(64, 8), backward_s=0.1)
        assert (found.total_s, found.shown_s) == (0, 0)


def test_the_quickest_way_is_taken() -> None:
    network, team = Network(Link(1e-5, 1e-11), Link(1e-6, 1e-12)), Team(512, 8)
    small, large = network.all_reduce_s(1000, team), network.all_reduce_s(1000 * MB, team)
    assert small < 1e-3 < ring_s(1000, 4096, network.between)  # a flat ring has 8190 latencies
    assert large < ring_s(1000 * MB, 4096, network.between)


def test_a_flat_ring_over_nodes_is_as_wide_as_its_narrowest_link() -> None:
    inside, between = Link(1e-6, 1e-11), Link(9e-6, 1e-9)
    flat = Network(between, inside).flat(Team(2, 4))
    assert flat.per_byte == 1e-9
    assert flat.latency_s == pytest.approx(0.75e-6 + 2.25e-6)


def test_one_message_after_the_backward_is_seen_whole() -> None:
    network = Network(LINK, algorithm="ring")
    found = exposed(find_engine("DeepSpeed stage 0").messages(GRADIENTS), network, Team(2), backward_s=5.0)
    assert (found.shown_s, found.total_s) == pytest.approx((ring_s(16 * MB, 2, LINK),) * 2)


def test_what_a_long_backward_covers_is_not_seen() -> None:
    """Only the last message is: it is ready when the backward is over."""
    network = Network(LINK, algorithm="ring")
    messages = [Message(4 * MB, 0.25), Message(4 * MB, 0.5), Message(MB, 1.0)]
    found = exposed(messages, network, Team(2), backward_s=5.0)
    assert found.shown_s == pytest.approx(ring_s(MB, 2, LINK))
    assert found.total_s == pytest.approx(2 * ring_s(4 * MB, 2, LINK) + ring_s(MB, 2, LINK))


def test_without_a_backward_nothing_is_hidden() -> None:
    messages = [Message(4 * MB, 0.25), Message(MB, 1.0)]
    found = exposed(messages, Network(LINK, algorithm="ring"), Team(2), backward_s=0.0)
    assert found.shown_s == pytest.approx(found.total_s)


def test_messages_wait_for_those_before_them() -> None:
    """1 s each, ready at 0.5 s and 1.5 s of a backward of 2 s: done at 1.5 and 2.5 s."""
    network = Network(Link(0.5, 0.0), algorithm="ring")
    found = exposed([Message(1, 0.25), Message(1, 0.75)], network, Team(2), backward_s=2.0)
    assert found.shown_s == pytest.approx(0.5)


def test_two_messages_of_gloo_wait_for_their_delays_together_and_share_the_link() -> None:
    three = [Message(1, 0.0)] * 3
    delays = Network(Link(1.0, 0.0), algorithm="gloo")
    alone_s = delays.all_reduce_s(1, Team(2))
    assert exposed(three, delays, Team(2), backward_s=0.0).shown_s == pytest.approx(2 * alone_s)
    bytes_only = Network(Link(0.0, 1.0), algorithm="gloo")
    alone_s = bytes_only.all_reduce_s(1, Team(2))
    assert exposed(three, bytes_only, Team(2), backward_s=0.0).shown_s == pytest.approx(3 * alone_s)


def test_processors_share_hides_nowhere() -> None:
    network = Network(Link(0.0, 1e-8, host_s_per_byte=1e-9), algorithm="ring")
    found = exposed([Message(4 * MB, 0.0)], network, Team(2), backward_s=100.0)
    assert found.shown_s == pytest.approx(4 * MB * 1e-9)


def test_zero_gathers_weights_in_fp32_whatever_gradients_travel_in() -> None:
    reduced, gathered = find_engine("DeepSpeed stage 1 bf16 gradients").messages(GRADIENTS)
    assert (reduced.size, reduced.gathers) == (8 * MB, False)
    assert (gathered.size, gathered.gathers) == (16 * MB, True)
    found = exposed([gathered], Network(LINK, algorithm="ring"), Team(4), backward_s=9.0)
    assert found.shown_s == pytest.approx(pass_s(16 * MB, 4, LINK))


def test_ddp_begins_with_a_small_message() -> None:
    sizes = [(one.size, one.ready) for one in find_engine("DDP").messages(GRADIENTS)]
    assert sizes == [(4 * MB, 0.25), (12 * MB, 1.0)]


def test_ddp_cuts_by_fp32_weights_whatever_gradients_travel_in() -> None:
    whole, halved = (find_engine(f"DDP{words}").messages(GRADIENTS) for words in ("", " bf16 gradients"))
    assert [one.ready for one in halved] == [one.ready for one in whole]
    assert [2 * one.size for one in halved] == [one.size for one in whole]


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(UserError, match="'ZeRO 9': no such engine; one of DDP, "):
        find_engine("ZeRO 9")


def test_order_statistics_are_those_of_the_tables() -> None:
    assert expected_maximum(1) == 0
    for ranks, expected in ((2, 0.5642), (3, 0.8463), (4, 1.0294), (10, 1.5388), (100, 2.5076)):
        assert expected_maximum(ranks) == pytest.approx(expected, rel=2e-3)


def test_without_spread_there_are_no_stragglers() -> None:
    assert slowdown(0.0, 4096) == 1
    assert slowdown(0.05, 2) == pytest.approx(1 + 0.05 * 0.5642, rel=1e-4)


def test_a_range_gives_the_spread_back() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    found = []
    for _ in range(400):
        values = rng.normal(10.0, 0.5, 5)
        found.append(spread_of_range(values.min(), 10.0, values.max(), 5))
    assert np.mean(found) == pytest.approx(0.05, rel=0.05)


def test_youngs_interval_by_hand() -> None:
    assert young_interval_s(50.0, 3600.0 * 4) == pytest.approx(1200.0)


def test_dalys_interval_by_hand() -> None:
    """delta 50 s, M 4 h: sqrt(delta / 2M) = 1/24, so 1200 (1 + 1/72 + 1/5184) - 50."""
    assert daly_interval_s(50.0, 14400.0) == pytest.approx(1200 * (1 + 1 / 72 + 1 / 5184) - 50)
    assert daly_interval_s(100.0, 20.0) == 20.0


def test_goodput_by_hand_and_at_its_best() -> None:
    failures = Failures(14400.0, 50.0, 100.0)
    by_hand = 1000 / (14400 * math.exp(100 / 14400) * (math.exp(1050 / 14400) - 1))
    assert goodput(1000.0, failures, 1) == pytest.approx(by_hand)
    best, interval = best_goodput(failures, 1)
    assert all(goodput(interval * f, failures, 1) < best for f in (0.8, 1.25))


def test_no_failures_lose_nothing() -> None:
    assert best_goodput(Failures(math.inf, 10.0, 100.0), 4096) == (1.0, math.inf)
    assert goodput(90.0, Failures(math.inf, 10.0, 100.0), 4096) == pytest.approx(0.9)


def test_more_nodes_fail_more_often_until_nothing_is_done() -> None:
    failures = Failures(1e5, 20.0, 300.0)
    shares = [best_goodput(failures, nodes)[0] for nodes in (1, 8, 64, 512, 4096, 10**7)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0


def test_the_loader_of_a_node_scales_with_its_threads() -> None:
    assert clips_ceiling(100.0, threads=64, measured_threads=2) == 3200
    assert loader_s(64, 3200.0) == pytest.approx(0.02)
    assert loader_s(64, None) == 0


def test_a_fit_finds_the_link_it_was_made_of() -> None:
    sizes = [32e3, 128e3, 512e3, 2e6, 8e6]
    rng = np.random.Generator(np.random.PCG64(1))
    exact = [ring_s(size, 4, LINK) for size in sizes]
    noisy = [value * math.exp(0.02 * rng.standard_normal()) for value in exact]
    found = fit(lambda p: [ring_s(size, 4, Link(p[0], p[1])) for size in sizes], noisy, [1e-5, 1e-9])
    assert found.values == pytest.approx([0.001, 1e-8], rel=0.06)
    assert 0.005 < found.spread[0] < 0.1
    drawn = found.draw(4000, np.random.Generator(np.random.PCG64(2)))
    assert np.std(np.log(drawn), axis=0) == pytest.approx(found.spread, rel=0.1)
    assert (drawn > 0).all()


def test_a_fit_of_what_it_cannot_tell_apart_says_so() -> None:
    """Only small messages: nothing about the bandwidth."""
    found = fit(lambda p: [ring_s(4, 2, Link(p[0], p[1])) for _ in range(4)], [0.002] * 4, [1e-4, 1e-9])
    assert found.values[0] == pytest.approx(0.001, rel=0.02)
    assert found.spread[0] < 0.01 and found.spread[1] > 0.9
    assert found.residual < 1e-3
