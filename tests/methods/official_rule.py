"""The one stage-2 batch on which the official TensorFlow graph was measured, by rule, and what our code gives for it.

The figures (official_figures.npz) were taken from jonmun/MM-SADA-code @69fe0f7, run under TensorFlow 2.21 with Sonnet
1.36 in float32 on a CPU. Inputs and weights come from seeds: clips from `default_rng(11)`, every variable from the
CRC-32 of its official name. Clips 0-3 are source, 4-7 target; in each four, the first two correspond. One batch-norm
group a domain, no dropout, reversal 0.13, loss factors 0.2, 1, 1.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsada_hpc.config import load_config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import Factors, Moment
from mmsada_hpc.model.batch_norm import BatchNormState, GroupBatchNorm
from mmsada_hpc.model.pretrained import LOGITS
from mmsada_hpc.model.streams import use_ndhwc_weights
from mmsada_hpc.model.weights.convert import as_ours
from mmsada_hpc.model.weights.files import WeightsFile
from mmsada_hpc.model.weights.layouts import LAYOUTS, TF_PREFIXES
from mmsada_hpc.model.weights.names import UNITS
from mmsada_hpc.train.module import TrainModule, new_module

Array = NDArray[Any]
CLIPS, REVERSAL, DECAY = 8, 0.13, 0.999
HEADS = {
    "RGB/Domain_Classifier": "discriminator.rgb",
    "Flow/Domain_Classifier": "discriminator.flow",
    "Joint/synch_test": "correspondence",
}
W_TO_TF, MATRIX_TO_TF, SAME = (2, 3, 4, 1, 0), (1, 0), (0,)


@dataclass(frozen=True)
class Place:
    """Where an official variable is in our module."""

    name: str
    to_tf: tuple[int, ...]
    """How our axes are permuted into TensorFlow's."""
    shape: tuple[int, ...]
    """In TensorFlow."""


def trained_places(module: nn.Module) -> dict[str, Place]:
    """Every trainable variable of the official graph."""
    parameters = dict(module.named_parameters())

    def place(name: str, to_tf: tuple[int, ...], *more: int) -> Place:
        own = tuple(parameters[name].shape)
        return Place(name, to_tf, (*more, *(own[axis] for axis in to_tf)))

    found = {}
    for stream, prefix in TF_PREFIXES.items():
        for unit in UNITS:
            names, base = LAYOUTS["tf"].names(unit), f"network.streams.{stream}.{unit.ours}"
            found[prefix + names["w"]] = place(f"{base}.conv3d.weight", W_TO_TF)
            found[prefix + names["beta"]] = place(f"{base}.bn.bias", SAME, 1, 1, 1, 1)
        w, b = LAYOUTS["tf"].logits
        found[prefix + w] = place(f"method.classifier.{stream}.weight", MATRIX_TO_TF, 1, 1, 1)
        found[prefix + b] = place(f"method.classifier.{stream}.bias", SAME)
    for scope, head in HEADS.items():
        for layer, index in (("first", 0), ("second", 2)):
            found[f"{scope}/{layer}/kernel"] = place(f"method.{head}.{index}.weight", MATRIX_TO_TF)
            found[f"{scope}/{layer}/bias"] = place(f"method.{head}.{index}.bias", SAME)
    return found


def moving_layers(module: TrainModule) -> Iterator[tuple[str, GroupBatchNorm, str]]:
    """Official name, our layer and `mean` or `var`, of every moving average."""
    for stream, prefix in TF_PREFIXES.items():
        for unit in UNITS:
            layer = module.get_submodule(f"network.streams.{stream}.{unit.ours}.bn")
            assert isinstance(layer, GroupBatchNorm)
            for part in ("mean", "var"):
                yield prefix + LAYOUTS["tf"].names(unit)[part], layer, part


def official_shapes(module: TrainModule) -> dict[str, tuple[int, ...]]:
    """All 472 variables with their TensorFlow shapes."""
    shapes = {name: place.shape for name, place in trained_places(module).items()}
    return shapes | {name: (1, 1, 1, 1, layer.bias.numel()) for name, layer, _ in moving_layers(module)}


