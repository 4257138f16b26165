"""Every optimiser against its formula in NumPy, layer by layer, and its state through a file (runs with them:
test_recipes.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mmsada_hpc.config import load_config
from mmsada_hpc.config_train import TrainConfig
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.train.optimizers import keys, load_state, make_optimizer, set_rate, state_of

Array = NDArray[np.float64]
DECAY, MOMENTUM, TRUST, BETA1, BETA2 = 0.01, 0.9, 0.02, 0.8, 0.95
RATES = (0.5, 0.2)


def train_config(**more: Any) -> TrainConfig:
    values = {"weight_decay": DECAY, "momentum": MOMENTUM, "trust_coefficient": TRUST, "betas": (BETA1, BETA2)}
    return TrainConfig(**values | more)  # type: ignore[arg-type]


def net() -> nn.Sequential:
    """A convolution whose weights have a norm above 10, a head, biases."""
    torch.manual_seed(3)
    convolution, head = nn.Conv3d(2, 4, 3), nn.Linear(4, 3)
    with torch.no_grad():
        convolution.weight.mul_(20)
    assert convolution.weight.norm().item() > 10
    return nn.Sequential(convolution, head).double()


class Formula:
    """One parameter under updates, as the papers write them."""

    def __init__(self, name: str, w: Array, *, nesterov: bool) -> None:
        self.name, self.w, self.nesterov = name, w.copy(), nesterov
        self.a, self.v, self.t = np.zeros_like(w), np.zeros_like(w), 0

    def update(self, g: Array, rate: float) -> None:
        self.t += 1
        self.w = {"sgd": self._sgd, "lars": self._lars, "lamb": self._lamb, "adamw": self._adamw}[self.name](g, rate)

    def _sgd(self, g: Array, rate: float) -> Array:
        return self._moved(g + DECAY * self.w, rate)

    def _lars(self, g: Array, rate: float) -> Array:
        if self.w.ndim == 1:
            return self._moved(g, rate)
        norm_w, norm_g = np.linalg.norm(self.w), np.linalg.norm(g)
        return self._moved(TRUST * norm_w / (norm_g + DECAY * norm_w) * (g + DECAY * self.w), rate)

    def _moved(self, u: Array, rate: float) -> Array:
        self.a = MOMENTUM * self.a + u
        return self.w - rate * (u + MOMENTUM * self.a if self.nesterov else self.a)

    def _lamb(self, g: Array, rate: float) -> Array:
        self._average(g)
        s = self.a / (np.sqrt(self.v) + 1e-6)
        if self.w.ndim == 1:
            return self.w - rate * s
        s = s + DECAY * self.w
        return self.w - rate * np.linalg.norm(self.w) / (np.linalg.norm(s) + 1e-6) * s

    def _adamw(self, g: Array, rate: float) -> Array:
        self._average(g)
        a, v = self.a / (1 - BETA1**self.t), self.v / (1 - BETA2**self.t)
        decay = DECAY if self.w.ndim > 1 else 0.0
        return self.w - rate * decay * self.w - rate * a / (np.sqrt(v) + 1e-8)

    def _average(self, g: Array) -> None:
        self.a = BETA1 * self.a + (1 - BETA1) * g
        self.v = BETA2 * self.v + (1 - BETA2) * g**2


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [("sgd", False), ("sgd", True), ("lars", False), ("lars", True), ("lamb", False), ("adamw", False)],
)
def test_two_updates_are_those_of_the_formula(name: str, nesterov: bool) -> None:
    module, rng = net(), np.random.Generator(np.random.PCG64(5))
    optimizer = make_optimizer(module, train_config(optimizer=name, nesterov=nesterov))
    formulas = [Formula(name, p.detach().numpy(), nesterov=nesterov) for p in module.parameters()]
    for rate in RATES:
        set_rate(optimizer, rate)
        for parameter, formula in zip(module.parameters(), formulas, strict=True):
            g = rng.standard_normal(formula.w.shape)
            parameter.grad = torch.from_numpy(g.copy())
            formula.update(g, rate)
        optimizer.step()
    for parameter, formula in zip(module.parameters(), formulas, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), formula.w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_layer_of_zeros_moves_and_stays_finite(name: str) -> None:
    module = net()
    weight = module.get_parameter("1.weight")
    nn.init.zeros_(weight)
    optimizer = make_optimizer(module, train_config(optimizer=name))
    set_rate(optimizer, 0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.isfinite(weight).all()
    assert (weight < 0).all()


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw"])
def test_a_checkpoint_has_a_place_for_all_of_the_state(name: str) -> None:
    module, train = net().float(), train_config(optimizer=name)
    optimizer = make_optimizer(module, train)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    named = dict(module.named_parameters())
    assert set(state_of(optimizer, named, train)) == keys(named, train)


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw"])
def test_an_optimiser_goes_on_from_a_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Both engines at ZeRO 0 keep and put back its state by these two functions."""
    train = train_config(optimizer=name)
    whole = net().float()
    optimizer = make_optimizer(whole, train)
    for step in range(3):
        take_step(whole, optimizer, step)
        if step == 0:
            torch.save(whole.state_dict(), tmp_path / "weights.pt")
            torch.save(state_of(optimizer, dict(whole.named_parameters()), train), tmp_path / "state.pt")
    again = net().float()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    optimizer = make_optimizer(again, train)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    load_state(optimizer, dict(again.named_parameters()), train, saved)
    for step in (1, 2):
        take_step(again, optimizer, step)
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw"])
def test_state_from_a_checkpoint_takes_the_layout_of_its_parameter(name: str) -> None:
    """Checkpoints are contiguous, the weights of a run are not, and a norm is a sum in the order of memory."""
    module, train = nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d), train_config(optimizer=name)  # type: ignore[call-overload]
    named = dict(module.named_parameters())
    optimizer = make_optimizer(module, train)
    take_step(module, optimizer, 0)
    saved = {key: value.clone().contiguous() for key, value in state_of(optimizer, named, train).items()}
    load_state(optimizer, named, train, saved)
    for key, value in state_of(optimizer, named, train).items():
        assert torch.equal(value, saved[key])
        assert value.ndim == 0 or value.stride() == named[key.partition("/")[0]].stride(), key


