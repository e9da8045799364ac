"""The batched forward pass against one network at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from wsflow.weightspace import WeightSpace, mlp


def by_hand(space: WeightSpace, theta: Tensor, x: Tensor) -> Tensor:
    """(N, C) outputs of one multilayer perceptron of the space, neuron by neuron."""
    named, act = space.unflatten(theta), {"relu": torch.relu, "tanh": torch.tanh}
    values = [x[:, i] for i in range(x.shape[1])]
    for block in space.blocks:
        bias = named.get(block.name.replace("weight", "bias"), theta.new_zeros(block.out))
        values = [sum(named[block.name][i, j] * v for j, v in enumerate(values)) + bias[i] for i in range(block.out)]
        if block.target != "output":
            values = [act[space.group(block.target).activation](v) for v in values]
    return torch.stack(values, dim=1)


def test_it_equals_functional_call_one_by_one(network: nn.Module, weights: Tensor, inputs: Tensor) -> None:
    space = WeightSpace.from_module(network)
    expected = [functional_call(network.eval(), space.unflatten(one), (inputs,)) for one in weights]
    torch.testing.assert_close(space.forward(weights, inputs), torch.stack(expected))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("widths", [[5, 2], [5, 4, 2], [5, 3, 4, 1]], ids=str)
def test_it_equals_a_loop_over_neurons(widths: list[int], activation: str, bias: bool, inputs: Tensor) -> None:
    space = WeightSpace.from_module(mlp(widths, activation, bias))
    theta = torch.randn(3, space.dim, dtype=torch.float64)
    expected = torch.stack([by_hand(space, one, inputs) for one in theta])
    torch.testing.assert_close(space.forward(theta, inputs), expected)


def test_it_equals_to_module(networks_space: WeightSpace, weights: Tensor, inputs: Tensor) -> None:
    outputs = networks_space.forward(weights, inputs)
    for one, expected in zip(weights, outputs, strict=True):
        torch.testing.assert_close(networks_space.to_module(one)(inputs), expected)


def test_each_network_may_have_its_own_inputs(space: WeightSpace, theta: Tensor) -> None:
    inputs = torch.randn(7, 6, 5, dtype=torch.float64)
    outputs = space.forward(theta, inputs, per_network=True)
    assert outputs.shape == (7, 6, 2)
    for i in range(7):
        torch.testing.assert_close(outputs[i], space.forward(theta[i : i + 1], inputs[i])[0])


def test_images_are_flattened(theta: Tensor) -> None:
    space = WeightSpace.from_module(mlp([4, 3]))
    theta = torch.randn(2, space.dim)
    images = torch.randn(6, 1, 2, 2)
    torch.testing.assert_close(space.forward(theta, images), space.forward(theta, images.flatten(1)))
    assert space.forward(theta, images.expand(2, 6, 1, 2, 2), per_network=True).shape == (2, 6, 3)


def test_one_network_and_none(space: WeightSpace, theta: Tensor, inputs: Tensor) -> None:
    assert space.forward(theta[:1], inputs).shape == (1, 9, 2)
    assert space.forward(theta[:1], inputs[:1]).shape == (1, 1, 2)


def test_gradients_reach_every_network_alone(space: WeightSpace, theta: Tensor, inputs: Tensor) -> None:
    theta.requires_grad_(True)
    space.forward(theta, inputs)[2].square().sum().backward()
    assert theta.grad[2].abs().sum() > 0
    assert theta.grad[[0, 1, 3, 4, 5, 6]].abs().max() == 0


def test_it_agrees_with_finite_differences(space: WeightSpace, theta: Tensor, inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(lambda t: space.forward(t, inputs), theta[:2].requires_grad_(True))


def test_weights_of_another_space_are_refused(space: WeightSpace, inputs: Tensor) -> None:
    with pytest.raises(ValueError, match="this weight space has D"):
        space.forward(torch.zeros(3, space.dim + 1, dtype=torch.float64), inputs)
