"""Counter-based random numbers that depend on their coordinates alone (law 1).

Only the raw 64-bit words of NumPy's Philox are used: bit generators are stable by promise, the methods of `Generator`
are not.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


class Purpose(IntEnum):
    """What a stream of words is for; part of the Philox key, so no two purposes share words."""

    ORDER = 1
    WHOLE_PASS = 2
    SHUFFLE = 3
    WINDOW = 4
    DROPOUT = 5


def words(*, seed: int, purpose: Purpose, stage: int, step: int, lane: int, shape: tuple[int, ...]) -> Words:
    """Raw words of the cell (seed, purpose, stage, step, lane); a prefix does not depend on how many are asked for."""
    bits = np.random.Philox(
        key=np.array([seed, purpose], np.uint64), counter=np.array([0, lane, step, stage], np.uint64)
    )
    drawn: Words = bits.random_raw(int(np.prod(shape)))
    return drawn.reshape(shape)


def uniform(word: Words, count: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Integers in [0, count) from the upper 32 bits; the bias is below count / 2^32."""
    upper = word >> np.uint64(32)
    return ((upper * np.asarray(count, np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutation(word: Words) -> NDArray[np.int64]:
    """The permutation that sorts the words."""
    return np.argsort(word, kind="stable").astype(np.int64)


def keep_mask(
    *, seed: int, stage: int, step: int, lane: int, rows: int, features: int, drop: float
) -> NDArray[np.float32]:
    """`(rows, features)` inverted-dropout factors, 0 or 1 / (1 - drop), from 16 bits each."""
    per_row = -(-features // 4)
    cell = words(seed=seed, purpose=Purpose.DROPOUT, stage=stage, step=step, lane=lane, shape=(rows, per_row))
    shifts = np.array([0, 16, 32, 48], np.uint64)
    bits = ((cell[..., None] >> shifts) & np.uint64(0xFFFF)).reshape(rows, -1)[:, :features]
    kept = bits >= np.uint64(round(drop * 65536))
    return kept.astype(np.float32) / np.float32(1 - drop)
