"""What a data module yields."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ZooBatch(NamedTuple):
    """A batch of B trained networks.

    Attributes:
        x1: (B, D), trained weights.
        start: (B, D), the initial weights of each network's run, or None where the zoo has none.
        run: (B,), the run each network comes from.
        label: (B, K), what a conditional flow is told of each network, or None.
        path: (B, S, D), earlier snapshots of each network's run, in order, or None where they are not asked for.
        path_times: (B, S), when they were taken, as ascending parts of the run in (0, 1).
    """

    x1: Tensor
    start: Tensor | None
    run: Tensor
    label: Tensor | None = None
    path: Tensor | None = None
    path_times: Tensor | None = None

    def rows(self, index: slice) -> ZooBatch:
        """Some of the networks."""
        return ZooBatch._make(None if value is None else value[index] for value in self)

    def select(self, index: Tensor) -> ZooBatch:
        """The networks with these numbers (n,), which are on the batch's device; a copy."""
        return ZooBatch._make(None if value is None else value.index_select(0, index) for value in self)

    def to(self, device: torch.device) -> ZooBatch:
        """The batch on a device."""
        return ZooBatch._make(None if value is None else value.to(device) for value in self)
