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


class Attending(torch.nn.Module):
    """Attention over the positions of an input, and a parameter of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.place = torch.nn.Parameter(torch.randn(3, 8))
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(x) + self.place)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Resetting(Attending):
    """The same, which draws its own parameter."""

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.place, std=0.1)


def attending(kind: type[Attending]) -> WeightSpace:
    return WeightSpace.from_module(kind(), torch.randn(2, 3, 4), check=False)


def test_every_tensor_is_drawn_as_its_layer_does(generator: torch.Generator) -> None:
    """Attention resets itself by another name, and only after its layers."""
    space = attending(Resetting)
    tensors = space.unflatten(NetworkInitializer().sample(space, 200, generator))
    projection = tensors["attention.in_proj_weight"]
    assert projection.std(0).min() > 0
    assert projection.abs().max() <= (6 / (8 + 24)) ** 0.5
    assert not tensors["attention.in_proj_bias"].any()
    assert not tensors["attention.out_proj.bias"].any()
    assert tensors["place"].std().item() == pytest.approx(0.1, rel=0.05)


def test_a_tensor_that_nothing_draws_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="no layer draws place anew, so that all networks would begin with the same"):
        NetworkInitializer().sample(attending(Attending), 2, generator)


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