def draw(name: str, shape: tuple[int, ...]) -> Array:
    """The value of a variable, by its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("/w"):
        std = 1 / 32 if "Logits" in name else np.sqrt(2 / np.prod(shape[:-1]))
        return rng.normal(0, std, shape).astype(np.float32)
    if name.endswith("moving_variance"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


def official_module() -> TrainModule:
    """Our module with the official weights, the backbones' and classifiers' by way of the converter."""
    config = load_config(None, ["model.batch_norm.group_size=4", "model.dropout=0"])
    module = new_module(config, num_classes=8)
    values = {name: draw(name, shape) for name, shape in official_shapes(module).items()}
    state = module.state_dict()
    for stream in TF_PREFIXES:
        given = as_ours(WeightsFile(Path("official"), "tf", values, sha256=""), stream=stream)
        for name, tensor in given.tensors.items():
            ours = f"method.classifier.{stream}.{name.removeprefix('logits.')}"
            state[ours if name in LOGITS else f"network.streams.{stream}.{name}"].copy_(tensor)
    for name, place in trained_places(module).items():
        if name.startswith(tuple(HEADS)):
            state[place.name].copy_(torch.from_numpy(values[name]).permute(place.to_tf))
    return module


def official_batch(module: TrainModule) -> Batch:
    rng = np.random.default_rng(11)
    clips = {
        stream: torch.from_numpy(rng.uniform(-1, 1, (CLIPS, 16, 224, 224, channels)).astype(np.float32))
        for stream, channels in (("rgb", 3), ("flow", 2))
    }
    domain, corresponds = np.repeat([0, 1], 4), np.array([True, True, False, False] * 2)
    weights = module.method.weigh(domain, corresponds)
    return Batch(
        clips_NTHWC=clips,
        label_N=torch.tensor([0, 1, 2, 3, 0, 0, 0, 0]),
        domain_N=torch.from_numpy(domain),
        corresponds_N=torch.from_numpy(corresponds),
        place_N=torch.tensor([0, 1, 2, 3] * 2),
        weights={term: torch.from_numpy(np.asarray(weight)) for term, weight in weights.items()},
        dropout_SND={stream: torch.ones(CLIPS, 1024) for stream in clips},
        group_domains=(0, 1),
    )


def official_factors(module: TrainModule) -> Factors:
    """The method's own schedule, at the progress where its ramp makes the reversal 0.13."""
    share = REVERSAL / 0.2
    return module.method.factors(Moment(2, float(np.log((1 + share) / (1 - share))) / 10, 0.2))


def measure(dtype: torch.dtype = torch.float32) -> dict[str, Array]:
    """Our figures under the official keys: one training step's forward, backward and running statistics, then test."""
    module = official_module().to(dtype)
    use_ndhwc_weights(module)
    batch, features = official_batch(module), dict[str, Tensor]()
    module.network.register_forward_hook(lambda _, args, out: features.update(out))
    total, figures = module(batch, official_factors(module))
    total.backward()
    found = {
        "loss/total_loss": total,
        "loss/domain_loss": figures["loss_domain_rgb"] + figures["loss_domain_flow"],
        **_outputs(module, features),
    }
    for name, place in trained_places(module).items():
        gradient = module.get_parameter(place.name).grad
        assert gradient is not None
        found[f"grad_norm/{name}"] = gradient.double().norm()
        found[f"grad_head/{name}"] = gradient.permute(place.to_tf).flatten()[:256]
    return {name: value.detach().numpy() for name, value in found.items()} | _after(module, batch)


def _outputs(module: TrainModule, features: dict[str, Tensor]) -> dict[str, Tensor]:
    heads: Any = module.method
    domain = {f"train/domain_logits_{s}": heads.discriminator[s](x) for s, x in features.items()}
    return {
        **{f"train/features_{stream}": x for stream, x in features.items()},
        **domain,
        "train/logits_fusion": heads.logits(features)["fused"],
        "train/synch_logits": heads.correspondence(torch.cat([features["rgb"], features["flow"]], dim=1)),
    }


@torch.no_grad()
def _after(module: TrainModule, batch: Batch) -> dict[str, Array]:
    """Running statistics after the update, ours (the mixture) and the official sequence from our own batch statistics,
    and the test mode on them.
    """
    layers = list(moving_layers(module))
    started = {name: getattr(layer, f"running_{part}_DC")[0].clone() for name, layer, part in layers}
    batch_DC = {name: layer.sum_DSC[:, ("mean", "var").index(part)].clone() for name, layer, part in layers}
    state = BatchNormState(module, decay=DECAY)
    state.update(state.take_sums(), (1, 1))
    found: dict[str, Tensor] = {}
    for name, layer, part in layers:
        ours = layer.test_statistics()[("mean", "var").index(part)]
        official = started[name]
        for domain_C in batch_DC[name]:  # two towers, one after the other
            official = official - (1 - DECAY) * (official - domain_C)
        found |= {f"moving_after/{name}": ours, f"in_sequence/{name}": official, f"batch/{name}": batch_DC[name]}
    logits, _ = module.eval()(batch)
    found |= {"test/logits_fusion": logits["fused"], "test/softmax": logits["fused"].softmax(dim=1)}
    return {name: value.numpy() for name, value in found.items()}
