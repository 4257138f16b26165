"""The true accuracies of the other heads on a test set (spec 7.2: the released code logs another number)."""

import pytest
import torch

from mmsada_hpc.methods.adversarial import domain_accuracies
from mmsada_hpc.methods.self_supervised import correspondence_accuracy
from tests.methods.build import Shape, make_case


class SameRow(torch.nn.Module):
    """Says "corresponds" where both halves of its input are equal."""

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        first, second = x_ND.chunk(2, dim=1)
        same_N = (first == second).all(dim=1).double()
        return torch.stack([1 - same_N, same_N], dim=1)


def test_correspondence_is_right_on_true_and_on_false_pairs() -> None:
    rows = torch.eye(6, dtype=torch.float64)
    assert correspondence_accuracy(SameRow(), [rows, rows]) == 100
    assert correspondence_accuracy(SameRow(), [rows, rows.roll(1, dims=0)]) == 0
    assert correspondence_accuracy(SameRow(), [rows, 2 * rows]) == 50, "never says yes"


@pytest.mark.parametrize(("domain", "right"), [(0, 75.0), (1, 25.0)])
def test_a_discriminator_is_right_where_it_names_the_clips_own_domain(domain: int, right: float) -> None:
    said = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    heads = torch.nn.ModuleDict({"rgb": torch.nn.Identity()})
    assert domain_accuracies(heads, {"rgb": said}, domain) == {"domain_acc_rgb": right}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mmsada", {"corr_acc", "domain_acc_rgb", "domain_acc_flow"}),
        ("self_supervised", {"corr_acc"}),
        ("adversarial", {"domain_acc_rgb", "domain_acc_flow"}),
        ("cdan", {"domain_acc_rgb", "domain_acc_flow"}),
        ("source_only", set()),
        ("mcd", set()),
    ],
)
def test_every_head_of_a_method_is_probed(name: str, keys: set[str]) -> None:
    case = make_case(name, Shape(per_domain=4, width=3, num_classes=2, seed=0))
    with torch.no_grad():
        found = case.method.probe(case.features, domain=1)
    assert found.keys() == keys
    assert all(0 <= value <= 100 for value in found.values())
