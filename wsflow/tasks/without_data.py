"""Networks without data: what is known of a zoo that names no task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsflow.tasks.base import BaseTask


class WithoutData(BaseTask):
    """A base network and no data: flows can be trained on such networks, and nothing judges them on a task.

    Samples are compared with held-out networks by their weights: how new, how diverse, and of which moments these are.

    Args:
        builder: Dotted path of the function or class that returns the network.
        options: The rest of the network's description: ``init_args``, ``output_activation``, ``input_shape`` and what
            else :meth:`wsflow.weightspace.WeightSpace.from_description` takes.
    """

    has_data = False

    def __init__(self, builder: str, options: Mapping[str, Any] | None = None) -> None:
        self.builder, self.options = builder, dict(options or {})

    @classmethod
    def of(cls, network: Mapping[str, Any]) -> WithoutData:
        """The task of a network's description."""
        return cls(network["class_path"], {key: value for key, value in network.items() if key != "class_path"})

    @property
    def network(self) -> dict[str, Any]:
        """The network's description."""
        return {"class_path": self.builder, **self.options}

    def load(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """There is no data.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"there are no data for networks of {self.builder}; name their task by data.task")

    def predictions(self, logits: Tensor) -> Tensor:
        """Probabilities (B, N, C) where the network's output activation is softmax, else the outputs themselves."""
        return logits.softmax(-1) if self.options.get("output_activation", "softmax") == "softmax" else logits

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """There are no losses, for there are no targets.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"there are no data for networks of {self.builder}, and no losses")

    def scores(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """No scores, for there are no targets."""
        return {}

    def ensemble(self, theta: Tensor, split: str) -> dict[str, float]:
        """No scores, for there are no targets."""
        return {}
