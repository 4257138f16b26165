"""Conditional discriminators in the manner of CDAN (Long et al., NeurIPS 2018); not a row of the MM-SADA paper.

    L = s * L_y + sum_m L_d^m(f_m x g)

As `adversarial`, but each discriminator sees the outer product of its stream's features f and the fused class
probabilities g (no gradient through g, no dropout), so that it aligns the domains class by class.
"""

import torch

from mmsada_hpc.methods.adversarial import Adversarial
from mmsada_hpc.methods.base import Features, register
from mmsada_hpc.methods.heads import two_layer_head


@register("cdan")
class Cdan(Adversarial):
    """Discriminators on features x classes."""

    def add_heads(self) -> None:
        self.discriminator = self.per_stream(lambda width: two_layer_head(width * self.sizes.num_classes))

    def seen(self, features: Features) -> Features:
        with torch.no_grad():
            shares_NC = self.logits(features)["fused"][:, : self.sizes.num_classes].softmax(dim=1)
        return {s: (x_ND[:, :, None] * shares_NC[:, None, :]).flatten(1) for s, x_ND in features.items()}
