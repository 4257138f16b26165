"""The gradient noise scale: unbiased on Gaussians whose noise is known, and alike however a batch is spread."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmsada_hpc.data.layout import BatchLayout, plan_layout
from mmsada_hpc.train.noise import NoiseScale, parts_of

SIZE, BATCH = 40, 32
WAYS = {
    "four ranks": (4, 8, "mixed"),
    "two ranks that accumulate": (2, 4, "mixed"),
    "one rank that accumulates": (1, 4, "mixed"),
    "two domain-pure ranks that accumulate": (2, 4, "domain_pure"),
    "four domain-pure ranks that accumulate": (4, 4, "domain_pure"),
}
MEANS, SPREADS = (0.6, -0.1), (0.5, 1.5)
"""Of each component of a clip's gradient, by domain."""
TRACE = SIZE * (SPREADS[0] ** 2 + SPREADS[1] ** 2) / 2
GRAD2 = SIZE * ((MEANS[0] + MEANS[1]) / 2) ** 2


def layout_of(way: str) -> BatchLayout:
    world, micro, layout = WAYS[way]
    return plan_layout(
        global_batch=BATCH,
        micro_batch=micro,
        world_size=world,
        group_size=1,
        num_domains=2,
        layout="mixed" if layout == "mixed" else "domain_pure",
    )


class Ranks:
    """What the ranks of a layout do with given gradients of the clips: a linear loss, whose gradient is their mean."""

    def __init__(self, layout: BatchLayout) -> None:
        self.layout = layout
        self.modules = [nn.ParameterList([torch.zeros(SIZE // 2).double() for _ in range(2)]) for _ in self.ranks]
        self.noises = [NoiseScale(module, layout, parts_of(layout)) for module in self.modules]

    @property
    def ranks(self) -> range:
        return range(self.layout.world_size)

    def update(self, gradient_BP: Tensor) -> dict[str, float | None]:
        shares, total = [], torch.zeros(SIZE).double()
        for rank, module, noise in zip(self.ranks, self.modules, self.noises, strict=True):
            noise.begin()
            for parameter in module:
                parameter.grad = None
            for micro in range(self.layout.accumulation):
                clips = gradient_BP[torch.from_numpy(self.layout.rows(rank, micro))]
                slope = clips.sum(dim=0) / self.layout.global_batch * self.layout.world_size
                loss: Tensor = sum(p @ s for p, s in zip(module, slope.chunk(2), strict=True))
                loss.backward()
                noise.after_micro_batch(micro)
            shares.append(noise.share())
            own = [p.grad for p in module if p.grad is not None]
            total += torch.cat(own) / self.layout.world_size
        return self.noises[0].row(torch.stack(shares).sum(dim=0).tolist(), float(total.norm()))


def gradients(chance: np.random.Generator) -> Tensor:
    """`(B, P)` of a batch: source rows, then target rows."""
    half = (BATCH // 2, SIZE)
    parts = [chance.normal(mean, spread, half) for mean, spread in zip(MEANS, SPREADS, strict=True)]
    return torch.from_numpy(np.concatenate(parts))


@pytest.fixture(scope="module", params=WAYS)
def drawn(request: pytest.FixtureRequest) -> list[dict[str, float | None]]:
    chance, ranks = np.random.default_rng(7), Ranks(layout_of(request.param))
    return [ranks.update(gradients(chance)) for _ in range(200)]


@pytest.mark.parametrize(("field", "wanted"), [("noise_trace", TRACE), ("noise_grad2", GRAD2)])
def test_the_estimates_are_unbiased(drawn: list[dict[str, float | None]], field: str, wanted: float) -> None:
    found = np.array([row[field] for row in drawn], dtype=np.float64)
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert error < 0.1 * abs(wanted), "or the next line says nothing"
    assert abs(found.mean() - wanted) < 4 * error


def test_the_smoothed_scale_is_that_of_the_clips(drawn: list[dict[str, float | None]]) -> None:
    late = [row["noise_scale"] for row in drawn[100:]]
    assert None not in late
    assert np.median(np.array(late, dtype=np.float64)) == pytest.approx(TRACE / GRAD2, rel=0.25)


def test_the_estimates_of_an_update_are_the_papers() -> None:
    chance = np.random.default_rng(1)
    gradient_BP = gradients(chance)
    four = Ranks(layout_of("four ranks")).update(gradient_BP)
    by_clip = gradient_BP.numpy()
    parts = [by_clip[layout_of("four ranks").rows(rank, 0)].mean(axis=0) for rank in range(4)]
    small, big = np.mean([(part**2).sum() for part in parts]), (by_clip.mean(axis=0) ** 2).sum()
    assert four["noise_trace"] == pytest.approx((small - big) / (1 / 8 - 1 / 32), rel=1e-12), (
        "McCandlish et al. 2018, A.1"
    )
    assert four["noise_grad2"] == pytest.approx((32 * big - 8 * small) / (32 - 8), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("world", "micro", "kind"), [(1, 32, "mixed"), (2, 16, "domain_pure"), (1, 8, "domain_pure"), (3, 8, "domain_pure")]
)
def test_a_layout_without_two_parts_alike_gives_none(world: int, micro: int, kind: str) -> None:
    batch = 48 if world == 3 else 32
    layout = BatchLayout(batch, micro, batch // world // micro, world, 1, 2, "mixed" if kind == "mixed" else kind)  # type: ignore[arg-type]
    assert parts_of(layout) is None
    noise = NoiseScale(nn.Linear(2, 2), layout, None)
    assert len(noise.share()) == 0 and set(noise.row([], 1.0).values()) == {None}


def test_a_gradient_that_never_came_gives_none_and_no_wrong_number() -> None:
    layout = layout_of("four ranks")
    module = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    noise = NoiseScale(module, layout, "ranks")
    noise.begin()
    module[0](torch.ones(1, 2)).sum().backward()
    noise.after_micro_batch(0)
    assert set(noise.row(noise.share().tolist(), 1.0).values()) == {None}


def test_only_the_last_gradient_is_listened_to_after_the_first_update() -> None:
    ranks = Ranks(layout_of("four ranks"))
    chance = np.random.default_rng(3)
    for _ in range(3):
        ranks.update(gradients(chance))
    assert [len(noise._hooks) for noise in ranks.noises] == [1, 1, 1, 1]


def test_a_resume_goes_on_with_the_smoothing_of_the_rows_before_it() -> None:
    layout, chance = layout_of("one rank that accumulates"), np.random.default_rng(5)
    whole, again = Ranks(layout), Ranks(layout)
    rows = [whole.update(gradients(chance)) for _ in range(5)]
    again.noises[0].replay([{"noise_trace": None, "noise_grad2": None}, *rows])
    batch = gradients(chance)
    assert again.update(batch) == whole.update(batch)
