r"""A plain network on the flat vector of weights, for comparison.

It knows nothing of neurons: permuting hidden neurons of its input does not permute its output, its size grows with D,
and it runs on no other width.  With it, alignment decides what can be learned.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsflow.fields.base import VectorField
from wsflow.fields.time_embedding import TimeEmbedding
from wsflow.weightspace import WeightSpace


class MLPField(VectorField):
    """Residual multilayer perceptron with time (and labels) added in every block.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights; negative for a latent space of fewer coordinates than weights.
        width: Size of the hidden state.
        depth: Number of residual blocks.
        condition: Number of values that each network is conditioned on, 0 for none.

    Raises:
        ValueError: for a width or depth below 1.
    """

    latent: ClassVar[bool] = True

    def __init__(
        self, space: WeightSpace, extra: int = 0, width: int = 256, depth: int = 3, condition: int = 0
    ) -> None:
        super().__init__(space, extra)
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, got {width} and {depth}")
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition, width, bias=False) if condition else None
        self.read = nn.Linear(self.dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, self.dim)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, D + extra); zero before training.

        Raises:
            ValueError: where a label is missing, or given to a field without labels.
        """
        if (condition is None) != (self.condition is None):
            raise ValueError("a field with condition > 0 needs a label for every state, any other field takes none")
        context = self.time(t)
        if self.condition is not None:
            context = context + self.condition(condition)
        h = self.read(self._scaled_in(x))
        for block in self.blocks:
            h = block(h, context)
        return self._scaled_out(self.write(self.norm(h)))

    def _bind(self, space: WeightSpace) -> None:
        if space.tensors != self.space.tensors:
            raise ValueError(
                f"MLPField is tied to the {self.space.dim} weights of the space it was made for and cannot be bound "
                f"to one with D = {space.dim}; use a field on the neural graph, such as RelationalTransformer"
            )


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, 2 * width)
        self.context = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        result: Tensor = h + self.back(torch.nn.functional.silu(self.into(self.norm(h)) + self.context(context)))
        return result
