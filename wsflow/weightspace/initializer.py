"""Laws of initial weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from wsflow.weightspace.space import WeightSpace


class Initializer(ABC):
    """The law that initialises base networks: where runs start, and what a flow may start from."""

    @abstractmethod
    def sample(self, space: WeightSpace, n: int, generator: torch.Generator) -> Tensor:
        """Draw initial weights, (n, D) on the CPU, a function of the generator's state alone."""


class GaussianInitializer(Initializer):
    """Every weight and bias independent, N(0, std^2).

    Args:
        std: Standard deviation; the thesis's variance 0.1 is std 0.3162 (appendix A).

    Raises:
        ValueError: unless std is positive.
    """

    def __init__(self, std: float = 0.1**0.5) -> None:
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.std = std

    def sample(self, space: WeightSpace, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) Gaussian weights."""
        return self.std * torch.randn(n, space.dim, generator=generator)


class NetworkInitializer(Initializer):
    """The network's own initialiser: ``reset_parameters`` of each of its layers, ``_reset_parameters`` of attention.

    What a network's ``__init__`` does to its layers beyond that is not repeated.
    """

    def sample(self, space: WeightSpace, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) weights as the layers initialise themselves.

        Raises:
            ValueError: for a tensor that no layer resets, such as a module's own ``nn.Parameter``: it would be the same
                in all networks.
        """
        module = copy.deepcopy(space.template).cpu()
        with torch.random.fork_rng(devices=[]):
            # Layers draw from the global generator; a seed would not do, since torch reads 32 bits of it.
            torch.default_generator.set_state(generator.get_state())
            theta = [self._draw(space, module) for _ in range(n)]
            generator.set_state(torch.default_generator.get_state())
        return torch.stack(theta)

    @staticmethod
    @torch.no_grad()
    def _draw(space: WeightSpace, module: nn.Module) -> Tensor:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)
        layers = list(module.modules())
        # Attention builds its layers first and then resets what they have set.
        for name, order in (("reset_parameters", layers), ("_reset_parameters", reversed(layers))):
            for layer in order:
                reset = getattr(layer, name, None)
                if callable(reset):
                    reset()
        theta = space.flatten(module.state_dict())
        left = [tensor.name for tensor in space.tensors if theta[tensor.slice].isnan().any()]
        if left:
            raise ValueError(
                f"no layer draws {', '.join(left)} anew, so that all networks would begin with the same values: give "
                "the module that owns it a method reset_parameters, leave it out with select=, or use "
                "GaussianInitializer (as prior: GaussianPrior)"
            )
        return theta
