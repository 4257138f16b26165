"""What both stages, evaluation and the commands share: the config brought together with the store and the world."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mmsada_hpc.cluster.host import num_threads
from mmsada_hpc.cluster.world import World
from mmsada_hpc.config import Config
from mmsada_hpc.data.arrays import ArrayStream
from mmsada_hpc.data.graph import PipelineSettings
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.data.loader import DropoutPlan, Loader
from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.plan import Planner, Pool
from mmsada_hpc.data.schedule import TestSchedule, TrainSchedule
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.windows import Ints, WindowRule
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods import Method, batch_layout, find_method
from mmsada_hpc.model.backbones import StreamSpec, build_backbone
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.pretrained import check_pretrained
from mmsada_hpc.schedule import total_steps
from mmsada_hpc.train.gpu import check_switches, use_switches
from mmsada_hpc.train.module import TrainModule, new_module


@dataclass(frozen=True)
class Setup:
    """One run on one rank, before anything is trained."""

    config: Config
    store: Store
    world: World

    @cached_property
    def method(self) -> type[Method]:
        return find_method(self.config.method.name)

    @cached_property
    def layout(self) -> BatchLayout:
        return batch_layout(self.config, self.world.size)

    @cached_property
    def device(self) -> torch.device:
        wanted = self.config.train.device
        if wanted == "gpu" and not torch.cuda.is_available():
            raise UserError("train.device=gpu: torch sees no GPU on this host; use train.device=auto or cpu")
        gpu = torch.cuda.is_available() if wanted == "auto" else wanted == "gpu"
        return torch.device("cuda", self.world.local_rank) if gpu else torch.device("cpu")

    @cached_property
    def rule(self) -> WindowRule:
        data, stride = self.config.data, self.store.manifest.flow.stride
        if data.rgb_step % stride:
            raise UserError(
                f"data.rgb_step={data.rgb_step}: the flow of {self.store.path} has stride {stride}, so a window would "
                f"repeat flow frames; use a multiple of {stride}"
            )
        return WindowRule(data.num_frames, data.rgb_step, stride)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the stored frames."""
        return self.store.manifest.height, self.store.manifest.width

    @cached_property
    def decoding(self) -> PipelineSettings:
        data = self.config.data
        gpu = self.device.type == "cuda" if data.device == "auto" else data.device == "gpu"
        threads = data.threads or num_threads(self.world.local_size, cpus_per_task=self.world.cpus_per_task)
        return PipelineSettings(
            self.rule,
            data.crop,
            "gpu" if gpu else "cpu",
            self.world.local_rank if gpu else None,
            threads,
            data.prefetch,
            data.readers,
            data.motion,
        )

    @cached_property
    def planner(self) -> Planner:
        data = self.config.data
        return Planner(
            seed=self.config.seed,
            pools=tuple(self._pool(getattr(data, side), f"data.{side}") for side in self.method.trains_on),
            domain_batch=self.layout.domain_batch,
            rule=self.rule,
            frame_size=self.frame_size,
            crops=data.crops,
            synchronised=data.positives == "sync",
            negatives=self.method.negatives,
            weigh=self.method.weigh,
            streams=self.streams,
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of all modalities, RGB first."""
        return (*STREAMS, *self.config.data.streams)

    @cached_property
    def arrays(self) -> dict[str, ArrayStream]:
        """The modalities beside RGB and flow."""
        return {n: ArrayStream.open(n, settings, self.store) for n, settings in self.config.data.streams.items()}

    def rows(self, names: tuple[str, ...], split: str, *, key: str) -> Ints:
        """Segments of several domains in the store's order."""
        if not names:
            raise UserError(
                f"{key} is empty: name one or more domains of {self.store.path} "
                f"({', '.join(self.store.manifest.domains)})"
            )
        return np.concatenate([self.store.select(name, split) for name in names])

    def _pool(self, names: tuple[str, ...], key: str) -> Pool:
        rows, segments = self.rows(names, "train", key=key), self.store.segments
        self._check_windows(rows)
        return Pool(rows, segments.start[rows], segments.stop[rows], segments.label[rows])

    def _check_windows(self, rows: Ints) -> None:
        """Every window that could be drawn lies inside its video, in both streams."""
        segments, rule = self.store.segments, self.rule
        lo, hi = rule.bounds(segments.start[rows], segments.stop[rows])
        window = rule.rgb_frames(0)
        need_rgb = np.stack([lo + window[0], hi + window[-1]])
        needs = {"rgb": need_rgb, "flow": need_rgb // rule.flow_stride}
        extents = {stream: self.store.extents(stream)[:, segments.video[rows]] for stream in STREAMS}
        outside = np.stack([(needs[s][0] < extents[s][0]) | (needs[s][1] > extents[s][1]) for s in STREAMS], axis=1)
        for place, which in np.argwhere(outside)[:1]:
            row, stream = rows[place], STREAMS[which]
            need, have = needs[stream][:, place], extents[stream][:, place]
            raise UserError(
                f"segment {segments.uid[row]} ({self.store.videos[segments.video[row]]}, frames "
                f"{segments.start[row]}-{segments.stop[row]}): a window of data.num_frames={rule.num_frames} "
                f"at data.rgb_step={rule.rgb_step} needs {stream} frames {need[0]}-{need[1]}, the store has "
                f"{have[0]}-{have[1]}"
            )

    def new_module(self) -> TrainModule:
        """Initial weights on the training device."""
        module = new_module(self.config, num_classes=len(self.store.manifest.classes)).to(self.device)
        use_switches(module.network, self.config.train, self.device)
        return module

    def train_loader(self, stage: int, start: int, *, features: Mapping[str, int]) -> Loader:
        """Micro-batches of this rank from update `start` of a stage on."""
        schedule = TrainSchedule(self.planner, self.layout, self.world.rank, stage, start)
        return Loader(
            self.store,
            schedule,
            self.decoding,
            dropout=DropoutPlan(self.config.seed, self.config.model.dropout, features),
            arrays=self.arrays,
        )

    def test_loader(self, schedule: TestSchedule) -> Loader:
        return Loader(self.store, schedule, self.decoding, arrays=self.arrays)

    def checked(self) -> "Setup":
        """Itself, after everything that can be found wrong before the first step."""
        self.layout, self.rule, self.planner, self.device, self.arrays  # noqa: B018
        check_switches(self.config.train, self.device, self.world.size)
        self._check_streams()
        check_pretrained(self.config.model.pretrained.files(), width=self.config.model.width)
        height, width = self.frame_size
        if min(height, width) * 0.75 < self.config.data.crop / 2:
            raise UserError(
                f"data.crop={self.config.data.crop} would enlarge the stored {height}x{width} frames more than "
                f"twofold; use a smaller crop"
            )
        if self.config.model.batch_norm.test == "target" and len(self.method.trains_on) == 1:
            raise UserError(
                f"model.batch_norm.test=target: method.name={self.method.name} trains on one domain, whose "
                f"statistics are all there is; use mixture"
            )
        for key, names in (("eval.sets", self.config.eval.sets), ("eval.during", self.config.eval.during)):
            for name in names:
                side, _, split = name.partition("/")
                self._check_windows(
                    self.rows(getattr(self.config.data, side), split, key=f"data.{side} ({key}={name})")
                )
        return self

    def _check_streams(self) -> None:
        for name, settings in self.config.data.streams.items():
            if not name.isidentifier() or name in (*STREAMS, "fused", "domain", "label", "keys", "items", "values"):
                raise UserError(f"data.streams.{name}: not a name a stream can have; choose another word")
            try:
                build_backbone(
                    StreamSpec(settings.backbone, settings.channels),
                    GroupContext(group_size=1, test="mixture"),
                    width=0.1,
                )
            except ValueError as error:
                raise UserError(f"data.streams.{name}.{error}") from None

    def warnings(self) -> list[str]:
        """What a person should know before the first step."""
        decay, train = self.config.model.batch_norm.decay, self.config.train
        groups = sum(self.layout.groups)
        left = math.exp(math.log(decay) * groups * total_steps(train))
        found = []
        if left > 0.05 and len(self.config.model.pretrained.files()) < 2:
            found.append(
                f"model.batch_norm.decay={decay}: {100 * left:.0f} % of the initial running statistics will be left at "
                f"the end; a run from scratch wants a smaller decay"
            )
        return found
