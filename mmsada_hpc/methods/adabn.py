"""AdaBN: target clips pass through the network without any loss and move its running statistics (spec 6.1).

    L = s * L_y

`model.batch_norm.test` chooses what is normalised with at test: `mixture` of both domains' statistics, as the released
code does, or the `target`'s own, the textbook's AdaBN. They are two rows of a table.
"""

from mmsada_hpc.config import Config
from mmsada_hpc.methods.base import register
from mmsada_hpc.methods.source_only import SourceOnly


@register("adabn")
class AdaBn(SourceOnly):
    """Half a batch of source clips, all classified, and half a batch of target clips."""

    trains_on = ("source", "target")

    @classmethod
    def label(cls, config: Config) -> str:
        return f"{cls.name} ({config.model.batch_norm.test})"
