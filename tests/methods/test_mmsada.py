"""MM-SADA's losses against a NumPy statement of spec 1.2-1.4 and 2.1, its ramp, its weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmsada_hpc.config import load_config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods import HeadSizes, find_method, moment
from mmsada_hpc.methods.base import Losses, Moment
from mmsada_kernels import reverse_gradient

D, CLASSES, N = 12, 5, 8
Floats = NDArray[np.float64]


def method(name: str = "mmsada", *overrides: str) -> Any:
    config = load_config(None, [f"method.name={name}", *overrides])
    torch.manual_seed(1)
    sizes = HeadSizes({"rgb": D, "flow": D}, CLASSES)
    made = find_method(name)(sizes, model=config.model, method=config.method).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch(made: Any, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    domain = np.repeat([0, 1], N // 2)
    corresponds = np.array([True, False] * (N // 2))
    return Batch(
        clips_NTHWC={},
        label_N=torch.from_numpy(rng.integers(0, CLASSES, N)),
        domain_N=torch.from_numpy(domain),
        corresponds_N=torch.from_numpy(corresponds),
        place_N=torch.arange(N) % (N // 2),
        weights={k: torch.from_numpy(np.asarray(w)) for k, w in made.weigh(domain, corresponds).items()},
        dropout_SND={s: torch.from_numpy(2.0 * rng.integers(0, 2, (N, D))) for s in ("rgb", "flow")},
        group_domains=(0, 1),
    )


def features(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed + 100)
    return {s: torch.from_numpy(rng.normal(size=(N, D))).requires_grad_() for s in ("rgb", "flow")}


def cross_entropy(logits: Floats, labels: NDArray[np.int64]) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels]


def mlp(x: Floats, head: Any) -> Floats:
    w1, b1, w2, b2 = (p.detach().numpy() for p in head.parameters())
    hidden: Floats = np.maximum(x @ w1.T + b1, 0)
    return hidden @ w2.T + b2


def run(made: Any, *, stage: int = 2, step: int = 100) -> tuple[Losses, dict[str, torch.Tensor], Batch]:
    given, x = batch(made), features()
    factors = made.factors(moment(load_config(None).train, stage, step))
    return made.losses(x, given, factors), x, given


def test_every_term_equals_its_formula() -> None:
    made = method()
    losses, x, given = run(made)
    rgb, flow = (x[s].detach().numpy() for s in ("rgb", "flow"))
    heads = {s: [p.detach().numpy() for p in made.classifier[s].parameters()] for s in ("rgb", "flow")}
    logits = sum(
        (f * given.dropout_SND[s].numpy()) @ heads[s][0].T + heads[s][1] for s, f in (("rgb", rgb), ("flow", flow))
    )
    assert logits.shape == (N, 2 * CLASSES), "the released classifier has spare outputs"
    classified = [0, 2]  # source clips whose streams correspond
    ce = cross_entropy(logits[:, :CLASSES], given.label_N.numpy())[classified].mean()
    corr = cross_entropy(
        mlp(np.concatenate([rgb, flow], axis=1), made.correspondence), given.corresponds_N.numpy().astype(int)
    ).mean()
    domain = {
        s: cross_entropy(mlp(f, made.discriminator[s]), given.domain_N.numpy()).mean()
        for s, f in (("rgb", rgb), ("flow", flow))
    }
    want = {"loss_ce": ce, "loss_corr": corr, "loss_domain_rgb": domain["rgb"], "loss_domain_flow": domain["flow"]}
    for name, value in want.items():
        assert float(losses.figures[name].detach()) == pytest.approx(value, rel=1e-12), name
    assert float(losses.total) == pytest.approx(0.2 * ce + 1.0 * corr + domain["rgb"] + domain["flow"], rel=1e-12)


def test_stage_1_weighs_five_to_one_and_has_no_adversarial_share() -> None:
    made = method()
    losses, _, _ = run(made, stage=1)
    figures = losses.figures
    assert float(losses.total) == pytest.approx(float(figures["loss_ce"]) + 5 * float(figures["loss_corr"]))
    losses.total.backward()
    for parameter in made.discriminator.parameters():
        assert parameter.grad is not None, "in the graph at every step"
        assert (parameter.grad == 0).all()


def test_the_reversal_scales_the_features_share_and_not_the_discriminators_own() -> None:
    made = method()
    losses, x, given = run(made, step=600)
    (own,) = torch.autograd.grad(
        losses.figures["loss_domain_rgb"], [made.discriminator["rgb"][0].weight], retain_graph=True
    )
    (reversed_gradient,) = torch.autograd.grad(losses.figures["loss_domain_rgb"], [x["rgb"]])
    leaf = x["rgb"].detach().requires_grad_()
    head = made.discriminator["rgb"]
    plain = torch.nn.functional.cross_entropy(head(leaf), given.domain_N)
    plain_own, plain_features = torch.autograd.grad(plain, [head[0].weight, leaf])
    torch.testing.assert_close(own, plain_own)
    factor = 0.2 * Moment(stage=2, progress=600 / 6001, scale=0.2).ramp
    torch.testing.assert_close(reversed_gradient, -factor * plain_features)


@pytest.mark.parametrize(
    ("step", "value"),
    [(50, 0.0083), (300, 0.049), (600, 0.092), (1000, 0.136), (2000, 0.186), (3000, 0.197), (6000, 0.200)],
)
def test_the_ramp_has_the_published_values(step: int, value: float) -> None:
    at = moment(load_config(None).train, 2, step)
    assert method().factors(at).reversal == pytest.approx(value, abs=6e-4)


def test_ce_sees_source_positives_alone() -> None:
    made = method()
    losses, x, _ = run(made)
    grads = torch.autograd.grad(losses.figures["loss_ce"], [x["rgb"], x["flow"]])
    for gradient in grads:
        assert [bool(row.abs().sum() > 0) for row in gradient] == [True, False, True, False, False, False, False, False]


def test_spare_outputs_get_no_gradient() -> None:
    made = method()
    losses, _, _ = run(made)
    losses.total.backward()
    gradient = made.classifier["rgb"].weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert (gradient[CLASSES:] == 0).all()
    assert (gradient[:CLASSES] != 0).any()


def test_head_sizes_are_those_of_the_released_code() -> None:
    config = load_config(None)
    sizes = HeadSizes({"rgb": 1024, "flow": 1024}, 8)
    made: Any = find_method("mmsada")(sizes, model=config.model, method=config.method)

    def count(module: object) -> int:
        assert isinstance(module, torch.nn.Module)
        return sum(p.numel() for p in module.parameters())

    assert count(made.classifier["rgb"]) == 16_400
    assert count(made.discriminator["rgb"]) == 102_702
    assert count(made.correspondence) == 205_102
    backbones = 12_279_984 + 12_258_032  # tests/model/test_i3d.py counts them
    assert backbones + count(made) == 24_981_322
    paper = load_config(None, ["recipe=paper", "method.name=mcd"])
    eight: Any = find_method("mcd")(sizes, model=paper.model, method=paper.method)
    assert backbones + count(eight.classifier) == 24_554_416, "inference with heads of eight classes"


def test_stage_2_draws_new_discriminators_from_the_seed_and_leaves_the_rest() -> None:
    first, second = method(), method()
    before = {n: p.clone() for n, p in first.named_parameters()}
    first.start_stage2(7)
    torch.manual_seed(99)
    second.start_stage2(7)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, before[name]) != name.startswith("discriminator")


def test_source_only_classifies_every_clip_of_an_all_source_batch() -> None:
    made = method("source_only")
    weights: Mapping[str, NDArray[np.float64]] = made.weigh(np.zeros(4, np.int64), np.ones(4, bool))
    assert weights["ce"].tolist() == [0.25] * 4
    assert made.trains_on == ("source",)
    losses, _, _ = run(made)
    assert set(losses.figures) == {"loss_ce", "top1"}
    assert float(losses.total) == pytest.approx(0.2 * float(losses.figures["loss_ce"]))


def test_reversal_is_identity_forward() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(reverse_gradient(x, torch.tensor(0.3)), x)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"method\.name=mmsda: no such method; did you mean mmsada"):
        find_method("mmsda")


def test_test_scores_are_the_sum_of_the_streams_logits() -> None:
    made = method()
    x = features()
    logits = made.logits(x)
    torch.testing.assert_close(logits["fused"], logits["rgb"] + logits["flow"])
