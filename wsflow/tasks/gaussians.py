"""The thesis's toy task (section 7.1): networks whose weights are Gaussian, without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.classification import ClassificationTask


class Gaussians(ClassificationTask):
    """p1 = N(mean, std^2) over every weight of a network; nothing is trained and nothing has an accuracy.

    Collecting its zoo draws one network per run, with no start.

    Args:
        widths: Layer sizes of the base network; the thesis's by default.
        mean: Of every weight.
        std: Standard deviation of every weight.
    """

    has_data = False
    terms = "no data: networks are random numbers"

    def __init__(self, widths: Sequence[int] = (30, 16, 16, 2), mean: float = 1.0, std: float = 1.0) -> None:
        self.widths = list(widths)
        self.mean, self.std = mean, std

    @property
    def network(self) -> dict[str, Any]:
        """A ReLU network with logits for two classes."""
        args = {"widths": self.widths}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "softmax"}

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n networks, (n, D)."""
        return self.mean + self.std * torch.randn(n, self.space.dim, generator=generator)

    def mean_network(self) -> Tensor:
        """``mean`` in every weight, (D,)."""
        return torch.full((self.space.dim,), float(self.mean))

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """There is no data.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"task {self.name} has no data")

    def ensemble(self, theta: Tensor, split: str) -> dict[str, float]:
        """No scores, for there is no data."""
        return {}
