"""Run folders as a run leaves them."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mmsada_hpc.cluster.heartbeat import Beat, beat_path
from mmsada_hpc.cluster.job_record import JobRecord, add_job
from mmsada_hpc.observe.goodput_rows import StartRow, append_row

CONFIG = {
    "recipe": "released",
    "seed": 3,
    "method": {"name": "mmsada"},
    "data": {"source": ["K1"], "target": ["K2"]},
    "train": {"stage1": {"steps": 100}, "stage2": {"steps": 300}},
    "watch": {"heartbeat_seconds": 5.0},
}


class FakeRun:
    """A run folder, to be filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        self._starts: list[dict[str, Any]] = []

    def job(self, job_id: str, *, err: str = "", out: str = "", ago: float = 600.0) -> "FakeRun":
        folder = self.path / "submitit"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{job_id}_0_log.{end}" for end in ("out", "err")]
        for path, text in zip(paths, (out, err), strict=True):
            if text:
                path.write_text(text)
        record = JobRecord(
            job_id=job_id,
            submitted=time.time() - ago,
            nodes=2,
            tasks_per_node=1,
            minutes=60,
            stdout=str(paths[0]),
            stderr=str(paths[1]),
            code="",
            command="submit.py",
        )
        add_job(self.path, record)
        return self

    def start(self, name: str, *, ranks: int = 2, ago: float = 300.0) -> "FakeRun":
        """`name` as in run.json, `12.0-abcd` or `local-abcd`."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S +0000", time.gmtime(time.time() - ago))
        self._starts.append({"start": name, "started": moment, "host": "mn1", "world_size": ranks})
        (self.path / "run.json").write_text(json.dumps({"starts": self._starts}))
        return self

    def beat(
        self, start: str, rank: int, phase: str, *, host: str = "", pid: int = 0, ago: float = 1.0, why: str = ""
    ) -> "FakeRun":
        path = beat_path(self.path, rank)
        path.parent.mkdir(exist_ok=True)
        beat = Beat(rank, host or f"mn{rank + 1}", pid, start, 9, time.time() - ago, phase, 1, 40, why)
        path.write_text(json.dumps(asdict(beat)))
        return self

    def steps(self, number: int, *, seconds: float = 2.0, evaluated: Sequence[int] = ()) -> "FakeRun":
        """Updates that took `seconds` each; evaluations of both domains after some."""
        rows = list[dict[str, Any]]()
        for done in range(1, number + 1):
            stage, step = (1, done) if done <= 100 else (2, done - 100)
            place = {"stage": stage, "step": step, "global_step": done, "time": 1.7e9 + seconds * done}
            rows.append({"kind": "train", **place, "loss": 1.5, "clips_per_s": 64 / seconds, "step_s": seconds})
            if done in evaluated:
                both = (("source/test", 80.0), ("target/test", 40 + done / 10))
                rows += [{"kind": "eval", **place, "set": name, "top1": value} for name, value in both]
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self

    def account(self, **values: Any) -> "FakeRun":
        """A row of the goodput ledger."""
        append_row(self.path, StartRow(**values))
        return self

    def checkpoint(self, stage: int, step: int) -> "FakeRun":
        (self.path / "checkpoints" / f"stage{stage}-step{step:08d}").mkdir(parents=True)
        return self

    def result(self) -> "FakeRun":
        values = {"method": "mmsada", "target_top1": 61.25, "clips_per_s": 30.0, "steps": 400}
        (self.path / "result.json").write_text(json.dumps(values))
        return self

    def cancelled(self) -> "FakeRun":
        (self.path / "cancelled").write_text("")
        return self
