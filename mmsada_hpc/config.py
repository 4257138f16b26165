"""YAML plus dotted overrides -> one frozen, typed config.

Layers, later ones win: `configs/default.yaml` < `configs/recipes/<recipe>.yaml` < the run's YAML < `key=value` on the
command line.
Every mistake is one line that names the dotted key.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from mmsada_hpc.config_keys import explain
from mmsada_hpc.config_train import Section, TrainConfig
from mmsada_hpc.errors import UserError
from mmsada_hpc.schedule import stage_schedule, total_steps


class RunConfig(Section):
    dir: Path = Path("runs/default")
    """Folder of the run: config, logs, checkpoints, results. A run that finds its own checkpoints there goes on from
    the newest whole one.
    """


class StreamConfig(Section):
    """A modality beside RGB and flow: arrays of numbers, one file a video, with a backbone of its own."""

    arrays: Path
    """Folder with VIDEO.npy, `(rows, channels)`, for every video of the store; row 0 begins with RGB frame 1."""
    channels: int = Field(ge=1)
    """Numbers in a row, such as mel bands."""
    rate: float = Field(gt=0)
    """Rows per RGB frame."""
    length: int = Field(ge=8)
    """Rows of a window as the backbone sees them, drawn evenly from the time that the RGB window spans."""
    backbone: str = "conv1d"
    """A backbone of `mmsada_hpc/model/backbones.py`."""


class DataConfig(Section):
    store: Path | None = None
    """Folder made by `mmsada prepare`."""
    source: tuple[str, ...] = ()
    """Labelled domains."""
    target: tuple[str, ...] = ()
    """Unlabelled domains: their labels are read for scoring only."""
    streams: dict[str, StreamConfig] = Field(default_factory=dict)
    """Further modalities by name, beside rgb and flow."""
    num_frames: int = Field(16, ge=2, multiple_of=2)
    """Frames of a window in each stream (even: half before the centre, half from it on)."""
    rgb_step: int = Field(2, ge=1)
    """RGB frames from one frame of a window to the next (2 at EPIC's 60 fps); flow file = RGB frame // flow stride."""
    crop: int = Field(224, ge=32)
    """Side in pixels of what the network sees."""
    crops: Literal["released", "tsn"] = "released"
    """Training crop offsets: {0, centre} as in the released code, or TSN's full corner-and-centre set (the paper's
    text).
    """
    positives: Literal["seg", "sync"] = "seg"
    """Corresponding RGB and flow windows: drawn apart from one segment (seg, the main model) or with one centre, crop
    and flip (sync).
    """
    motion: bool = True
    """False is a control: every window repeats its centre frame and the flow is zero."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where DALI decodes; auto follows the training device."""
    threads: int = Field(0, ge=0)
    """DALI threads a rank and stream; 0 = the rank's share of the cores."""
    prefetch: int = Field(2, ge=1, le=16)
    """Micro-batches DALI decodes ahead."""
    readers: int = Field(0, ge=0)
    """Extra reader processes a stream; 0 reads in the training process (a window is one `pread`)."""


class BatchNormConfig(Section):
    group_size: int = Field(16, ge=1)
    """Clips of one domain that share batch statistics (16 as published)."""
    decay: float = Field(0.999, gt=0, lt=1)
    """Decay of the running statistics per group (0.999 as published; runs from scratch need less)."""
    test: Literal["mixture", "target"] = "mixture"
    """Running statistics at test: both domains' mixture (released) or target only (the paper's text)."""


class PretrainedConfig(Section):
    rgb: Path | None = None
    """Weights that the RGB network starts from, all but the classifier: a file of `mmsada weights convert`."""
    flow: Path | None = None
    """The same for the flow network."""

    def files(self) -> dict[str, Path]:
        """Stream -> file, of those that are set."""
        return {name: path for name, path in (("rgb", self.rgb), ("flow", self.flow)) if path is not None}


class ModelConfig(Section):
    width: float = Field(1.0, gt=0, le=2)
    """Multiplier on every channel count; 1 is I3D."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Probability of dropping a feature, before the classifier only."""
    logits_per_class: Literal[1, 2] = 2
    """The released classifier has 2 x classes outputs, of which the first half are trained; the paper's has one per
    class.
    """
    pretrained: PretrainedConfig = PretrainedConfig()
    batch_norm: BatchNormConfig = BatchNormConfig()  # type: ignore[call-arg]  # defaults come from Field


class MethodConfig(Section):
    name: str = "mmsada"
    """A method of `mmsada_hpc/methods`."""
    lambda_c: float = Field(5.0, ge=0)
    """Weight of the correspondence loss relative to the classification loss."""
    lambda_d: float = Field(1.0, ge=0)
    """Peak adversarial gradient into the features relative to the classification loss (mcd: of the discrepancy)."""
    lambda_mmd: float = Field(1.0, ge=0)
    """mmd: weight of the discrepancy relative to the classification loss."""
    mmd_block: int = Field(64, ge=2)
    """mmd: source clips, and target clips, over which one discrepancy is taken (64 as released)."""
    mmd_kernels: Literal["fixed", "median"] = "fixed"
    """mmd: the 12 fixed RBF kernels of the released code, or five around the median squared distance."""
    lambda_mcd: float = Field(1.0, ge=0)
    """mcd: weight of the classifiers' discrepancy relative to the classification loss."""
    lambda_h: float = Field(0.1, ge=0)
    """target_entropy: peak weight of the target's entropy relative to the classification loss."""


class CheckpointConfig(Section):
    every: int = Field(500, ge=0)
    """Updates between checkpoints, counted as the stages are; 0 = only at the end of the run."""
    minutes: float = Field(15.0, ge=0)
    """Also after this many minutes since the last one; 0 = never by time."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; those of `eval.checkpoints` and the best one are kept beside them."""
    background: bool = True
    """Write while training goes on: the loop waits only for a copy in memory."""
    best_by: str | None = None
    """Also keep the checkpoint that scores best on this set, `source/SPLIT` (a target's labels select nothing)."""


class WatchConfig(Section):
    start_minutes: float = Field(30.0, gt=0)
    """Longest wait for the other ranks before the first update of a start is done."""
    step_seconds: float = Field(600.0, gt=0)
    """Longest wait after that: a rank that hears nothing new for so long tells why and ends the job."""
    heartbeat_seconds: float = Field(5.0, gt=0)
    """Between two signs of life of a rank."""


class EvalConfig(Section):
    every: int = Field(50, ge=0)
    """Updates between evaluations, counted as the stages are; 0 = only where `checkpoints` says and at the end."""
    windows: int = Field(5, ge=1)
    """Windows per segment, evenly spaced; their softmaxes are averaged."""
    sets: tuple[str, ...] = ("source/test", "target/test")
    """What is scored at the end: source|target / a split of the store, or all."""
    during: tuple[str, ...] = ("source/test", "target/test")
    """What is scored on the way."""
    checkpoints: tuple[int, ...] = ()
    """Stage-2 steps, as they are run, whose mean is the result (released: 5600, 5650 ... 6000); empty = the last step
    alone.
    """
    batch: int = Field(16, ge=1)
    """Windows a rank scores at once."""


class ObserveConfig(Section):
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder."""
    log_seconds: float = Field(15.0, gt=0)
    """Seconds between progress lines when the screen is a file."""
    features: bool = True
    """Store both domains' features before and after training, for the report's embedding."""


class Config(Section):
    recipe: Literal["released", "paper"] = "released"
    """Whose settings fill in where the released code and the paper's text disagree (configs/recipes)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """With the config, decides every sample, crop, pairing, dropout mask and initial weight."""
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()  # type: ignore[call-arg]
    model: ModelConfig = ModelConfig()  # type: ignore[call-arg]
    method: MethodConfig = MethodConfig()  # type: ignore[call-arg]
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    checkpoint: CheckpointConfig = CheckpointConfig()  # type: ignore[call-arg]
    watch: WatchConfig = WatchConfig()  # type: ignore[call-arg]
    eval: EvalConfig = EvalConfig()  # type: ignore[call-arg]
    observe: ObserveConfig = ObserveConfig()  # type: ignore[call-arg]


def config_folder() -> Path:
    """`configs/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read, layer, check.

    Args:
        path: YAML of the run, a file or a name inside `configs/`; None = the default alone.
        overrides: `a.b=value`, the value in YAML.

    Raises:
        UserError: one line per mistake, each naming its dotted key.
    """
    run = _read_yaml(find_config(path)) if path is not None else {}
    for override in overrides:
        _set_dotted(run, override)
    recipe = run.get("recipe", "released")
    layers = _read_yaml(config_folder() / "default.yaml")
    if recipe in get_args(Config.model_fields["recipe"].annotation):
        layers = _merge(layers, _read_yaml(config_folder() / "recipes" / f"{recipe}.yaml"))
    return build_config(_merge(layers, run))


def build_config(values: Mapping[str, Any]) -> Config:
    """Check a plain mapping and freeze it."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(explain(e, Config) for e in error.errors())) from None
    _check_together(config)
    return config


def find_config(path: Path) -> Path:
    """The file itself, or one of that name inside `configs/`."""
    inside = config_folder() / path
    for candidate in (path, inside, inside.with_suffix(".yaml")):
        if candidate.is_file():
            return candidate
    raise UserError(f"--config {path}: no such file (nor {inside})")


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def deciding_values(config: Config) -> dict[str, Any]:
    """Everything that decides the result; the run folder, the progress settings, paths and the world-dependent batch
    layout are left out.
    """
    values = config.model_dump(mode="json", exclude={"run", "observe", "checkpoint", "watch"})
    for key in (
        "micro_batch",
        "layout",
        "device",
        "memory_format",
        "cudnn_benchmark",
        "accelerate",
        "side_by_side",
        "overlap",
        "noise_scale",
    ):
        values["train"].pop(key)
    _drop_idle(values["train"])
    for key in ("store", "device", "threads", "prefetch", "readers"):
        values["data"].pop(key)
    for stream in values["data"]["streams"].values():
        stream.pop("arrays")
    return values


def _drop_idle(train: dict[str, Any]) -> None:
    """Take out the settings that came with large batches where they change nothing, so that older runs go on."""
    idle = {"base_batch": None, "lr_rule": "fixed", "lengths": "updates", "optimizer": "sgd", "nesterov": False}
    if train["optimizer"] not in ("lamb", "adamw"):
        train.pop("betas")
    if train["optimizer"] != "lars":
        train.pop("trust_coefficient")
    for key, value in idle.items():
        if train[key] == value:
            train.pop(key)


def config_hash(config: Config) -> str:
    """Twelve hex digits over `deciding_values`, files of weights by what is in them."""
    values = deciding_values(config)
    for stream, path in config.model.pretrained.files().items():
        values["model"]["pretrained"][stream] = _sha256(path, f"model.pretrained.{stream}")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _sha256(path: Path, key: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}; `mmsada weights convert` makes such a file") from None


def _check_together(config: Config) -> None:
    train, method = config.train, config.method
    if train.precision == "fp64" and train.engine == "deepspeed":
        raise UserError("train.precision=fp64 needs train.engine=ddp (DeepSpeed refuses fp64)")
    if train.zero_stage and train.engine == "ddp":
        raise UserError(f"train.zero_stage={train.zero_stage} needs train.engine=deepspeed (plain DDP has no ZeRO)")
    if train.accelerate != "none" and train.zero_stage == 3:
        raise UserError(
            f"train.accelerate={train.accelerate} needs train.zero_stage below 3, where every parameter keeps its "
            f"place in memory"
        )
    if (train.lr_rule != "fixed" or train.lengths != "updates") and train.base_batch is None:
        raise UserError(
            "train.lr_rule and train.lengths=samples need train.base_batch: the global batch that the stages' rates "
            "and lengths are written for"
        )
    if train.zero_stage and train.optimizer in ("lars", "lamb"):
        raise UserError(
            f"train.optimizer={train.optimizer} needs train.zero_stage=0: ZeRO cuts the weights into flat shards, "
            f"whose norms are not those of layers, so the trust ratios would be wrong"
        )
    if train.zero_stage and train.optimizer != "sgd":
        raise UserError(
            f"train.optimizer={train.optimizer} needs train.zero_stage=0: checkpoints of ZeRO 1-3 keep the momentum of "
            f"SGD alone"
        )
    if train.nesterov and (train.optimizer not in ("sgd", "lars") or not train.momentum):
        raise UserError("train.nesterov=true needs train.optimizer=sgd or lars, with a train.momentum above 0")
    if total_steps(train) == 0:
        raise UserError("train.stage1.steps and train.stage2.steps are both 0: nothing to train")
    shared = set(config.data.source) & set(config.data.target)
    if shared and method.name not in ("source_only", "supervised_target"):
        raise UserError(
            f"data.source and data.target both name {', '.join(sorted(shared))}: a target domain has no labels in "
            f"training"
        )
    if config.eval.checkpoints and train.lengths == "samples" and train.global_batch != train.base_batch:
        raise UserError(
            f"eval.checkpoints names steps of batch {train.base_batch}, and with train.lengths=samples batch "
            f"{train.global_batch} has others: use eval.checkpoints=[]"
        )
    last = stage_schedule(train, 2).steps
    bad = [s for s in config.eval.checkpoints if not 0 < s <= last]
    if bad:
        raise UserError(f"eval.checkpoints: {bad[0]} is not a step of stage 2 (1..{last}, by train.stage2.steps)")
    best_by = config.checkpoint.best_by
    if best_by is not None and (not best_by.startswith("source/") or best_by not in config.eval.during):
        raise UserError(
            f"checkpoint.best_by={best_by}: name one of eval.during that begins with source/ (a target's labels select "
            f"nothing)"
        )
    for key, names in (("eval.sets", config.eval.sets), ("eval.during", config.eval.during)):
        for name in names:
            if name.partition("/")[0] not in ("source", "target") or not name.partition("/")[2]:
                raise UserError(f"{key}: {name!r} is not source/SPLIT or target/SPLIT (for instance target/test)")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = copy.deepcopy(_parsed(path.read_text()))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return values


@functools.lru_cache
def _parsed(text: str) -> Any:
    """A grid reads the same few files for each of its runs: parsed once, 198 runs load in 0.16 s in place of 3.1."""
    return yaml.safe_load(text)


def _set_dotted(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: an override is written key=value, for instance train.stage1.lr=0.01")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise UserError(f"{key}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[last] = value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged
