"""How many clips a second a node can decode: its ranks share its threads."""


def clips_ceiling(clips_per_s: float, *, threads: int, measured_threads: int) -> float:
    """Clips/s of a node with `threads` for decoding, from what was measured with some: in proportion, which a disk or
    the memory may not be.
    """
    return clips_per_s * threads / measured_threads


def loader_s(clips: int, ceiling: float | None) -> float:
    """Seconds that a node takes to decode its `clips` of a step, which no step is shorter than; `ceiling` in clips/s,
    None = decoding is never waited for.
    """
    return clips / ceiling if ceiling is not None else 0.0
