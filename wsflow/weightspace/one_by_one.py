"""When networks run faster one after another.

Mapped over networks, a convolution becomes a grouped convolution.  That saves the overhead of a call per network, but
libraries compute it several times slower than as many plain ones, so with enough inputs a loop over networks is faster.
On one core, 5,000 images through 34 networks of 2,476 parameters took 50 ms a network mapped and 8 ms in a loop; with
100 images both take the same.
"""

from __future__ import annotations

from torch import Tensor, nn

INPUTS = 128
"""Inputs of one network from which convolutional networks run one after another."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def one_by_one(template: nn.Module, inputs: int) -> bool:
    """Whether networks of this architecture run one after another.

    Args:
        template: The architecture.
        inputs: Inputs per network.
    """
    return inputs >= INPUTS and any(isinstance(layer, CONVOLUTIONS) for layer in template.modules())


def each(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Named tensors (B, ...) of B networks, network by network."""
    rows = zip(*(value.unbind() for value in weights.values()), strict=True)
    return [dict(zip(weights, row, strict=True)) for row in rows]
