"""Any network put together from supported layers has the symmetries that are read off it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_networks import networks
from torch import Tensor, nn

from wsflow.weightspace import WeightSpace, check_symmetries
from wsflow.weightspace.symmetry import check_permutations, compose, invert, random_permutations, random_scales


def holds(network: nn.Module, inputs: Tensor) -> None:
    """Raise unless all that a weight space promises is true of a network's."""
    space = WeightSpace.from_module(network, inputs, check=False)
    check_symmetries(space, network, inputs)
    state = network.state_dict()
    assert space.names == {name for name, _ in network.named_parameters()}
    theta = space.flatten(state, buffers=True)
    assert torch.equal(space.flatten(space.unflatten(theta), buffers=True), theta)
    assert all(torch.equal(value, state[name]) for name, value in space.unflatten(theta).items())
    generator = torch.Generator().manual_seed(0)
    several = torch.randn(3, space.full_dim, generator=generator)
    p, q = random_permutations(space, 3, generator), random_permutations(space, 3, generator)
    for perms in (p, q, invert(p), compose(p, q)):
        check_permutations(space, perms)
    assert torch.equal(space.permute(space.permute(several, p), invert(p)), several)
    assert torch.equal(space.permute(space.permute(several, p), q), space.permute(several, compose(p, q)))
    scales = random_scales(space, 3, generator)
    back = space.rescale(space.rescale(several.double(), scales), [1 / scale.double() for scale in scales])
    torch.testing.assert_close(back, several.double(), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_any_network(made: tuple[nn.Module, Tensor]) -> None:
    holds(*made)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_very_many_networks(made: tuple[nn.Module, Tensor]) -> None:
    holds(*made)
