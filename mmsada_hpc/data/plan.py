"""What every step trains on: a pure function of (seed, stage, step), the same on every machine (laws 1 and 3).

Spec 2.3 and 4.4: per domain, segments without replacement within an epoch; the first half of a domain's batch are
corresponding pairs, the second half take the flow of
their neighbour; then a shuffle. RGB and flow windows, crops and flips are drawn apart. A third stream takes its
neighbour's neighbour, so that no two streams of a negative correspond (in a domain smaller than its share of the batch
the first and the third may).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.philox import Purpose, permutation, uniform, words
from mmsada_hpc.data.windows import OFFSETS, SIZE_PAIRS, Ints, WindowRule, train_boxes
from mmsada_hpc.errors import UserError

ClipWeights = Mapping[str, NDArray[np.float64]]
WeighClips = Callable[[Ints, NDArray[np.bool_]], ClipWeights]


@dataclass(frozen=True)
class Views:
    """One stream's share of N clips: where to look and how."""

    segment_N: Ints
    centre_N: Ints
    box_N4: Ints
    """y, x, height, width in pixels of the stored frame."""
    flip_N: NDArray[np.bool_]

    def take(self, rows: Ints) -> "Views":
        return Views(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class ClipPlan:
    """N clips, source before target."""

    views: Mapping[str, Views]
    """Per stream."""
    domain_N: Ints
    """0 source, 1 target."""
    label_N: Ints
    """Class of the first stream's segment, for a target clip too; weight 0 keeps it out of the classification loss."""
    corresponds_N: NDArray[np.bool_]
    weights: ClipWeights
    """Per loss term 1 / (clips of the global batch in that term), or 0 (law 3)."""

    def __len__(self) -> int:
        return len(self.domain_N)

    def take(self, rows: Ints) -> "ClipPlan":
        weights = {term: weight[rows] for term, weight in self.weights.items()}
        return ClipPlan(
            {stream: views.take(rows) for stream, views in self.views.items()},
            self.domain_N[rows],
            self.label_N[rows],
            self.corresponds_N[rows],
            weights,
        )


@dataclass(frozen=True)
class Pool:
    """The training segments of one domain (row numbers of the store) in the store's order."""

    rows: Ints
    start: Ints
    stop: Ints
    label: Ints

    def __len__(self) -> int:
        return len(self.rows)


class EpochOrder:
    """Positions in a pool, drawn `draw` at a time without replacement; a batch that straddles two epochs repeats
    nothing.

    Stateless: the permutations it keeps are a cache.
    """

    def __init__(self, *, seed: int, stage: int, domain: int, pool: int, draw: int) -> None:
        assert 0 <= draw < pool
        self._seed, self._stage, self._domain, self._pool, self._draw = seed, stage, domain, pool, draw
        self._cache: dict[int, Ints] = {}

    def positions(self, step: int) -> Ints:
        """`(draw,)` positions of this step."""
        stream = step * self._draw + np.arange(self._draw, dtype=np.int64)
        epochs, places = stream // self._pool, stream % self._pool
        parts = [self._epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _epoch(self, epoch: int) -> Ints:
        if epoch in self._cache:
            return self._cache[epoch]
        # Repairing the head touches the first `draw` places alone, so in a pool of two draws or more the previous tail
        # is never a repaired one; a smaller pool is walked from epoch 0.
        first = epoch if self._pool >= 2 * self._draw else max((e for e in self._cache if e < epoch), default=-1) + 1
        for e in range(first, epoch + 1):
            before = self._cache.get(e - 1)
            self._cache[e] = self._without_repeats(e, before if before is not None else self._raw(e - 1))
        self._cache = {e: order for e, order in self._cache.items() if e >= epoch - 1}
        return self._cache[epoch]

    def _raw(self, epoch: int) -> Ints:
        if epoch < 0:
            return np.empty(0, np.int64)
        return permutation(
            words(
                seed=self._seed,
                purpose=Purpose.ORDER,
                stage=self._stage,
                step=epoch,
                lane=self._domain,
                shape=(self._pool,),
            )
        )

    def _without_repeats(self, epoch: int, previous: Ints) -> Ints:
        order = self._raw(epoch)
        head = -(epoch * self._pool) % self._draw if self._draw else 0
        if not head:
            return order
        tail = set(previous[len(previous) - (self._draw - head) :].tolist())
        spare = (place for place in range(head, self._pool) if int(order[place]) not in tail)
        for place in range(head):
            if int(order[place]) in tail:
                other = next(spare)
                order[place], order[other] = order[other], order[place]
        return order


class Planner:
    """Makes the `ClipPlan` of any step of any stage."""

    def __init__(
        self,
        *,
        seed: int,
        pools: tuple[Pool, ...],
        domain_batch: int,
        rule: WindowRule,
        frame_size: tuple[int, int],
        crops: str,
        synchronised: bool,
        negatives: bool,
        weigh: WeighClips,
        streams: Sequence[str] = STREAMS,
    ) -> None:
        """Args:
        pools: source, or source and target.
        domain_batch: clips per domain and step.
        frame_size: height and width of the stored frames.
        crops: a key of `OFFSETS`.
        synchronised: positives share centre, crop and flip between the streams.
        negatives: half of each domain's batch are non-corresponding pairs.
        weigh: the method's per-clip weights from `(domain_N, corresponds_N)`.
        streams: the first gives a clip its label.
        """
        if negatives and domain_batch < 2 * len(streams):
            raise UserError(
                f"train.global_batch: {domain_batch} clips a domain leave too few negatives to pair over "
                f"{len(streams)} streams; use at least {2 * len(streams)} a domain"
            )
        for pool in pools:
            if negatives and len(pool) < 3:
                raise UserError(
                    f"data.source/data.target: a domain with {len(pool)} training segment(s) cannot always pair an RGB "
                    f"window with another segment's flow; it needs 3 or more"
                )
        self._seed, self._pools, self._batch = seed, pools, domain_batch
        self._rule, self._frame_size, self._offsets = rule, frame_size, np.array(OFFSETS[crops])
        self._synchronised, self._negatives, self._weigh, self._streams = synchronised, negatives, weigh, streams
        self._orders: dict[tuple[int, int], EpochOrder] = {}

    def step(self, stage: int, step: int) -> ClipPlan:
        """The global batch of update `step` (from 0) of a stage: `domain_batch` source clips, then as many target clips
        if there is a target pool.
        """
        parts = [self._domain(stage, step, domain) for domain in range(len(self._pools))]
        domain = np.concatenate([part.domain_N for part in parts])
        corresponds = np.concatenate([part.corresponds_N for part in parts])
        return ClipPlan(
            {stream: _join([part.views[stream] for part in parts]) for stream in self._streams},
            domain,
            np.concatenate([part.label_N for part in parts]),
            corresponds,
            self._weigh(domain, corresponds),
        )

    def _domain(self, stage: int, step: int, domain: int) -> ClipPlan:
        pool, n = self._pools[domain], self._batch
        position = self._positions(stage, step, domain)
        positive = np.arange(n) < (n - n // 2 if self._negatives else n)
        # Five words a stream: window, size, y, x, flip.
        shape = (n, 5 * len(self._streams))
        draws = words(seed=self._seed, purpose=Purpose.WINDOW, stage=stage, step=step, lane=domain, shape=shape)
        if self._negatives and n > len(pool):
            position = _part_neighbours(position, first=int(positive.sum()))
        lo, hi = self._rule.bounds(pool.start[position], pool.stop[position])
        views = {}
        for place, stream in enumerate(self._streams):
            first, own = draws[:, :5], draws[:, 5 * place : 5 * place + 5]
            centre = lo + uniform((first if self._synchronised else own)[:, 0], hi - lo + 1)
            looks = np.where((positive & self._synchronised)[:, None], first, own)[:, 1:]
            # A negative has the window of the next one (cyclic among the negatives) in the second stream, of the one
            # after it in the third.
            partner = np.arange(n)
            partner[~positive] = np.roll(partner[~positive], -place)
            views[stream] = self._views(pool.rows[position][partner], centre[partner], looks)
        clips = ClipPlan(views, np.full(n, domain), pool.label[position], positive, {})
        return clips.take(
            permutation(
                words(seed=self._seed, purpose=Purpose.SHUFFLE, stage=stage, step=step, lane=domain, shape=(n,))
            )
        )

    def _positions(self, stage: int, step: int, domain: int) -> Ints:
        pool = len(self._pools[domain])
        passes, draw = divmod(self._batch, pool)
        order = self._orders.setdefault(
            (stage, domain), EpochOrder(seed=self._seed, stage=stage, domain=domain, pool=pool, draw=draw)
        )
        whole = words(
            seed=self._seed, purpose=Purpose.WHOLE_PASS, stage=stage, step=step, lane=domain, shape=(passes, pool)
        )
        return np.concatenate([*(permutation(row) for row in whole), order.positions(step)])

    def _views(self, segment: Ints, centre: Ints, draws: NDArray[np.uint64]) -> Views:
        choice = len(self._offsets)
        pair = uniform(draws[:, 0], len(SIZE_PAIRS))
        y, x = self._offsets[uniform(draws[:, 1], choice)], self._offsets[uniform(draws[:, 2], choice)]
        return Views(segment, centre, train_boxes(*self._frame_size, pair, y, x), uniform(draws[:, 3], 2).astype(bool))


def _join(parts: list[Views]) -> Views:
    return Views(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Views)))


def _part_neighbours(position: Ints, first: int) -> Ints:
    """Reorder so that no two cyclic neighbours from place `first` on are one segment.

    Only a batch of several whole passes can hold a segment twice there; without this its "negative" would be a
    positive.
    """
    position = position.copy()
    places = np.arange(first, len(position))
    for a, b in zip(places, np.roll(places, -1), strict=True):
        if position[a] != position[b]:
            continue
        after = position[places[(b - first + 1) % len(places)]]
        for other in range(len(position)):
            if other in (a, b) or position[other] in (position[a], after):
                continue
            left, right = _neighbours(position, other, first)
            if position[b] not in (left, right):
                position[b], position[other] = position[other], position[b]
                break
    return position


def _neighbours(position: Ints, place: int, first: int) -> tuple[int, int]:
    """Segments before and after a place in the cycle of negatives; -1 for a positive, which has none."""
    if place < first:
        return -1, -1
    count = len(position) - first
    return int(position[first + (place - first - 1) % count]), int(position[first + (place - first + 1) % count])
