r"""Time as a field reads it.

A time :math:`t \in [0, 1]` becomes Fourier features of geometrically spaced frequencies, from half a turn to
``max_turns`` turns over the unit interval,

.. math:: \phi(t) = (t, \sin 2\pi f_k t, \cos 2\pi f_k t)_k ,

and a small network mixes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Times (B,) to vectors (B, width).

    Args:
        width: Size of the embedding.
        frequencies: Number of Fourier frequencies.
        max_turns: The highest frequency, in turns over [0, 1]; higher ones resolve sharper changes in time and make
            the velocity rougher.

    Raises:
        ValueError: for sizes below 1 or ``max_turns`` of a half or less.
    """

    _angular: Tensor

    def __init__(self, width: int, frequencies: int = 16, max_turns: float = 16.0) -> None:
        super().__init__()
        if min(width, frequencies) < 1 or not max_turns > 0.5:
            raise ValueError(
                "width and frequencies must be positive and max_turns above 0.5; "
                f"got {width}, {frequencies} and {max_turns}"
            )
        turns = torch.logspace(math.log2(0.5), math.log2(max_turns), frequencies, base=2.0)
        self.register_buffer("_angular", 2 * math.pi * turns, persistent=False)
        self.mix = nn.Sequential(nn.Linear(2 * frequencies + 1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B, width) embeddings of times (B,)."""
        angle = t[:, None] * self._angular
        result: Tensor = self.mix(torch.cat([t[:, None], angle.sin(), angle.cos()], dim=1))
        return result
