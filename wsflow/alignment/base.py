"""Alignment: one permutation per hidden group so that a network lies near a reference (thesis section 4.3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from wsflow.description import describe
from wsflow.weightspace import Objective, WeightSpace

BATCH = 256
"""Networks whose functions are compared at once."""

ELEMENTS = 2**24
"""Weights of networks whose functions are compared at once; large networks are compared fewer at a time."""

COLUMNS = 2**20
"""Coordinates of a network that are in float64 at once."""


class Aligner(ABC):
    """Chooses the permutations; a variant keeps each constructor argument as an attribute of the same name."""

    @abstractmethod
    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Permutations that bring each network near its reference.

        Args:
            space: The weight space.
            theta: (B, D), or extended by running statistics.
            reference: (D,), shared by all networks, or (B, D), one per network; or extended.
            objective: What aligners that look at a loss minimise; others pass it over.

        Returns:
            One tensor (B, size) per hidden group, as :func:`wsflow.weightspace.symmetry.permute` takes them:
            ``space.permute(theta, align(space, theta, reference))`` is the aligned batch.

        Raises:
            ValueError: where shapes do not fit, a number is not finite, or a group's symmetry is not supported.
        """

    def reference(self, space: WeightSpace, theta: Tensor, objective: Objective | None = None) -> Tensor:
        """What a zoo is aligned to where nobody chose a reference: its first network, unless an aligner finds another.

        Args:
            space: The weight space.
            theta: (B, D), the zoo; or extended.
            objective: As for :meth:`align`.

        Returns:
            (D,), or extended.
        """
        return theta[0]

    @final
    def description(self) -> dict[str, Any]:
        """``{"class_path", "init_args"}``, plain data: the settings that an aligned zoo is cached under."""
        return describe(self)


def similarity(space: WeightSpace, theta: Tensor, reference: Tensor) -> Tensor:
    """Inner product of each network with its reference, summed in float64.

    Permutations keep norms, so that among permutations of one network the most similar is also the nearest.

    Args:
        space: The weight space.
        theta: (B, D), or extended by running statistics, which do not count.
        reference: (D,) or (B, D), or extended.

    Returns:
        (B,), float64.

    Raises:
        ValueError: where shapes do not fit.
    """
    space.check(theta)
    space.check(reference)
    pairs = zip(*(torch.split(x[..., : space.dim], COLUMNS, -1) for x in (theta, reference)), strict=True)
    return torch.stack([_inner(a.double(), b.double()) for a, b in pairs]).sum(0)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    return first @ second if second.ndim == 1 else (first * second).sum(-1)


def check_networks(space: WeightSpace, theta: Tensor, reference: Tensor) -> None:
    """Raise ValueError unless these are networks (B, D) and a reference (D,) or (B, D), or extended, all finite."""
    space.check(theta)
    space.check(reference)
    if theta.ndim != 2 or reference.shape[:-1] not in ((), theta.shape[:-1]):
        raise ValueError(
            f"an aligner takes networks (B, {space.dim}) and a reference ({space.dim},) or one per network; "
            f"got {tuple(theta.shape)} and {tuple(reference.shape)}"
        )
    for what, value in (("network", theta), ("reference", reference.reshape(-1, reference.shape[-1]))):
        if bool(value[:, : space.dim].sum(1).isfinite().all()):
            continue  # one that is not finite shows in the sum
        wrong = ~value[:, : space.dim].isfinite().all(1)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise ValueError(f"{what} {first} has weights that are not finite ({int(wrong.sum())} in all)")


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
        inputs: (N, ...); 16 standard normal inputs unless given.
        tolerance: Largest difference of two outputs of a network, over the largest output of that network.  The default
            is three times the root of the rounding unit: 1e-3 in float32, where sums in another order differ by far
            less and networks with other functions by far more.
        seed: Seed of the random inputs.

    Raises:
        ValueError: where a pair differs, or puts out a number that is not finite (the message counts the pairs), and
            where no inputs are given and the space does not know their shape.
    """
    if theta.shape != aligned.shape:
        raise ValueError(f"networks of shape {tuple(theta.shape)} cannot equal networks of {tuple(aligned.shape)}")
    limit = 3 * torch.finfo(theta.dtype).eps ** 0.5 if tolerance is None else tolerance
    if inputs is None:
        inputs = _random_inputs(space, seed)
    inputs = inputs.to(theta) if inputs.is_floating_point() else inputs.to(theta.device)
    rows = max(1, min(BATCH, ELEMENTS // space.dim))
    pairs = zip(torch.split(theta, rows), torch.split(aligned, rows), strict=True)
    error = torch.cat([_error(space, before, after, inputs) for before, after in pairs])
    wrong = ~(error <= limit)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"alignment changed the function of {int(wrong.sum())} of {len(error)} networks: outputs of network "
            f"{first} differ by {float(error[first]):.2e} of the largest one (tolerance {limit:.2e})"
        )


def _random_inputs(space: WeightSpace, seed: int) -> Tensor:
    if space.input_shape is None:
        raise ValueError("give inputs to compare networks on: the weight space does not know the shape of one")
    return torch.randn(16, *space.input_shape, generator=torch.Generator().manual_seed(seed))


def _error(space: WeightSpace, before: Tensor, after: Tensor, inputs: Tensor) -> Tensor:
    """Largest difference of outputs over the largest output, (B,); zero where all outputs are."""
    first, second = (torch.cat(list(_outputs(space.forward(x, inputs))), dim=1) for x in (before, after))
    difference, largest = (first - second).abs().amax(1), first.abs().amax(1)
    return torch.where(difference == 0, 0.0, difference / largest)


def _outputs(outputs: Any) -> Iterator[Tensor]:
    """The tensors (B, ...) that networks put out, each as (B, n)."""
    if isinstance(outputs, Tensor):
        yield outputs.flatten(1)
    else:
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _outputs(value)
