"""`python -m tests.cluster.measure_links FILE`: what `mmsada scale validate` compares its forecast with.

Every engine and all-reduce that the file names, on every link and number of nodes, one rank with one thread on each.
What was measured is kept, so a campaign that was cut short goes on.
"""

import argparse
import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.validation_file import Measurement, Validation, read_validation
from tests.cluster import life, links
from tests.cluster.cluster import Cluster
from tests.cluster.links import Link
from tests.cluster.processes import ClusterError, wait_until
from tests.cluster.runs import launcher, profile
from tests.cluster.slurm_conf import Size

_JOB_S = 400.0
_CPUS = 8


@dataclass(frozen=True)
class Job:
    """One job of Slurm: all engines at a number of clips, or all-reduce, or both."""

    link: str
    ranks: int
    cell: Measurement | None
    all_reduce: bool

    def __str__(self) -> str:
        cell = self.cell
        engines = [f"engines with {cell.clips} clips in {cell.precision}"] if cell else []
        return f"{self.link}, {self.ranks} nodes: {' and '.join([*engines, *['all-reduce'] * self.all_reduce])}"

    def words(self, campaign: Validation) -> list[str]:
        """Of `mmsada bench`."""
        words = ["comm", "--repeats", str(campaign.repeats), "--steps", str(campaign.steps)]
        if self.cell is not None:
            words += ["--clips", str(self.cell.clips), "--precision", self.cell.precision]
            words += ["--engines", *campaign.engines]
        if self.all_reduce:
            words += ["--no-mpi", "--sizes", *campaign.sizes]
        if not (self.all_reduce and self.cell):
            words += ["--part", "all-reduce" if self.all_reduce else "engines"]
        return words


def jobs_left(
    campaign: Validation, *, links: Sequence[str] | None = None, ranks: Sequence[int] | None = None
) -> list[Job]:
    """What has no file yet, link by link; all-reduce goes with the first engines that are still to be measured.

    Raises:
        UserError: a link or a number of ranks that the file does not name.
    """
    for one in [*(links or ()), *(ranks or ())]:
        if one not in campaign.links and one not in campaign.ranks:
            raise UserError(f"{one}: none of the file's {', '.join(map(str, (*campaign.links, *campaign.ranks)))}")
    found = []
    for link, num_ranks in itertools.product(links or campaign.links, ranks or campaign.ranks):
        found += _jobs_of(campaign, link, num_ranks)
    return found


def _jobs_of(campaign: Validation, link: str, ranks: int) -> list[Job]:
    cells: list[Measurement | None] = [
        cell
        for cell in campaign.cells
        if (cell.link, cell.ranks) == (link, ranks) and not campaign.engines_file(cell).exists()
    ]
    reduces = not campaign.all_reduce_file(link, ranks).exists()
    return [Job(link, ranks, cell, reduces and k == 0) for k, cell in enumerate(cells or [None] * reduces)]


def measure(cluster: Cluster, campaign: Validation, jobs: Sequence[Job]) -> None:
    """Run them one after another; tells how far it is."""
    begin, done = time.monotonic(), 0
    for name in dict.fromkeys(job.link for job in jobs):
        shape = campaign.links[name]
        with links.shaped(cluster, Link(shape.rate_mbit, shape.delay_ms)):
            _tell_link(cluster, campaign.folder / name, shape.rate_mbit)
            for job in [job for job in jobs if job.link == name]:
                seconds = _run(cluster, campaign, job)
                done += 1
                left_s = (time.monotonic() - begin) / done * (len(jobs) - done)
                print(f"{done}/{len(jobs)} {job}: {seconds:.0f} s; about {left_s / 60:.0f} min left", flush=True)


def _tell_link(cluster: Cluster, folder: Path, rate_mbit: float) -> None:
    """Measure the link itself, and keep that."""
    mbit, round_ms = links.measure(cluster, *cluster.nodes[:2], megabytes=rate_mbit / 8)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "link.json", [{"stream_mbit": mbit, "round_trip_ms": round_ms}])
    print(f"{folder.name}: {mbit:.0f} mbit/s in one stream, {round_ms:.2f} ms there and back", flush=True)


