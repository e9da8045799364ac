"""A small task and networks for it."""

from __future__ import annotations

import torch
from conftest import describe

from wsflow.tasks import ClassificationTask
from wsflow.weightspace import WeightSpace, ZooBatch


class Small(ClassificationTask):
    """A classifier 5-4-3-2 of 40 planted points."""

    network = describe([5, 4, 3, 2])

    def load(self):
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(40, 5, generator=generator)
        return dict.fromkeys(("train", "val", "test"), (inputs, (inputs[:, 0] > 0).long()))


def networks(space: WeightSpace, n: int = 6) -> ZooBatch:
    generator = torch.Generator().manual_seed(0)
    start = 0.5 * torch.randn(n, space.dim, generator=generator)
    return ZooBatch(start + torch.linspace(0.3, 2, space.dim), start, torch.arange(n))