def take_step(module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    set_rate(optimizer, RATES[step % 2])
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def i3d() -> I3d:
    torch.manual_seed(0)
    return I3d(3, GroupContext(group_size=2, test="mixture"), width=0.0625)


def moved(name: str, *, fuses: bool, factor: float) -> dict[str, float]:
    """How far one update moves every layer of an I3D, over the norm of its weights; the block's first 1x1x1
    convolution begins `factor` times as large.
    """
    model = i3d()
    model.fuses = fuses
    with torch.no_grad():
        model.get_parameter("Mixed_3b.b0.conv3d.weight").mul_(factor)
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.ndim > 1}
    x = torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5
    with model.Conv3d_1a_7x7.bn.context.recorded([0]):
        features = model(x.contiguous(memory_format=torch.channels_last_3d))
    (features * torch.arange(features.numel()).reshape(features.shape).sin()).sum().backward()
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.0))  # type: ignore[arg-type, call-arg]
    set_rate(optimizer, 0.5)
    optimizer.step()
    after = dict(model.named_parameters())
    return {key: float((after[key] - w).detach().norm() / w.norm()) for key, w in before.items()}


@pytest.mark.parametrize(("name", "share"), [("lars", 0.5 * 0.001), ("lamb", 0.5)])
def test_convolutions_that_are_computed_as_one_keep_ratios_of_their_own(name: str, share: float) -> None:
    merged = ("Mixed_3b.b0", "Mixed_3b.b1a", "Mixed_3b.b2a")
    for fuses in (True, False):
        found = moved(name, fuses=fuses, factor=30.0)
        for layer in merged:
            # Each of them moves by the same share of its own norm, however much the norms differ.
            assert found[f"{layer}.conv3d.weight"] == pytest.approx(share, rel=1e-3), (layer, fuses)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["train.optimizer=lars", "train.zero_stage=1"], "lars needs train.zero_stage=0.*flat shards"),
        (["train.optimizer=lamb", "train.zero_stage=3"], "lamb needs train.zero_stage=0.*flat shards"),
        (["train.optimizer=adamw", "train.zero_stage=1"], "adamw needs train.zero_stage=0"),
        (["train.optimizer=lamb", "train.nesterov=true"], "nesterov=true needs train.optimizer=sgd or lars"),
        (["train.nesterov=true", "train.momentum=0"], "nesterov=true needs .* train.momentum above 0"),
        (["train.optimizer=adam"], "train.optimizer"),
    ],
)
def test_what_an_optimiser_cannot_do_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        load_config(None, words)
