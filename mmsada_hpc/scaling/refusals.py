"""Why a cell of a study cannot run, found before anything is queued."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mmsada_hpc.cluster.profile import Profile, load_profile
from mmsada_hpc.config import Config
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.record import read_json
from mmsada_hpc.scaling.cells import Cell

_CLASSES = 8
"""EPIC's verbs, where there is no store to ask."""


def profile_for(cluster: str, nodes: int, tasks_per_node: int) -> Profile:
    """A cluster's profile at a cell's numbers; where it has GPUs, one for each rank.

    Raises:
        UserError: no such profile, or it cannot start so many.
    """
    gpus = load_profile(cluster).gpus_per_node
    if gpus and tasks_per_node > gpus:
        raise UserError(f"tasks_per_node={tasks_per_node}: --cluster {cluster} has {gpus} GPUs a node, one for a rank")
    flags = {"nodes": nodes, "tasks_per_node": tasks_per_node, "gpus_per_node": tasks_per_node if gpus else None}
    return load_profile(cluster, flags)


def why_refused(cluster: str, *, whole_passes: bool) -> Callable[[Cell], str | None]:
    """A check of cells whose config could be made: None, or the first reason against one.

    Args:
        whole_passes: a batch of more clips than a domain has segments is wanted.

    Raises:
        UserError: there is no such cluster.
    """
    from mmsada_hpc.methods import batch_layout  # imports torch, which `--help` can do without

    load_profile(cluster)

    def check(cell: Cell) -> str | None:
        try:
            layout = batch_layout(cell.config, cell.ranks)
            profile = profile_for(cluster, cell.nodes, cell.tasks_per_node)
            if not whole_passes:
                _check_segments(cell.config, layout)
            _check_memory(cell.config, layout, profile)
        except UserError as error:
            return str(error)
        return None

    return check


def has_store(config: Config) -> bool:
    """Whether the segments of the training domains can be counted here."""
    store = config.data.store
    return store is not None and (store / MANIFEST).is_file()


def _check_segments(config: Config, layout: BatchLayout) -> None:
    from mmsada_hpc.methods import find_method

    if config.data.store is None or not has_store(config):
        return
    for side in find_method(config.method.name).trains_on:
        names: tuple[str, ...] = getattr(config.data, side)
        segments = _segments(config.data.store, names)
        if layout.domain_batch > segments:
            raise UserError(
                f"global batch {layout.global_batch} takes {layout.domain_batch} clips of {'+'.join(names)} an update, "
                f"which has {segments} training segments: a batch would hold a segment more than once (whole_passes: "
                f"true in the study allows it)"
            )


@lru_cache
def _segments(store: Path, domains: tuple[str, ...]) -> int:
    opened = Store.open(store)
    return sum(len(opened.select(domain, "train")) for domain in domains)


def _check_memory(config: Config, layout: BatchLayout, profile: Profile) -> None:
    """By what is counted on the networks: what libraries, workspaces and the loader take comes on top."""
    if profile.mem_gb is None or profile.gpus_per_node:  # a GPU's own memory no profile tells
        return
    from mmsada_hpc.submit.estimate import cost_of, memory_of

    classes = read_json(config.data.store / MANIFEST).get("classes") if config.data.store is not None else None
    memory = memory_of(config, cost_of(config, num_classes=len(classes or range(_CLASSES))), layout)
    wanted = profile.tasks_per_node * memory.total / 2**30
    if wanted > profile.mem_gb:
        raise UserError(
            f"micro-batch {layout.micro_batch} needs about {wanted:.0f} GiB on a node of {profile.mem_gb:g} GB "
            f"(mem_gb of the profile), libraries and loader not counted: take a smaller micro-batch with accumulation"
        )
