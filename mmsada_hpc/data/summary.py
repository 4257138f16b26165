"""What a person reads after (or before) packing: counts per domain, split and class, sizes, time, what was left out
and why.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from mmsada_hpc.data.build import Built, StorePlan, Surveyed
from mmsada_hpc.data.store import Store

Counts = Mapping[tuple[str, str, str], int]


def table_of_counts(counts: Counts, classes: Sequence[str]) -> str:
    """Segments per (domain, split) in rows and class in columns, as text."""
    rows = [["domain", "split", *classes, "all"]]
    for domain, split in sorted({key[:2] for key in counts}):
        numbers = [counts.get((domain, split, name), 0) for name in classes]
        rows.append([domain, split, *map(str, numbers), str(sum(numbers))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(_align(cell, width, left=i < 2) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def _align(cell: str, width: int, *, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def counts_of(store: Store) -> Counts:
    """Segments per (domain, split, class) of a store."""
    names, segments = store.manifest, store.segments
    rows = zip(segments.domain.tolist(), segments.split.tolist(), segments.label.tolist(), strict=True)
    return Counter((names.domains[d], split, names.classes[label]) for d, split, label in rows)


def describe_store(built: Built) -> str:
    """The summary of a finished store."""
    if built.already:
        complete = f"{built.path}: already complete ({len(Store.open(built.path).segments)} segments); nothing to do"
        return "\n".join([complete, *_skipped(built.manifest.skipped)])
    store, manifest = Store.open(built.path), built.manifest
    megabytes = sum(entry.bytes for entry in (*manifest.shards, *manifest.tables)) / 1e6
    kept = f", {built.shards_kept} shard pairs kept from an earlier run" if built.shards_kept else ""
    lines = [
        f"{built.path}: {len(store.videos)} videos, {len(store.segments)} segments, {manifest.frames['rgb']} RGB "
        f"frames, {manifest.frames['flow'] // 2} flow pairs",
        table_of_counts(counts_of(store), manifest.classes),
        f"  {megabytes:.1f} MB in {len(manifest.shards)} shards, {built.seconds:.1f} s{kept}",
    ]
    return "\n".join([*lines, *_skipped(manifest.skipped)])


def describe_plan(plan: StorePlan, found: Surveyed) -> str:
    """What `--dry-run` prints: every video that would be packed, and the counts."""
    usable = {source.name for source in found.sources}
    counts = Counter((row.domain, row.split, plan.classes[row.label]) for row in plan.segments if row.video in usable)
    lines = [
        f"  {source.name}: about {one.frames} frames" for source, one in zip(found.sources, found.surveys, strict=True)
    ]
    frames, megabytes = (
        sum(one.frames for one in found.surveys),
        sum(one.estimated_bytes for one in found.surveys) / 1e6,
    )
    total = f"would pack {len(usable)} videos, about {frames} frames, about {megabytes:.0f} MB; nothing was written"
    return "\n".join([*lines, table_of_counts(counts, plan.classes), total, *_skipped(found.skipped)])


def _skipped(skipped: Sequence[Mapping[str, str]]) -> list[str]:
    return (
        [f"  skipped {len(skipped)} videos:", *(f"    {one['item']}: {one['why']}" for one in skipped)]
        if skipped
        else []
    )