def _run(cluster: Cluster, campaign: Validation, job: Job) -> float:
    """Queue one and wait for it; its rows are kept when it went well. Returns the seconds it took."""
    begin = time.monotonic()
    out = (campaign.folder / "jobs" / f"{job.link}-r{job.ranks}-{time.time_ns()}").absolute()
    out.mkdir(parents=True)
    where = profile(out, nodes=job.ranks)
    said = launcher(cluster, "bench", "--cluster", where, "--out", out, *job.words(campaign))
    job_id = said.split("job ")[1].split(":")[0]
    try:
        wait_until(
            lambda: cluster.state(job_id) not in ("PENDING", "RUNNING", "COMPLETING"),
            timeout=_JOB_S,
            what=f"the end of job {job_id}, {job}",
            every=0.3,
        )
    finally:
        if cluster.state(job_id) in ("PENDING", "RUNNING"):
            cluster.run(["scancel", job_id])
    printed = "".join(path.read_text(errors="replace") for path in sorted((out / "submitit").glob("*_log.*")))
    rows = _rows(out / "rows.jsonl", printed)
    _check(job, rows, printed)
    _keep(campaign, job, rows)
    shutil.rmtree(out)
    return time.monotonic() - begin


def _rows(path: Path, printed: str) -> list[dict[str, Any]]:
    if not path.exists() or not (text := path.read_text(encoding="utf-8")):
        raise ClusterError(f"no rows in {path}; the job said:\n{printed[-3000:]}")
    return [json.loads(line) for line in text.splitlines()]


def _check(job: Job, rows: Sequence[dict[str, Any]], printed: str) -> None:
    """One rank a node, one thread a rank, all by eth0."""
    told = re.search(r"(\d+) ranks by .*, (\d+) threads each: (.*)", printed)
    hosts = set(re.findall(r"(\S+) has rank \d+(?:;|$)", told[3])) if told else set()
    if told is None or (int(told[1]), int(told[2]), len(hosts)) != (job.ranks, 1, job.ranks):
        raise ClusterError(f"not {job.ranks} ranks of one thread on a node each:\n{printed[-3000:]}")
    interfaces = {row["details"]["interface"] for row in rows if "interface" in row["details"]}
    if interfaces != {"eth0"} or (job.cell and not any("engine" in row["details"] for row in rows)):
        raise ClusterError(f"not all was measured, and by eth0 ({', '.join(sorted(interfaces))}):\n{printed[-3000:]}")


def _keep(campaign: Validation, job: Job, rows: Sequence[dict[str, Any]]) -> None:
    parts = {True: [row for row in rows if "engine" in row["details"]]}
    parts[False] = [row for row in rows if "engine" not in row["details"]]
    files: list[tuple[Path, bool]] = [(campaign.engines_file(job.cell), True)] if job.cell else []
    if job.all_reduce:
        files.append((campaign.all_reduce_file(job.link, job.ranks), False))
    for path, is_engines in files:
        _write(path, parts[is_engines])


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.measure_links", description=__doc__)
    parser.add_argument("file", type=Path, help="such as configs/study/validation.yaml")
    parser.add_argument("--links", nargs="+", metavar="LINK", help="these alone")
    parser.add_argument("--ranks", nargs="+", type=int, metavar="N", help="these numbers of nodes alone")
    parser.add_argument("--plan", action="store_true", help="say what would be measured, and stop")
    arguments = parser.parse_args()
    try:
        campaign = read_validation(arguments.file)
        jobs = jobs_left(campaign, links=arguments.links, ranks=arguments.ranks)
        print("\n".join([*map(str, jobs), f"{len(jobs)} jobs left, into {campaign.folder}"]), flush=True)
        if jobs and not arguments.plan:
            _measure_all(campaign, jobs)
    except (ClusterError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure_all(campaign: Validation, jobs: Sequence[Job]) -> None:
    """On the cluster that is up, or on one that is up for this alone."""
    nodes = max(campaign.ranks)
    try:
        cluster, is_fresh = Cluster.open(), False
    except ClusterError:
        cluster, is_fresh = life.up(Size(nodes, _CPUS))
    try:
        if cluster.size_nodes < nodes:
            raise ClusterError(f"the cluster that is up has {cluster.size_nodes} nodes, not {nodes}: down first")
        measure(cluster, campaign, jobs)
    finally:
        if is_fresh:
            life.down()


if __name__ == "__main__":
    sys.exit(main())
