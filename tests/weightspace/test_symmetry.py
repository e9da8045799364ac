"""Permutations and rescalings of hidden neurons keep the function of every network."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from wsflow.weightspace import NeuronGroup, Partition, WeightBlock, WeightSpace, mlp
from wsflow.weightspace.symmetry import compose, invert, random_permutations, random_scales


def permute_slowly(space: WeightSpace, theta: Tensor, perms: list[Tensor]) -> Tensor:
    """One network, entry by entry: new neuron i is old neuron p(i)."""
    named, result = space.unflatten(theta), space.unflatten(theta.clone())
    move = {g.name: p.tolist() for g, p in zip(space.hidden, perms, strict=True)}
    for block in space.blocks:
        for i, j in itertools.product(range(block.out), range(block.in_)):
            old = move.get(block.target, range(block.out))[i], move.get(block.source, range(block.in_))[j]
            result[block.name][i, j] = named[block.name][old]
    for vector in space.vectors:
        for i in range(vector.size):
            result[vector.name][i] = named[vector.name][move.get(vector.group, range(vector.size))[i]]
    return space.flatten(result)


def rescale_slowly(space: WeightSpace, theta: Tensor, scales: list[Tensor]) -> Tensor:
    """One network, neuron by neuron."""
    result = theta.clone()
    for rescaling, factors in zip(space.rescalings, scales, strict=True):
        for neuron, factor in enumerate(factors):
            result[space.incoming(rescaling.group)[neuron]] *= factor
            result[space.attached(rescaling.group)[neuron]] *= factor
            result[space.outgoing(rescaling.group)[neuron]] /= factor
    return result


def test_permuting_keeps_the_function(
    networks_space: WeightSpace, weights: Tensor, inputs: Tensor, generator: torch.Generator
) -> None:
    perms = random_permutations(networks_space, len(weights), generator)
    moved = networks_space.permute(weights, perms)
    torch.testing.assert_close(
        networks_space.forward(moved, inputs), networks_space.forward(weights, inputs), rtol=1e-12, atol=1e-12
    )
    if any(group.size > 1 for group in networks_space.hidden):
        assert not torch.equal(moved, weights)


def test_rescaling_keeps_the_function(
    networks_space: WeightSpace, weights: Tensor, inputs: Tensor, generator: torch.Generator
) -> None:
    scales = random_scales(networks_space, len(weights), generator)
    moved = networks_space.rescale(weights, scales)
    torch.testing.assert_close(
        networks_space.forward(moved, inputs), networks_space.forward(weights, inputs), rtol=1e-10, atol=1e-10
    )
    if networks_space.rescalings:
        assert not torch.equal(moved, weights)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "gelu", "silu", "sigmoid"])
def test_random_scales_are_those_the_activation_allows(activation: str, generator: torch.Generator) -> None:
    scales = random_scales(WeightSpace.from_module(mlp([2, 50, 2], activation)), 4, generator)
    if activation in ("gelu", "silu", "sigmoid"):
        assert scales == []
        return
    assert [s.shape for s in scales] == [(4, 50)]
    if activation == "tanh":
        assert scales[0].unique().tolist() == [-1.0, 1.0]
    else:
        assert scales[0].min() > 0
        assert scales[0].std() > 0.5


def test_a_wrong_sign_changes_the_function(space: WeightSpace, theta: Tensor, inputs: Tensor) -> None:
    """The tests above can fail: a ReLU network does not allow sign flips."""
    flipped = space.rescale(theta, [-torch.ones(4), torch.ones(3)])
    assert (space.forward(flipped, inputs) - space.forward(theta, inputs)).abs().max() > 0.1


def test_permute_equals_the_slow_reference(
    networks_space: WeightSpace, weights: Tensor, generator: torch.Generator
) -> None:
    perms = random_permutations(networks_space, len(weights), generator)
    moved = networks_space.permute(weights, perms)
    for i, one in enumerate(weights):
        assert torch.equal(moved[i], permute_slowly(networks_space, one, [p[i] for p in perms]))


def test_rescale_equals_the_slow_reference(
    networks_space: WeightSpace, weights: Tensor, generator: torch.Generator
) -> None:
    scales = [s.double() for s in random_scales(networks_space, len(weights), generator)]
    moved = networks_space.rescale(weights, scales)
    for i, one in enumerate(weights):
        torch.testing.assert_close(moved[i], rescale_slowly(networks_space, one, [s[i] for s in scales]))


def test_one_permutation_serves_all_networks(space: WeightSpace, theta: Tensor) -> None:
    perms = [torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])]
    repeated = [p.repeat(len(theta), 1) for p in perms]
    assert torch.equal(space.permute(theta, perms), space.permute(theta, repeated))
    scales = [torch.tensor([2.0, 0.5, 1.0, 3.0]), torch.tensor([1.0, 4.0, 0.1])]
    assert torch.equal(space.rescale(theta, scales), space.rescale(theta, [s.repeat(len(theta), 1) for s in scales]))


def test_the_convention_is_new_i_is_old_p_of_i(space: WeightSpace, theta: Tensor) -> None:
    moved = space.unflatten(space.permute(theta, [torch.tensor([2, 0, 3, 1]), torch.arange(3)]))
    named = space.unflatten(theta)
    assert torch.equal(moved["1.weight"][:, 0], named["1.weight"][:, 2])
    assert torch.equal(moved["1.bias"][:, 0], named["1.bias"][:, 2])
    assert torch.equal(moved["3.weight"][:, :, 0], named["3.weight"][:, :, 2])
    assert torch.equal(moved["5.weight"], named["5.weight"])


@given(seed=st.integers(0, 2**32))
def test_permutations_form_a_group(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    space = WeightSpace.from_module(mlp([2, 5, 4, 2]))
    theta = torch.randn(3, space.dim, generator=generator)
    p, q = random_permutations(space, 3, generator), random_permutations(space, 3, generator)
    assert torch.equal(space.permute(space.permute(theta, p), q), space.permute(theta, compose(p, q)))
    assert torch.equal(space.permute(space.permute(theta, p), invert(p)), theta)
    assert torch.equal(space.permute(space.permute(theta, invert(p)), p), theta)


@pytest.mark.parametrize("call", ["permute", "rescale"])
@pytest.mark.parametrize(
    "sizes", [[4], [4, 3, 2], [3, 4], [4, 4]], ids=["too_few", "too_many", "swapped", "wrong_size"]
)
def test_what_does_not_fit_is_refused(space: WeightSpace, theta: Tensor, call: str, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not fit (hidden groups|rescalings) of sizes \[4, 3\]"):
        getattr(space, call)(theta, [torch.arange(size) for size in sizes])


def test_random_permutations_are_permutations_and_uniform(generator: torch.Generator) -> None:
    (perms,) = random_permutations(WeightSpace.from_module(mlp([1, 3, 1])), 6000, generator)
    assert torch.equal(perms.sort(dim=1).values, torch.arange(3).expand(6000, 3))
    counts = (perms @ torch.tensor([9, 3, 1])).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000).abs() < 150).all()  # five standard deviations of a binomial count


def test_random_permutations_follow_the_generator(space: WeightSpace) -> None:
    first, again = (random_permutations(space, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    other = random_permutations(space, 5, torch.Generator().manual_seed(4))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


class TestPartition:
    """Six neurons in three parts of two."""

    @staticmethod
    def draw(partition: Partition, generator: torch.Generator, n: int = 4000) -> set[tuple[int, ...]]:
        groups = (
            NeuronGroup("input", 1, "input"),
            NeuronGroup("hidden", 6, "hidden", "relu", partition),
            NeuronGroup("output", 1, "output"),
        )
        blocks = (
            WeightBlock("a", "input", "hidden", 6, 1, (), (6, 1), 0),
            WeightBlock("b", "hidden", "output", 1, 6, (), (1, 6), 6),
        )
        (perms,) = random_permutations(WeightSpace(groups, blocks, ()), n, generator)
        assert perms.shape == (n, 6)
        return {tuple(p) for p in perms.tolist()}

    @pytest.mark.parametrize("within", [True, False], ids=["within", "not_within"])
    @pytest.mark.parametrize("across", [True, False], ids=["across", "not_across"])
    def test_exactly_the_structured_permutations_are_drawn(
        self, across: bool, within: bool, generator: torch.Generator
    ) -> None:
        parts = [(0, 1), (2, 3), (4, 5)]
        orders = list(itertools.permutations(parts)) if across else [tuple(parts)]
        expected = set()
        for order in orders:
            for inner in itertools.product(*(itertools.permutations(part) if within else [part] for part in order)):
                expected.add(tuple(itertools.chain(*inner)))
        assert self.draw(Partition(3, across, within), generator) == expected

    def test_one_part_is_no_restriction(self, generator: torch.Generator) -> None:
        assert len(self.draw(Partition(1), generator, 20000)) == 720
