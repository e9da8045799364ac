"""What a data module yields."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ZooBatch(NamedTuple):
    """A batch of B trained networks.

    Attributes:
        x1: (B, D), trained weights.
        start: (B, D), the initial weights of each network's run, or None where the zoo has none.
        run: (B,), the run each network comes from.
        label: (B, K), what a conditional flow is told of each network, or None.
    """

    x1: Tensor
    start: Tensor | None
    run: Tensor
    label: Tensor | None = None
