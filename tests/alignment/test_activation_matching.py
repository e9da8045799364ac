"""Activation matching against slow references: forward passes written by hand, and scipy's assignment of (4.2)."""

import numpy as np
import pytest
import torch
from architectures import NETWORKS, space_of
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from wsflow.alignment import ActivationMatching, activation_matching
from wsflow.description import build
from wsflow.weightspace import Objective, WeightSpace, batch_statistics, mlp
from wsflow.weightspace.symmetry import check_permutations, invert, random_permutations, random_scales

OBSERVED = {name: entry for name, entry in NETWORKS.items() if name != "transformer"}
SPACES = {name: space_of(network(), shape) for name, (network, shape) in OBSERVED.items()}
MLP, RESIDUAL, CNN, CONCATENATED = (SPACES[name] for name in ("mlp", "residual_own", "cnn", "concatenated"))
each_space = pytest.mark.parametrize("name", SPACES)


class Data(Objective):
    """An objective that looks at some inputs."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __call__(self, theta, generator=None):
        return theta.sum(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(name, n, points=40):
    """A space, n networks, a reference and inputs."""
    space = SPACES[name]
    theta, reference = 0.5 * normal(n, space.dim), 0.5 * normal(space.dim, seed=1)
    return space, theta, reference, normal(points, *NETWORKS[name][1], seed=2)


def of_mlp(w, x):
    first = F.relu(F.linear(x, w["1.weight"], w["1.bias"]))
    return [first, F.relu(F.linear(first, w["3.weight"], w["3.bias"]))]


def of_residual(w, x):
    def layer(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    start = F.relu(layer("stem", x))
    normed = F.layer_norm(start, (6,), w["norm.weight"], w["norm.bias"])
    inner = F.relu(layer("up", normed))
    middle = start + layer("down", inner)
    return [torch.cat([normed, middle, F.relu(middle + layer("mix", middle))]), inner]


def of_concatenated(w, x):
    first = F.prelu(F.conv2d(x, w["first.weight"], w["first.bias"]), w["slope.weight"])
    second = F.relu(F.conv2d(first, w["second.weight"], w["second.bias"], padding=1))
    pixels = first.movedim(1, -1).flatten(0, 2)
    return [torch.cat([pixels, first.mean((2, 3))]), second.mean((2, 3))]


SLOW = {"mlp": of_mlp, "residual_own": of_residual, "concatenated": of_concatenated}
"""Activations of each group, (M, size), written by hand."""


def slow_perms(space, activations, theta, reference, inputs, cost):
    """The best permutations, group by group and network by network."""
    goal, perms = activations(space.unflatten(reference), inputs), []
    for network in theta:
        mine = activations(space.unflatten(network), inputs)
        perms.append([linear_sum_assignment(cost(a, b))[1] for a, b in zip(goal, mine, strict=True)])
    return [torch.from_numpy(np.stack(p)) for p in zip(*perms, strict=True)]


def distances(a, b):
    """Squared distances of the answers (M, size) of neurons, as in (4.2)."""
    return (a[:, :, None] - b[:, None, :]).square().sum(0)


def anticorrelations(a, b):
    return -np.nan_to_num(np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :])


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's correlation of a silent neuron
@pytest.mark.parametrize("correlation", [False, True], ids=["distance", "correlation"])
@pytest.mark.parametrize("name", SLOW)
def test_the_cost_is_that_of_a_slow_reference(name, correlation):
    space, theta, reference, inputs = problem(name, 12)
    found = ActivationMatching(inputs, correlation).align(space, theta, reference)
    cost = anticorrelations if correlation else distances
    expected = slow_perms(space, SLOW[name], theta, reference, inputs, cost)
    goal = SLOW[name](space.unflatten(reference), inputs)
    for b, network in enumerate(theta):
        mine = SLOW[name](space.unflatten(network), inputs)
        for g, (a, z) in enumerate(zip(goal, mine, strict=True)):
            matrix, rows = torch.as_tensor(cost(a, z)), torch.arange(a.shape[1])
            torch.testing.assert_close(matrix[rows, found[g][b]].sum(), matrix[rows, expected[g][b]].sum())


@each_space
def test_a_permuted_copy_answers_like_the_reference_again(name):
    space, _, reference, inputs = problem(name, 1)
    planted = random_permutations(space, 5, torch.Generator().manual_seed(0))
    theta = space.permute(reference.expand(5, -1), planted)
    for correlation in (False, True):
        found = ActivationMatching(inputs, correlation).align(space, theta, reference)
        check_permutations(space, found)
        moved = space.permute(theta, found)
        if name == "residual_own":  # some of its neurons are silent, and cannot be told apart
            goal = SLOW[name](space.unflatten(reference), inputs)
            for network in moved:
                torch.testing.assert_close(SLOW[name](space.unflatten(network), inputs), goal)
        elif name in ("mlp", "concatenated", "grouped", "group_norm", "depthwise"):
            assert all(torch.equal(a, b) for a, b in zip(found, invert(planted), strict=True))


@pytest.mark.parametrize("name", ["mlp", "cnn_batch_norm", "grouped", "concatenated"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_neither_the_batch_nor_the_memory_matters(name, shared, monkeypatch):
    space, theta, reference, inputs = problem(name, 5)
    reference = reference if shared else 0.5 * normal(5, space.dim, seed=1)
    aligner = ActivationMatching(inputs, correlation=True)
    whole = aligner.align(space, theta, reference)
    alone = aligner.align(space, theta[3:4], reference if shared else reference[3:4])
    for memory in (0, 300_000):
        monkeypatch.setattr(activation_matching, "MEMORY", memory)
        parts = aligner.align(space, theta, reference)
        for a, b, c in zip(whole, parts, alone, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a[3:4], c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlations_of_neurons_that_hardly_vary_are_right(dtype):
    """Their means take the digits of sums in float32 away."""
    space = MLP
    theta, inputs = 0.5 * normal(2, space.dim).to(dtype), normal(200, 5, seed=2).to(dtype)
    for name, weights in space.unflatten(theta).items():
        if name.endswith("bias"):
            weights += 300
    stream = activation_matching.Stream(space, inputs, theta)
    found = activation_matching._correlations(stream.sums(theta, theta[:1])[0], dtype)
    mine, goal = (of_mlp(space.unflatten(x.double()), inputs.double())[0].numpy().T for x in (theta[1], theta[0]))
    expected = torch.from_numpy(np.corrcoef(goal, mine)[:6, 6:])
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-8)


def test_correlations_do_not_see_rescalings():
    space, theta, reference, inputs = problem("mlp", 8)
    scales = random_scales(space, 8, torch.Generator().manual_seed(0))
    for correlation in (True, False):
        aligner = ActivationMatching(inputs, correlation)
        pair = (aligner.align(space, x, reference) for x in (theta, space.rescale(theta, scales)))
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) == correlation


def test_networks_with_batch_norm_run_on_statistics_of_the_inputs():
    space, theta, reference, inputs = problem("cnn_batch_norm", 4)
    full = batch_statistics(space, theta, inputs), batch_statistics(space, reference[None], inputs)[0]
    aligner = ActivationMatching(inputs)
    expected = aligner.align(space, *full)
    for given in ((theta, reference), (full[0], reference), (theta, full[1])):
        assert all(torch.equal(a, b) for a, b in zip(aligner.align(space, *given), expected, strict=True))
    other = torch.cat([theta, 5 + 9 * torch.rand(4, space.full_dim - space.dim, dtype=torch.float64)], dim=1)
    assert any(not torch.equal(a, b) for a, b in zip(aligner.align(space, other, reference), expected, strict=True))


def test_inputs_come_from_the_objective_and_points_from_the_seed():
    space, theta, reference, inputs = problem("mlp", 6, points=60)
    own = ActivationMatching(inputs).align(space, theta, reference)
    lent = ActivationMatching().align(space, theta, reference, Data(inputs))
    assert all(torch.equal(a, b) for a, b in zip(own, lent, strict=True))
    found = [ActivationMatching(points=6, seed=s).align(space, theta, reference, Data(inputs)) for s in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(*found[1:], strict=True))


def test_the_network_is_left_without_hooks():
    space, theta, reference, inputs = problem("mlp", 2)
    ActivationMatching(inputs).align(space, theta, reference)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in space.template.modules())
    with pytest.raises(RuntimeError):
        ActivationMatching(inputs[:, :2]).align(space, theta, reference)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in space.template.modules())


def test_no_networks_and_no_hidden_groups():
    space, theta, reference, inputs = problem("mlp", 2)
    assert [p.shape for p in ActivationMatching(inputs).align(space, theta[:0], reference)] == [(0, 6), (0, 6)]
    linear = WeightSpace.from_module(mlp([5, 2]))
    assert ActivationMatching(inputs).align(linear, normal(3, linear.dim), normal(linear.dim)) == []


def test_settings_are_plain_data():
    aligner = ActivationMatching(correlation=True, points=7)
    assert build(aligner.description()).description() == aligner.description()
    with pytest.raises(ValueError, match="tensors have no description"):
        ActivationMatching(torch.zeros(2, 3)).description()


class Functional(nn.Module):
    """Reads its hidden neurons without calling a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return F.linear(F.relu(self.first(x)), self.second.weight, self.second.bias)


def test_refusals_say_what_is_wrong():
    space, theta, reference, inputs = problem("mlp", 2)
    with pytest.raises(ValueError, match="needs train data"):
        ActivationMatching().align(space, theta, reference)
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        ActivationMatching(points=1, correlation=True)
    with pytest.raises(ValueError, match="not finite"):
        ActivationMatching(inputs).align(space, theta * torch.nan, reference)
    attention = space_of(NETWORKS["transformer"][0](), NETWORKS["transformer"][1])
    images = normal(3, *NETWORKS["transformer"][1])
    with pytest.raises(ValueError, match="group 'hidden2' cannot be observed: no Linear or convolution reads them"):
        ActivationMatching(images).align(attention, normal(2, attention.dim), normal(attention.dim))
    functional = WeightSpace.from_module(Functional(), inputs.float())
    with pytest.raises(ValueError, match="'hidden1' cannot be observed: no layer that reads them is called"):
        ActivationMatching(inputs).align(functional, normal(2, functional.dim), normal(functional.dim))
