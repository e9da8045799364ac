"""Convolutional networks with many inputs run one after another, and compute what they compute together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.weightspace import WeightSpace, batch_statistics, cnn
from wsflow.weightspace import one_by_one as module


def small(batch_norm: bool) -> WeightSpace:
    args = {"channels": [3, 4], "kernels": [2, 3], "strides": [2, 1], "paddings": [0, 1]}
    network = cnn(**args, input_shape=(2, 6, 6), classes=3, batch_norm=batch_norm)
    return WeightSpace.from_module(network, torch.randn(4, 2, 6, 6))


@pytest.fixture(params=[False, True], ids=["plain", "batch_norm"])
def space(request) -> WeightSpace:
    return small(request.param)


def both_ways(monkeypatch, function) -> tuple[Tensor, Tensor]:
    results = []
    for inputs in (1, 10**9):
        monkeypatch.setattr(module, "INPUTS", inputs)
        results.append(function())
    return results[0], results[1]


@pytest.mark.parametrize("per_network", [False, True], ids=["shared", "per_network"])
def test_outputs_and_gradients_are_the_same(space, monkeypatch, per_network):
    theta = torch.randn(5, space.full_dim, dtype=torch.float64)
    theta[:, space.dim :] = theta[:, space.dim :].abs()
    inputs = torch.randn(*(5,) * per_network, 7, 2, 6, 6, dtype=torch.float64)

    def outputs() -> Tensor:
        leaf = theta.clone().requires_grad_()
        out = space.forward(leaf, inputs, per_network)
        out.square().sum().backward()
        return torch.cat([out.flatten(), leaf.grad.flatten()])

    torch.testing.assert_close(*both_ways(monkeypatch, outputs), rtol=1e-10, atol=1e-10)


def test_statistics_are_the_same(monkeypatch):
    space = small(batch_norm=True)
    theta, inputs = torch.randn(5, space.dim, dtype=torch.float64), torch.randn(9, 2, 6, 6)
    found = both_ways(monkeypatch, lambda: batch_statistics(space, theta, inputs))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_only_convolutions_with_many_inputs_run_alone():
    space = small(batch_norm=False)
    network, kernels = space.template, {block.name for block in space.blocks if block.kernel}
    assert module.one_by_one(network, module.INPUTS, space.names)
    assert not module.one_by_one(network, module.INPUTS - 1, space.names)
    assert not module.one_by_one(network, module.INPUTS, space.names - kernels)  # frozen ones
    assert not module.one_by_one(torch.nn.Linear(2, 3), 10**6, {"weight"})
    assert module.one_by_one(torch.nn.Conv2d(2, 3, 1), 10**6, {"weight"})
