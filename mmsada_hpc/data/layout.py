"""Which rows of the global batch each rank takes in each micro-batch (laws 1 and 2)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.errors import UserError

Layout = Literal["mixed", "domain_pure"]


@dataclass(frozen=True)
class BatchLayout:
    """The split of a global batch (source rows first, then target rows) into micro-batches of whole batch-norm groups.

    Batch-norm group j is rows j * group_size ... (j + 1) * group_size - 1, whatever the layout, so every layout sees
    the same groups.
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int
    group_size: int
    num_domains: int
    layout: Layout

    @property
    def domain_batch(self) -> int:
        """Clips per domain and update."""
        return self.global_batch // self.num_domains

    @property
    def groups(self) -> tuple[int, int]:
        """Batch-norm groups of source and of target in one update."""
        per_domain = self.domain_batch // self.group_size
        return per_domain, per_domain if self.num_domains == 2 else 0

    def rows(self, rank: int, micro: int) -> NDArray[np.int64]:
        """Global rows of a rank's micro-batch, `(micro_batch,)`, source before target."""
        if self.layout == "domain_pure":
            slot = rank * self.accumulation + micro
            return np.arange(slot * self.micro_batch, (slot + 1) * self.micro_batch)
        slot = micro * self.world_size + rank
        share = self.micro_batch // self.num_domains
        part = np.arange(slot * share, (slot + 1) * share)
        return np.concatenate([part + d * self.domain_batch for d in range(self.num_domains)])

    def describe(self) -> str:
        return (
            f"global batch {self.global_batch} = {self.world_size} ranks x {self.micro_batch} clips x "
            f"{self.accumulation} accumulation, {self.layout}, "
            f"batch-norm groups of {self.group_size}: {self.groups[0]} source + {self.groups[1]} target"
        )


def plan_layout(
    *,
    global_batch: int,
    micro_batch: int | None,
    world_size: int,
    group_size: int,
    num_domains: int,
    layout: Literal["auto", "mixed", "domain_pure"] = "auto",
) -> BatchLayout:
    """Choose and check the split.

    Raises:
        UserError: the batch does not split into whole groups of one domain; the message lists the micro-batches that
        fit.
    """
    if global_batch % (group_size * num_domains):
        step = group_size * num_domains
        near = max(step, global_batch // step * step)
        raise UserError(
            f"train.global_batch={global_batch} is not whole batch-norm groups of "
            f"model.batch_norm.group_size={group_size} in {num_domains} domain(s): use a multiple of {step}, for "
            f"instance {near}"
        )
    wanted = micro_batch if micro_batch is not None else max(1, global_batch // world_size)
    fits = {
        m: kinds
        for m in range(1, global_batch + 1)
        if (kinds := _fitting(m, global_batch, world_size, group_size, num_domains))
    }
    kinds = fits.get(wanted, [])
    if layout != "auto":
        fits = {m: [layout] for m, have in fits.items() if layout in have}
        kinds = fits.get(wanted, [])
    if not kinds:
        sizes = ", ".join(str(m) for m in sorted(fits)) or "none: change train.global_batch or the number of ranks"
        raise UserError(
            f"train.micro_batch={wanted} does not split train.global_batch={global_batch} over {world_size} rank(s) "
            f"into whole batch-norm groups of {group_size} "
            f"(train.layout={layout}); sizes that fit: {sizes}"
        )
    return BatchLayout(
        global_batch, wanted, global_batch // (world_size * wanted), world_size, group_size, num_domains, kinds[0]
    )


def _fitting(micro: int, batch: int, world: int, group: int, domains: int) -> list[Layout]:
    if batch % (world * micro):
        return []
    kinds: list[Layout] = []
    if micro % (group * domains) == 0:
        kinds.append("mixed")
    if domains == 2 and micro % group == 0 and (batch // domains) % micro == 0:
        kinds.append("domain_pure")
    return kinds
