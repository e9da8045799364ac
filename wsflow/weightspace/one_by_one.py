"""When networks run faster one after another.

Mapped over networks, a convolution becomes a grouped convolution.  That saves the overhead of a call per network, but
libraries compute it several times slower than as many plain ones, so with enough inputs a loop over networks is faster.
On one core, 5,000 images through 34 networks of 2,476 parameters took 50 ms a network mapped and 8 ms in a loop; with
100 images both take the same.

A frozen convolution is no grouped one: where ``select=`` leaves convolutions out, networks are mapped, and what lies
before the first layer that differs between networks runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

INPUTS = 128
"""Inputs of one network from which convolutional networks run one after another."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def one_by_one(template: nn.Module, inputs: int, given: Collection[str]) -> bool:
    """Whether networks of this architecture run one after another.

    Args:
        template: The architecture.
        inputs: Inputs per network.
        given: Names of the tensors that differ between networks.
    """
    return inputs >= INPUTS and any(
        isinstance(layer, CONVOLUTIONS) and f"{name}.weight".lstrip(".") in given
        for name, layer in template.named_modules()
    )


def each(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Named tensors (B, ...) of B networks, network by network."""
    rows = zip(*(value.unbind() for value in weights.values()), strict=True)
    return [dict(zip(weights, row, strict=True)) for row in rows]
