"""Networks that cover what tracing understands, and the slow reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wsflow.weightspace import WeightSpace, mlp

NETWORKS = {
    "relu": lambda: mlp([5, 4, 3, 2]),
    "no_bias": lambda: mlp([5, 4, 3, 2], bias=False),
    "tanh": lambda: mlp([5, 6, 2], activation="tanh"),
    "leaky_relu": lambda: mlp([5, 6, 2], activation="leaky_relu"),
    "gelu": lambda: mlp([5, 6, 2], activation="gelu"),
    "linear": lambda: nn.Linear(5, 2),
    "one_neuron": lambda: mlp([5, 1, 2]),
    "nested": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Identity(), nn.ReLU())),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Dropout(0.9)),
        nn.Linear(3, 2),
    ),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> nn.Module:
    """A network with five inputs and two outputs."""
    return request.param()


@pytest.fixture
def networks_space(network: nn.Module) -> WeightSpace:
    return WeightSpace.from_module(network)


@pytest.fixture
def weights(networks_space: WeightSpace, generator: torch.Generator) -> Tensor:
    """Four networks in float64."""
    return torch.randn(4, networks_space.dim, generator=generator, dtype=torch.float64)


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(9, 5, generator=generator, dtype=torch.float64)
