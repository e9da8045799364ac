"""Alignment: one permutation per hidden group so that a network lies near a reference (thesis section 4.3)."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from wsflow.weightspace import Objective, WeightSpace

BATCH = 256
"""Networks whose functions are compared at once."""


class Aligner(ABC):
    """Chooses the permutations; a variant keeps each constructor argument as an attribute of the same name."""

    @abstractmethod
    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Permutations that bring each network near its reference.

        Args:
            space: The weight space.
            theta: (B, D).
            reference: (D,), shared by all networks, or (B, D), one per network.
            objective: What aligners that look at a loss minimise; others pass it over.

        Returns:
            One tensor (B, size) per hidden group, as :func:`wsflow.weightspace.symmetry.permute` takes them:
            ``space.permute(theta, align(space, theta, reference))`` is the aligned batch.

        Raises:
            ValueError: where shapes do not fit, a number is not finite, or a group's symmetry is not supported.
        """

    @final
    def description(self) -> dict[str, Any]:
        """``{"class_path", "init_args"}``, plain data: the settings that an aligned zoo is cached under."""
        cls = type(self)
        names = inspect.signature(cls).parameters
        return {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": {name: getattr(self, name) for name in names},
        }


def similarity(space: WeightSpace, theta: Tensor, reference: Tensor) -> Tensor:
    """Inner product of each network with its reference, summed in float64.

    Permutations keep norms, so that among permutations of one network the most similar is also the nearest.

    Args:
        space: The weight space.
        theta: (B, D).
        reference: (D,) or (B, D).

    Returns:
        (B,), float64.

    Raises:
        ValueError: where shapes do not fit.
    """
    space.check(theta)
    space.check(reference)
    return (theta.double() * reference.double()).sum(-1)


def check_same_functions(
    space: WeightSpace,
    theta: Tensor,
    aligned: Tensor,
    inputs: Tensor | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Raise unless two batches of networks compute the same functions, pair by pair.

    Args:
        space: Their weight space.
        theta: (B, D).
        aligned: (B, D).
        inputs: (N, ...); 16 standard normal input vectors unless given.
        tolerance: Largest difference of two outputs of a network, over the largest output of that network.  The default
            is three times the root of the rounding unit: 1e-3 in float32, where sums in another order differ by far
            less and networks with other functions by far more.
        seed: Seed of the random inputs.

    Raises:
        ValueError: where a pair differs, or puts out a number that is not finite; the message counts the pairs.
    """
    if theta.shape != aligned.shape:
        raise ValueError(f"networks of shape {tuple(theta.shape)} cannot equal networks of {tuple(aligned.shape)}")
    limit = 3 * torch.finfo(theta.dtype).eps ** 0.5 if tolerance is None else tolerance
    if inputs is None:
        inputs = torch.randn(16, space.groups[0].size, generator=torch.Generator().manual_seed(seed))
    inputs = inputs.to(theta)
    pairs = zip(torch.split(theta, BATCH), torch.split(aligned, BATCH), strict=True)
    error = torch.cat([_error(space, before, after, inputs) for before, after in pairs])
    wrong = ~(error <= limit)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"alignment changed the function of {int(wrong.sum())} of {len(error)} networks: outputs of network "
            f"{first} differ by {float(error[first]):.2e} of the largest one (tolerance {limit:.2e})"
        )


def _error(space: WeightSpace, before: Tensor, after: Tensor, inputs: Tensor) -> Tensor:
    """Largest difference of outputs over the largest output, (B,); zero where all outputs are."""
    first, second = space.forward(before, inputs), space.forward(after, inputs)
    difference, largest = (first - second).abs().amax((1, 2)), first.abs().amax((1, 2))
    return torch.where(difference == 0, 0.0, difference / largest)
