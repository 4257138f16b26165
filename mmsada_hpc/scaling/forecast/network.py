"""What messages cost between ranks: latency and time a byte of each class of link, and the ways to send them round.

The textbook costs are those of Thakur, Rabenseifner and Gropp (2005), for two trees in pieces those of Sanders, Speck
and Träff (2009). The rings of gloo are read from its source (gloo/allreduce.cc, allgather.cc).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

Algorithm = Literal["auto", "ring", "tree", "hierarchical", "gloo"]
_GLOO_SEGMENT = 1 << 20
"""Bytes; the most that gloo sends at once."""


@dataclass(frozen=True)
class Link:
    """One class of link: a message of S bytes takes latency_s + S * (per_byte + host_s_per_byte)."""

    latency_s: float
    per_byte: float
    """Seconds on the link."""
    host_s_per_byte: float = 0.0
    """Seconds of the processors that compute, too: copies, sums, the protocol. No backward hides them."""

    def message_s(self, size: float) -> float:
        """Seconds of one message of `size` bytes."""
        return self.latency_s + size * (self.per_byte + self.host_s_per_byte)

    def scaled(self, *, latency: float = 1.0, per_byte: float = 1.0) -> "Link":
        """The link with its latency and its time a byte multiplied."""
        return Link(self.latency_s * latency, self.per_byte * per_byte, self.host_s_per_byte * per_byte)


FREE = Link(0.0, 0.0)


@dataclass(frozen=True)
class Team:
    """Ranks that reduce together, as many on every node."""

    nodes: int
    per_node: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


def pass_s(size: float, ranks: int, link: Link) -> float:
    """Once round a ring, as an all-gather into `size` bytes or a reduce-scatter: n - 1 messages of 1/n of it."""
    return (ranks - 1) * link.message_s(size / ranks)


def ring_s(size: float, ranks: int, link: Link) -> float:
    """All-reduce of `size` bytes by a ring: twice round."""
    return 2 * pass_s(size, ranks, link)


def tree_s(size: float, ranks: int, link: Link) -> float:
    """All-reduce up and down a binary tree, whole messages."""
    return 2 * math.ceil(math.log2(ranks)) * link.message_s(size)


def pipelined_tree_s(size: float, ranks: int, link: Link) -> float:
    """All-reduce over two binary trees, each with half of the bytes and in pieces: every link carries what a ring's
    does, and only the latency grows with the depth.
    """
    carried = 2 * (ranks - 1) / ranks * size
    return 2 * math.ceil(math.log2(ranks)) * link.latency_s + link.message_s(carried) - link.latency_s


def segmented_pass_s(size: float, ranks: int, link: Link, *, most: float = _GLOO_SEGMENT) -> float:
    """Once round gloo's ring: each rank's part in two or more segments of at most `most` bytes, of which two are on the
    way.

    Segment i leaves when i - 2 has arrived and i - 1 has left, so two of them take the longer of both.
    """
    if ranks == 1:
        return 0.0
    per_rank = math.ceil(max(math.ceil(size / most), 2 * ranks) / ranks)
    took = size / (per_rank * ranks) * (link.per_byte + link.host_s_per_byte)
    pairs, odd = divmod(per_rank * (ranks - 1) - 1, 2)
    return link.latency_s + took + pairs * max(2 * took, link.latency_s + took) + odd * took


def hierarchical_s(size: float, team: Team, inside: Link, between: Link) -> float:
    """All-reduce inside each node by a ring (1/p in each rank), of that between nodes, and back."""
    return ring_s(size, team.per_node, inside) + ring_s(size, team.nodes, between)


@dataclass(frozen=True)
class Network:
    """The links of a cluster of equal nodes."""

    between: Link
    """Between two nodes, over all their ports together."""
    inside: Link = FREE
    """Between two ranks of a node."""
    algorithm: Algorithm = "auto"
    """auto: the quickest of all but gloo's for each size, as NCCL's tuning chooses."""

    def flat(self, team: Team) -> Link:
        """The mean hop of a ring through all ranks, which enters every node once, as wide as its narrowest link."""
        if team.nodes == 1:
            return self.inside
        if team.per_node == 1:
            return self.between
        share = team.nodes / team.ranks
        narrow = max(self.inside, self.between, key=lambda link: link.per_byte)
        latency_s = (1 - share) * self.inside.latency_s + share * self.between.latency_s
        return replace(narrow, latency_s=latency_s)

    def all_reduce_s(self, size: float, team: Team) -> float:
        """Seconds for `size` bytes on every rank."""
        if team.ranks == 1:
            return 0.0
        if self.algorithm == "gloo":
            return 2 * segmented_pass_s(size, team.ranks, self.flat(team))
        if self.algorithm == "ring":
            return ring_s(size, team.ranks, self.flat(team))
        if self.algorithm == "tree":
            return tree_s(size, team.ranks, self.flat(team))
        levels = hierarchical_s(size, team, self.inside, self.between)
        if self.algorithm == "hierarchical":
            return levels
        over = ring_s(size, team.per_node, self.inside) + pipelined_tree_s(size, team.nodes, self.between)
        return min(levels, over, ring_s(size, team.ranks, self.flat(team)))

    def all_gather_s(self, size: float, team: Team) -> float:
        """Seconds until every rank has all `size` bytes, of which each had its share."""
        if team.ranks == 1:
            return 0.0
        if self.algorithm == "gloo":
            return segmented_pass_s(size, team.ranks, self.flat(team), most=math.inf)
        flat = pass_s(size, team.ranks, self.flat(team))
        levels = pass_s(size, team.nodes, self.between) + pass_s(size, team.per_node, self.inside)
        return min(flat, levels) if self.algorithm in ("auto", "hierarchical") else flat

    @property
    def in_flight(self) -> int:
        """Messages under way at once: torch's group of gloo has two threads, NCCL's one stream."""
        return 2 if self.algorithm == "gloo" else 1

    def instant(self) -> "Network":
        """The same without latency."""
        return self.scaled(latency=0.0)

    def without_host(self) -> "Network":
        """The links alone."""
        return replace(
            self,
            between=replace(self.between, host_s_per_byte=0.0),
            inside=replace(self.inside, host_s_per_byte=0.0),
        )

    def scaled(self, *, latency: float = 1.0, per_byte: float = 1.0) -> "Network":
        """Every link with its latency and its time a byte multiplied."""
        between, inside = (link.scaled(latency=latency, per_byte=per_byte) for link in (self.between, self.inside))
        return replace(self, between=between, inside=inside)
