"""Supervised target: source only, trained on the target's own labelled train set (spec 6.4). The upper bar."""

from mmsada_hpc.methods.base import register
from mmsada_hpc.methods.source_only import SourceOnly


@register("supervised_target")
class SupervisedTarget(SourceOnly):
    """A whole batch of labelled target clips."""

    trains_on = ("target",)
