"""Flat vectors and named tensors are the same numbers."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from wsflow.weightspace import WeightSpace, mlp


def test_flatten_then_unflatten_gives_the_state_dict(network: nn.Module, networks_space: WeightSpace) -> None:
    state = network.state_dict()
    named = networks_space.unflatten(networks_space.flatten(state))
    assert list(named) == list(state)
    for name, value in state.items():
        assert named[name].shape == value.shape
        assert torch.equal(named[name], value)


def test_unflatten_then_flatten_gives_the_vector(networks_space: WeightSpace, weights: Tensor) -> None:
    assert torch.equal(networks_space.flatten(networks_space.unflatten(weights)), weights)


def test_leading_axes_are_kept(space: WeightSpace) -> None:
    theta = torch.randn(2, 3, space.dim)
    named = space.unflatten(theta)
    assert named["1.weight"].shape == (2, 3, 4, 5)
    assert torch.equal(space.flatten(named), theta)


def test_flat_order_is_a_weight_row_by_row_and_then_its_bias(space: WeightSpace) -> None:
    named = space.unflatten(torch.arange(space.dim))
    assert list(named) == ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"]
    assert named["1.weight"][0].tolist() == [0, 1, 2, 3, 4]
    assert named["1.weight"][1, 0] == 5
    assert named["1.bias"].tolist() == [20, 21, 22, 23]
    assert named["5.bias"].tolist() == [space.dim - 2, space.dim - 1]


def test_dim_is_the_number_of_parameters(network: nn.Module, networks_space: WeightSpace) -> None:
    assert networks_space.dim == sum(p.numel() for p in network.parameters())


def test_flatten_copies() -> None:
    network = mlp([3, 2])
    space = WeightSpace.from_module(network)
    theta = space.flatten(network.state_dict())
    before = theta.clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(theta, before)


def test_further_entries_are_passed_over(space: WeightSpace, theta: Tensor) -> None:
    state = {"steps": torch.tensor(3), **space.unflatten(theta[0])}
    assert torch.equal(space.flatten(state), theta[0])


def test_a_missing_tensor_is_named(space: WeightSpace, theta: Tensor) -> None:
    state = space.unflatten(theta[0])
    del state["3.bias"]
    with pytest.raises(ValueError, match=re.escape("tensor '3.bias' is missing")):
        space.flatten(state)


@pytest.mark.parametrize("shape", [(5, 4), (4,), (4, 6), (20,), ()], ids=str)
def test_a_wrong_shape_is_named(space: WeightSpace, theta: Tensor, shape: tuple[int, ...]) -> None:
    state = space.unflatten(theta[0]) | {"1.weight": torch.zeros(shape)}
    with pytest.raises(ValueError, match=re.escape(f"tensor '1.weight' has shape {shape}, expected (4, 5)")):
        space.flatten(state)


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("call", ["unflatten", "check"])
def test_a_wrong_dimension_is_refused(space: WeightSpace, call: str, extra: int) -> None:
    with pytest.raises(ValueError, match=f"this weight space has D = {space.dim}"):
        getattr(space, call)(torch.zeros(2, space.dim + extra))


def test_a_scalar_is_refused(space: WeightSpace) -> None:
    with pytest.raises(ValueError, match="D ="):
        space.check(torch.tensor(1.0))


class TestToModule:
    def test_it_has_the_weights(self, networks_space: WeightSpace, weights: Tensor) -> None:
        module = networks_space.to_module(weights[0])
        assert torch.equal(networks_space.flatten(module.state_dict()), weights[0])
        assert not module.training
        assert all(p.requires_grad and p.dtype == torch.float64 for p in module.parameters())

    def test_training_it_leaves_theta_and_the_template_alone(self, space: WeightSpace, theta: Tensor) -> None:
        before, template = theta.clone(), copy.deepcopy(space.template.state_dict())
        module, twin = space.to_module(theta[0]), space.to_module(theta[0])
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        module(torch.ones(3, 5, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(space.flatten(module.state_dict()), before[0])
        assert torch.equal(theta, before)
        assert torch.equal(space.flatten(twin.state_dict()), before[0])
        for name, value in space.template.state_dict().items():
            assert torch.equal(value, template[name])

    @pytest.mark.parametrize("n", [1, 2])
    def test_it_takes_one_network(self, space: WeightSpace, n: int) -> None:
        with pytest.raises(ValueError, match="takes one network"):
            space.to_module(torch.zeros(n, space.dim))

    def test_a_space_without_its_network_is_refused(self, space: WeightSpace, theta: Tensor) -> None:
        bare = WeightSpace(space.groups, space.blocks, space.vectors)
        with pytest.raises(ValueError, match=r"template has no tensor '1\.weight'"):
            bare.to_module(theta[0])


class TestIndexSets:
    def test_incoming_and_outgoing_hold_each_neurons_weights(self, space: WeightSpace) -> None:
        theta = torch.arange(space.dim)
        named = space.unflatten(theta)
        for neuron in range(3):
            assert torch.equal(theta[space.incoming("hidden2")[neuron]], named["3.weight"][neuron])
            assert torch.equal(theta[space.outgoing("hidden2")[neuron]], named["5.weight"][:, neuron])
            assert theta[space.attached("hidden2")[neuron]] == named["3.bias"][neuron]

    @pytest.mark.parametrize("group", ["input", "hidden1", "hidden2", "output"])
    def test_shapes_at_both_ends(self, space: WeightSpace, group: str) -> None:
        sizes = [5, 4, 3, 2]
        i = ["input", "hidden1", "hidden2", "output"].index(group)
        assert space.incoming(group).shape == (sizes[i], sizes[i - 1] if i > 0 else 0)
        assert space.outgoing(group).shape == (sizes[i], sizes[i + 1] if i < 3 else 0)
        assert space.attached(group).shape == (sizes[i], 1 if i > 0 else 0)
        assert space.attached(group, "norm_weight").shape == (sizes[i], 0)

    def test_incoming_and_biases_cover_every_coordinate_once(self, networks_space: WeightSpace) -> None:
        parts = [networks_space.incoming(g.name).flatten() for g in networks_space.groups]
        parts += [networks_space.attached(g.name).flatten() for g in networks_space.groups]
        assert torch.cat(parts).sort().values.tolist() == list(range(networks_space.dim))


def test_copies_share_the_space_and_equality_is_by_structure(space: WeightSpace) -> None:
    assert copy.deepcopy(space) is space
    again = WeightSpace.from_module(mlp([5, 4, 3, 2]))
    assert again == space
    assert hash(again) == hash(space)
    assert again != WeightSpace.from_module(mlp([5, 4, 3, 3]))
    assert again != WeightSpace.from_module(mlp([5, 4, 3, 2]), output_activation="identity")
    assert again != WeightSpace.from_module(mlp([5, 4, 3, 2], activation="tanh"))
