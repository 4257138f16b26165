"""Tables of plain text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, left: int = 1, last: int = 0) -> list[str]:
    """Columns as wide as their widest word; the first `left` and the `last` of them begin at their left, the others end
    at their right.
    """
    words_from = len(rows[0]) - last
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            word.ljust(width) if k < left or k >= words_from else word.rjust(width)
            for k, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def ms(seconds: float) -> str:
    """Milliseconds with about three digits."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def percent(share: float) -> str:
    """Whole percents; one digit below ten and from 99 to 100, where it says something."""
    value = 100 * share
    return f"{value:.1f} %" if abs(value) < 9.95 or 99 < value < 99.95 else f"{value:.0f} %"
