"""Random zeros while training."""

from __future__ import annotations

from torch import nn

import refiners.fluxion.layers as fl


class Dropout(nn.Dropout, fl.Module):
    """Set elements to 0 at random while training, and divide the others by the part of them that is left.

    See [[arXiv:1207.0580] Improving neural networks by preventing co-adaptation](https://arxiv.org/abs/1207.0580).

    Args:
        p: How likely an element is set to 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
