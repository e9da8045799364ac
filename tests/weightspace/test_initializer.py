"""Laws of initial weights."""

from __future__ import annotations

import math

import pytest
import torch

from wsflow.weightspace import GaussianInitializer, Initializer, NetworkInitializer, WeightSpace, mlp

INITIALIZERS = [GaussianInitializer(), NetworkInitializer()]


@pytest.fixture(params=INITIALIZERS, ids=lambda initializer: type(initializer).__name__)
def initializer(request: pytest.FixtureRequest) -> Initializer:
    return request.param


def test_draws_are_a_function_of_the_generator(initializer: Initializer, space: WeightSpace) -> None:
    first, again, other = (initializer.sample(space, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (4, space.dim)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 4


def test_successive_draws_differ(initializer: Initializer, space: WeightSpace, generator: torch.Generator) -> None:
    assert not torch.equal(initializer.sample(space, 2, generator), initializer.sample(space, 2, generator))


def test_the_global_random_state_is_neither_read_nor_moved(initializer: Initializer, space: WeightSpace) -> None:
    draws = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        draws.append(initializer.sample(space, 2, torch.Generator().manual_seed(1)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*draws)


def test_gaussian_has_its_standard_deviation(generator: torch.Generator) -> None:
    theta = GaussianInitializer(0.5).sample(WeightSpace.from_module(mlp([10, 10])), 1000, generator)
    assert theta.mean().abs() < 0.01
    assert abs(theta.std().item() - 0.5) < 0.01


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_bad_standard_deviation_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std must be positive"):
        GaussianInitializer(std)


def test_networks_own_law_is_that_of_torch(generator: torch.Generator) -> None:
    """Linear layers draw weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    space = WeightSpace.from_module(mlp([4, 25, 2]))
    before = space.flatten(space.template.state_dict())
    named = space.unflatten(NetworkInitializer().sample(space, 200, generator))
    for name, fan_in in {"1.weight": 4, "1.bias": 4, "3.weight": 25, "3.bias": 25}.items():
        bound = fan_in**-0.5
        assert named[name].abs().max() <= bound
        assert named[name].abs().max() > 0.98 * bound
        assert abs(named[name].std().item() - bound / math.sqrt(3)) < 0.05 * bound
    assert torch.equal(space.flatten(space.template.state_dict()), before)
