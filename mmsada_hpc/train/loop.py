"""The training loop, from top to bottom: two stages of updates, with evaluation, checkpoints and a common stop at the
step boundary.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmsada_hpc.cluster.join import say_to_all
from mmsada_hpc.config import Config
from mmsada_hpc.data.loader import Loader
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.base import Factors, moment
from mmsada_hpc.model.batch_norm import BatchNormState
from mmsada_hpc.observe.goodput import Ledger
from mmsada_hpc.observe.metrics import METRICS_FILE, MetricsLog, read_metrics
from mmsada_hpc.observe.progress import Progress
from mmsada_hpc.observe.screen import Screen
from mmsada_hpc.schedule import stage_schedule, updates
from mmsada_hpc.train.checkpoint import Checkpoints, Position, Score, TrainState
from mmsada_hpc.train.engine import Engine, make_engine
from mmsada_hpc.train.evaluate import SetScores, score_set
from mmsada_hpc.train.module import part_seed
from mmsada_hpc.train.noise import NoiseScale, parts_of
from mmsada_hpc.train.own_time import OwnTime
from mmsada_hpc.train.setup import Setup
from mmsada_hpc.train.stop import Interrupted, StopFlag, Stopped, agreed_signal
from mmsada_hpc.train.watch import Watch


@dataclass
class Trained:
    """What training leaves behind."""

    engine: Engine
    clips_per_s: float
    """Over all updates of this start, evaluation and checkpoints apart; 0 when there was none."""


class TrainLoop:
    """Trains one run; built once per start."""

    def __init__(
        self,
        setup: Setup,
        *,
        screen: Screen,
        metrics: MetricsLog,
        ledger: Ledger,
        checkpoints: Checkpoints,
        stop: StopFlag,
        watch: Watch,
    ) -> None:
        self.setup, self.config = setup, setup.config
        self.screen, self.metrics, self.ledger, self.checkpoints = screen, metrics, ledger, checkpoints
        self.stop, self.watch = stop, watch
        self.is_main = setup.world.rank == 0
        self.saved_at = time.monotonic()
        self.timed_clips, self.timed_s = 0, 0.0
        self.noise: NoiseScale | None = None
        """Of the stage that runs."""

    def run(self, state: TrainState) -> Trained:
        """From `state` to the end of stage 2."""
        engine: Engine | None = None
        is_resumed = bool(state.model)
        for stage in range(state.position.stage, last_position(self.config).stage + 1):
            steps = stage_schedule(self.config.train, stage).steps
            if engine is not None:
                state = TrainState(Position(stage, 0), engine.model_state(), {})
                engine.close()
            engine = self.start_stage(stage, state)
            if is_resumed:
                self._evaluate_what_is_missing(engine, state.position)
                is_resumed = False
            if state.position.step < steps:
                self._run_stage(engine, stage, start=state.position.step, steps=steps)
            state = TrainState(Position(stage, steps), {}, {})
        assert engine is not None
        return Trained(engine, self.timed_clips / self.timed_s if self.timed_s else 0.0)

    def start_stage(self, stage: int, state: TrainState) -> Engine:
        """The engine of a stage with the weights of `state`, or the initial ones."""
        module = self.setup.new_module()
        dtype = torch.float64 if self.config.train.precision == "fp64" else torch.float32
        module.to(dtype)
        if state.model:
            module.load_state_dict(state.model)
        if stage == 2 and state.position.step == 0:
            module.method.start_stage2(part_seed(self.config.seed, "stage 2 heads"))
        # An optimiser that is not there yet starts at zero momentum: that is the reset between the stages.
        return make_engine(module, self.config.train, self.setup.layout, momentum=state.momentum or None)

    def _run_stage(self, engine: Engine, stage: int, *, start: int, steps: int) -> None:
        loader = self.setup.train_loader(stage, start, features=engine.module.network.feature_sizes)
        norms = BatchNormState(engine.module, decay=self.config.model.batch_norm.decay)
        own = OwnTime(engine.module, self.setup.device)
        self.noise = self._noise_scale(engine, stage, start)
        label = f"stage {stage}/2"
        with Progress(self.screen, steps, label, start=start, log_seconds=self.config.observe.log_seconds) as progress:
            for step in range(start, steps):
                self.watch.heart.say("step", stage=stage, step=step)
                row, told = self._update(engine, loader, norms, own, stage, step)
                done = Position(stage, step + 1)
                progress.update(step + 1, row)
                reason, best = agreed_signal(told[:-1]), None
                if reason is None and self._evaluates_after(done):
                    try:
                        best = self._evaluate(engine, done, self._sets_of(done), progress.message)
                    except Interrupted as interrupted:
                        reason = interrupted.number  # a resume evaluates before it goes on
                if reason or best or told[-1] or self._saves_after(done):
                    self._save(engine, done, best=best)
                if reason:
                    self.checkpoints.close()
                    raise Stopped(f"after step {done.step} of stage {stage}", reason)
        own.close()
        self.noise.close()

    def _noise_scale(self, engine: Engine, stage: int, start: int) -> NoiseScale:
        config, layout = self.config, self.setup.layout
        gives = config.train.noise_scale and not config.train.zero_stage
        gives = gives and not self.setup.method.crosses_ranks(config, layout)
        noise = NoiseScale(engine.module, layout, parts_of(layout) if gives else None)
        if start and self.is_main and (config.run.dir / METRICS_FILE).is_file():
            rows = read_metrics(config.run.dir)
            noise.replay(r for r in rows if r["kind"] == "train" and r["stage"] == stage and r["step"] <= start)
        return noise

    def _update(
        self, engine: Engine, loader: Loader, norms: BatchNormState, own: OwnTime, stage: int, step: int
    ) -> tuple[dict[str, Any], list[float]]:
        """One update of all ranks; returns its row of metrics.jsonl, and how many ranks want to stop (by signal) and
        to save.
        """
        begin, loader.wait_s = time.perf_counter(), 0.0
        noise = self.noise
        assert noise is not None
        own.begin()
        noise.begin()
        factors = engine.module.method.factors(moment(self.config.train, stage, step))
        figures = []
        for micro in range(self.setup.layout.accumulation):
            last = micro == self.setup.layout.accumulation - 1
            figures.append(engine.forward_backward(loader.next(), factors, last=last).figures)
            noise.after_micro_batch(micro)
        names = list(figures[0])
        local = torch.stack([torch.stack([part[name].detach() for part in figures]).sum() for name in names])
        self.watch.heart.say("agree")
        packed, own_s, told = self._agree(engine, norms, torch.cat([local, noise.share().to(local)]), own.seconds())
        norm = engine.gradient_norm()
        values = packed.tolist()
        shared = dict(zip(names, values[: len(names)], strict=True))
        self._check_finite(shared, norm, stage, step)
        lr = stage_schedule(self.config.train, stage).learning_rate(step)
        engine.update(lr)
        seconds = time.perf_counter() - begin
        self.watch.first_update_done()
        self.timed_clips += self.config.train.global_batch
        self.timed_s += seconds
        row = {
            **self._position_row("train", Position(stage, step + 1)),
            **self._loss_row(shared, factors),
            "lr": lr,
            "grl": factors.reversal,
            "grad_norm": None if norm is None else float(norm),
            **noise.row(values[len(names) :], None if norm is None else float(norm)),
            "clips_per_s": self.config.train.global_batch / seconds,
            "step_s": seconds,
            "data_wait_s": loader.wait_s,
        }
        if self.is_main:
            self.checkpoints.poll()
            self.metrics.write(row)
            self.ledger.step(row, own_s)
        return row, told

    def _agree(
        self, engine: Engine, norms: BatchNormState, local: Tensor, own_s: float
    ) -> tuple[Tensor, list[float], list[float]]:
        """The one small all-reduce of a step: batch-norm sums, logged figures, every rank's own seconds, and how many
        want to stop and to save. Moves the running statistics.
        """
        sums = norms.take_sums()
        period = 60 * self.config.checkpoint.minutes
        due = self.is_main and period > 0 and time.monotonic() - self.saved_at > period
        flags = sums.new_tensor([*self.stop.flags(), float(due)])
        own = sums.new_zeros(self.setup.world.size)
        own[self.setup.world.rank] = own_s
        parts = [sums, local.to(sums), own, flags]
        packed = torch.cat(parts)
        dist.all_reduce(packed)
        sums, values, own, flags = packed.split([len(part) for part in parts])
        if bool(torch.isfinite(sums).all()):  # else the guard below ends the run, with these statistics as they were
            norms.update(sums, self.setup.layout.groups)
        else:
            values = torch.full_like(values, torch.nan)
        return values, own.tolist(), flags.tolist()

    def _check_finite(self, figures: Mapping[str, float], norm: Tensor | None, stage: int, step: int) -> None:
        bad = [name for name, value in figures.items() if not abs(value) < float("inf")]
        if norm is not None and not bool(torch.isfinite(norm)):
            bad.append("grad_norm")
        if bad:
            kept = self.checkpoints.saved()
            last = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
            raise UserError(
                f"{', '.join(bad)} not finite at step {step + 1} of stage {stage}; no update was made, {last}; lower "
                f"train.stage{stage}.lr, or look at the clips of that step"
            )

    def _loss_row(self, figures: Mapping[str, float], factors: Factors) -> dict[str, float]:
        total = sum(factor * figures[f"loss_{term}"] for term, factor in factors.terms.items())
        return {"loss": total} | {
            name: value if name.startswith("loss") else 100 * value for name, value in figures.items()
        }

    def _position_row(self, kind: str, done: Position) -> dict[str, Any]:
        before = stage_schedule(self.config.train, 1).steps if done.stage == 2 else 0
        return {"kind": kind, "stage": done.stage, "step": done.step, "global_step": before + done.step}

    def _evaluates_after(self, done: Position) -> bool:
        every = updates(self.config.train, self.config.eval.every)
        if done == last_position(self.config):
            return False  # the end is scored by the caller, on every set
        return self._is_named(done) or (bool(every) and done.step % every == 0)

    def _is_named(self, done: Position) -> bool:
        return done.stage == 2 and done.step in self.config.eval.checkpoints

    def _sets_of(self, done: Position) -> tuple[str, ...]:
        return self.config.eval.sets if self._is_named(done) else self.config.eval.during

    def _evaluate(
        self, engine: Engine, done: Position, sets: Sequence[str], say: Callable[[str], None]
    ) -> Score | None:
        """Score some sets on the way; returns the score where it is the best so far by `checkpoint.best_by`."""
        with self.ledger.spend("evaluate"):
            found = {name: self.score(engine, name, done) for name in sets}
        parts = [f"{name} {summary['top1']:.1f} %" for name, summary in found.items()]
        say(f"stage {done.stage} step {done.step}: top-1 {', '.join(parts)}")
        return self._best_of({name: float(summary["top1"]) for name, summary in found.items()})

    def _best_of(self, top1: Mapping[str, float]) -> Score | None:
        name = self.config.checkpoint.best_by
        if name is None or name not in top1:
            return None
        score = Score(name, top1[name])
        return score if say_to_all(self.checkpoints.is_best(score) if self.is_main else None) else None

    def _evaluate_what_is_missing(self, engine: Engine, position: Position) -> None:
        """A run may have been stopped between an update and the evaluation that follows it."""
        if not position.step or not self._evaluates_after(position):
            return
        known = say_to_all(self._scored_at(position) if self.is_main else None)
        missing = [name for name in self._sets_of(position) if name not in known]
        if not missing:
            return
        try:
            best = self._evaluate(engine, position, missing, self.screen.print) or self._best_of(known)
            if best is not None:
                self._save(engine, position, best=best)
        except Interrupted as interrupted:
            raise Stopped("in an evaluation", interrupted.number) from None

    def _scored_at(self, position: Position) -> dict[str, float]:
        """Top-1 by set, of the rows that a former start wrote at a position."""
        place = self._position_row("eval", position)
        rows = [row for row in read_metrics(self.config.run.dir) if place.items() <= row.items()]
        return {row["set"]: float(row["top1"]) for row in rows}

    def leave_if_told(self) -> None:
        """Between two batches of an evaluation: all ranks stop, or none.

        Raises:
            Interrupted: a rank was told to stop.
        """
        self.watch.heart.say("evaluate")
        flags = torch.tensor(self.stop.flags())
        dist.all_reduce(flags)
        reason = agreed_signal(flags.tolist())
        if reason is not None:
            raise Interrupted(reason)

    def score(self, engine: Engine, name: str, done: Position) -> dict[str, Any]:
        """Evaluate one set and log it."""
        scores: SetScores = score_set(self.setup, engine, name, self.screen, check=self.leave_if_told)
        summary = scores.summary(len(self.setup.store.manifest.classes))
        if len(scores.rows) > 1:
            summary |= scores.probe(engine, domain=int(name.startswith("target")))
        if self.is_main:
            logged = {
                key: summary[key]
                for key in summary
                if key.startswith(("top1", "mean_recall", "segments", "domain_acc", "corr_acc"))
            }
            self.metrics.write({**self._position_row("eval", done), "set": name, **logged, "seconds": scores.seconds})
        return summary

    def _saves_after(self, done: Position) -> bool:
        every = updates(self.config.train, self.config.checkpoint.every)
        return done == last_position(self.config) or self._is_named(done) or (bool(every) and done.step % every == 0)

    def _save(self, engine: Engine, done: Position, *, best: Score | None) -> None:
        self.watch.heart.say("save", step=done.step)
        with self.ledger.spend("checkpoint"):
            state = TrainState(done, engine.model_state(), engine.momentum())
            if self.is_main:
                self.metrics.sync()  # a checkpoint that outlives its host must not be ahead of its rows
                self.checkpoints.save(state, keep_as_best=best)
            dist.barrier()
        self.saved_at = time.monotonic()


def last_position(config: Config) -> Position:
    """The end of a run; one without a stage 2 ends with stage 1."""
    first, second = (stage_schedule(config.train, stage).steps for stage in (1, 2))
    return Position(2, second) if second else Position(1, first)
