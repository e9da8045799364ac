"""The proof fails on spaces that are wrong in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import NETWORKS
from small_networks import INPUTS, Net, attended, attention, image, tokens
from torch import nn
from torch.nn import Conv2d, Linear, Parameter
from torch.nn import functional as F

from wsflow.weightspace import (
    GroupVector,
    Partition,
    Rescaling,
    SymmetryError,
    WeightBlock,
    WeightSpace,
    check_symmetries,
    mlp,
)


def changed(space: WeightSpace, name: str, number: int = 0, **values: Any) -> WeightSpace:
    """The space with other attributes of one piece: of all pieces of that tensor, the one of that number."""
    fields: dict[str, tuple[WeightBlock | GroupVector, ...]] = {}
    for field in ("blocks", "vectors", "buffers"):
        pieces = list(getattr(space, field))
        places = [i for i, piece in enumerate(pieces) if piece.name == name]
        if places:
            pieces[places[number]] = replace(pieces[places[number]], **values)
            fields[field] = tuple(pieces)
    assert fields
    return replace(space, **fields)


def without(space: WeightSpace, name: str) -> WeightSpace:
    """The space without a tensor, which stays what it is."""
    (gone,) = (t for t in (*space.tensors, *space.buffer_tensors) if t.name == name)

    def keep(pieces: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            replace(piece, start=piece.start - gone.numel * (piece.start > gone.start))
            for piece in pieces
            if piece.name != name
        )

    return replace(space, blocks=keep(space.blocks), vectors=keep(space.vectors), buffers=keep(space.buffers))


def parted(space: WeightSpace, group: str, partition: Partition | None) -> WeightSpace:
    """The space with another partition of a group."""
    return replace(space, groups=tuple(replace(g, partition=partition) if g.name == group else g for g in space.groups))


def scaled(space: WeightSpace, **values: Any) -> WeightSpace:
    """The space with another first rescaling."""
    return replace(space, rescalings=(replace(space.rescalings[0], **values), *space.rescalings[1:]))


def square() -> nn.Module:
    """Two hidden layers of four."""
    return mlp([5, 4, 4, 2])


def side_by_side() -> nn.Module:
    """A layer that reads two layers of three."""
    layers = {"a": Linear(5, 3), "c": Linear(5, 3), "b": Linear(6, 2)}
    return Net(lambda s, x: s.b(torch.cat([F.relu(s.a(x)), F.relu(s.c(x))], 1)), **layers)


def normalised() -> nn.Module:
    network = image(lambda s, y: F.relu(s.n(y)), n=nn.BatchNorm2d(6))
    network(torch.randn(8, 3, 8, 8))
    return network


def grouped(**settings: Any) -> nn.Module:
    return image(lambda s, y: F.relu(s.c(F.relu(y))), c=Conv2d(6, 6, 3, padding=1, **settings))


def positions() -> nn.Module:
    return tokens(lambda s, y: attended(s, y + s.p), **attention(), p=Parameter(torch.rand(1, 6, 8)))


BROKEN: dict[str, tuple[str, Callable[[], nn.Module], Callable[[WeightSpace], WeightSpace], str]] = {
    "bias_on_another_group": (
        "vector",
        square,
        lambda s: changed(s, "1.bias", group="hidden2"),
        "permuting group 'hidden[12]' changes the outputs by",
    ),
    "block_from_another_group": (
        "vector",
        square,
        lambda s: changed(s, "5.weight", source="hidden1"),
        "permuting group 'hidden[12]' changes the outputs by",
    ),
    "missing_block": ("vector", square, lambda s: without(s, "3.weight"), "permuting group 'hidden1'"),
    "missing_bias": ("vector", square, lambda s: without(s, "3.bias"), "permuting group 'hidden2'"),
    "exchanged_columns": (
        "vector",
        side_by_side,
        lambda s: changed(changed(s, "b.weight", 0, column=3), "b.weight", 1, column=0),
        "permuting group 'hidden1'",
    ),
    "no_parts_of_a_group_norm": (
        "image",
        lambda: image(lambda s, y: s.n(y), n=nn.GroupNorm(3, 6)),
        lambda s: parted(s, "hidden1", None),
        "permuting group 'hidden1'",
    ),
    "other_parts_of_a_group_norm": (
        "image",
        lambda: image(lambda s, y: s.n(y), n=nn.GroupNorm(3, 6)),
        lambda s: parted(s, "hidden1", Partition(2)),
        "permuting group 'hidden1'",
    ),
    "parts_of_grouped_convolution_apart": (
        "image",
        lambda: grouped(groups=3),
        lambda s: parted(parted(s, "hidden1", Partition(3)), "hidden2", Partition(3)),
        "permuting group 'hidden1'",
    ),
    "heads_apart": (
        "tokens",
        positions,
        lambda s: parted(parted(s, "hidden2", Partition(4)), "hidden3", Partition(4)),
        "permuting group 'hidden2'",
    ),
    "no_heads": ("tokens", positions, lambda s: parted(s, "hidden2", None), "permuting group 'hidden2'"),
    "values_taken_for_queries": (
        "tokens",
        positions,
        lambda s: changed(s, "m.in_proj_bias", 2, group="hidden2"),
        "permuting group 'hidden2' with 'hidden3' changes the outputs by",
    ),
    "embedding_read_the_other_way": (
        "tokens",
        lambda: tokens(lambda s, y: F.gelu(y + s.p), p=Parameter(torch.rand(1, 6, 8))),
        lambda s: changed(s, "p", leading=False),
        "permuting group 'hidden1'",
    ),
    "missing_statistics": ("image", normalised, lambda s: without(s, "n.running_mean"), "permuting group 'hidden1'"),
    "eps_forgotten": (
        "image",
        normalised,
        lambda s: changed(s, "n.running_var", eps=0.0),
        "rescaling 'a.weight' of group 'hidden1' changes the outputs by",
    ),
    "statistics_after_the_norm": (
        "image",
        normalised,
        lambda s: changed(s, "n.running_mean", scale="n.weight"),
        "rescaling 'a.weight' of group 'hidden1'",
    ),
    "one_scale_through_batch_norm": (
        "image",
        normalised,
        lambda s: changed(s, "b.weight", source_scale="a.weight"),
        "rescaling 'a.weight' of group 'hidden1'",
    ),
    "keys_multiplied": (
        "tokens",
        positions,
        lambda s: changed(s, "m.in_proj_weight", 1, inverse=False),
        "rescaling 'm.in_proj_weight' of group 'hidden2'",
    ),
    "kernel_not_divided": (
        "image",
        lambda: grouped(groups=6),
        lambda s: changed(s, "c.weight", source_scale=None),
        "rescaling 'a.weight' of group 'hidden1'",
    ),
    "bias_not_scaled": (
        "vector",
        square,
        lambda s: changed(s, "1.bias", scale=None),
        "rescaling '1.weight' of group 'hidden1'",
    ),
    "reader_not_scaled": (
        "vector",
        square,
        lambda s: changed(s, "3.weight", source_scale=None),
        "rescaling '1.weight' of group 'hidden1'",
    ),
    "signs_for_relu": ("vector", square, lambda s: scaled(s, scaling="sign"), "rescaling '1.weight'"),
    "factors_for_tanh": (
        "vector",
        lambda: mlp([5, 4, 2], "tanh"),
        lambda s: scaled(s, scaling="positive"),
        "rescaling '1.weight'",
    ),
    "factors_for_gelu": (
        "vector",
        lambda: mlp([5, 4, 2], "gelu"),
        lambda s: replace(
            changed(
                changed(changed(s, "1.weight", target_scale="x"), "1.bias", scale="x"), "3.weight", source_scale="x"
            ),
            rescalings=(Rescaling("x", "hidden1", "positive", 4),),
        ),
        "rescaling 'x' of group 'hidden1'",
    ),
    "factors_of_a_normed_layer": (
        "image",
        lambda: image(lambda s, y: s.n(y), n=nn.GroupNorm(3, 6, eps=0.0)),
        lambda s: scaled(s, size=6),
        "rescaling 'a.weight'",
    ),
}


@pytest.mark.parametrize(("given", "build", "broken", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_space_that_is_wrong_in_one_place_fails(
    given: str, build: Callable[[], nn.Module], broken: Callable[[WeightSpace], WeightSpace], message: str
) -> None:
    network = build()
    space = WeightSpace.from_module(network, INPUTS[given])
    with pytest.raises(SymmetryError, match=message):
        check_symmetries(broken(space), network, INPUTS[given])


def test_layers_of_a_stream_taken_for_two_groups_fail() -> None:
    network = image(lambda s, y: F.relu(y) + s.c(F.relu(y)), c=Conv2d(6, 6, 1))
    space = WeightSpace.from_module(network, INPUTS["image"])
    own = replace(space.hidden[0], name="own")
    wider = replace(space, groups=(*space.groups[:2], own, space.groups[2]))
    apart = changed(changed(wider, "c.weight", target="own"), "c.bias", group="own")
    with pytest.raises(SymmetryError, match="permuting group 'hidden1'"):
        check_symmetries(apart, network, INPUTS["image"])


@pytest.mark.parametrize("name", NETWORKS)
def test_correct_spaces_pass_without_an_example(name: str) -> None:
    build, shape = NETWORKS[name]
    network = build()
    space = WeightSpace.from_module(network, torch.randn(2, *shape), check=False)
    check_symmetries(space, network, trials=3)


def test_groups_of_two_are_moved_in_every_trial() -> None:
    network = mlp([3, 2, 2], "tanh")
    space = WeightSpace.from_module(network)
    for seed in range(10):
        with pytest.raises(SymmetryError, match="permuting group 'hidden1'"):
            check_symmetries(without(space, "1.bias"), network, trials=1, seed=seed)
        with pytest.raises(SymmetryError, match=r"rescaling '1\.weight'"):
            check_symmetries(changed(space, "3.weight", source_scale=None), network, trials=1, seed=seed)


def test_new_networks_are_checked_where_their_constants_hide_mistakes() -> None:
    """Biases of 0, norm weights of 1, and a last layer of 0."""
    network = image(lambda s, y: F.relu(s.n(y)), n=nn.BatchNorm2d(6))
    for layer in (network.a, network.b):
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(network.b.weight)
    space = WeightSpace.from_module(network, INPUTS["image"])
    other = replace(space, groups=(*space.groups, replace(space.groups[1], name="other", role="input")))
    for name in ("a.bias", "n.weight", "n.bias", "n.running_mean", "n.running_var"):
        with pytest.raises(SymmetryError, match="permuting group 'hidden1'"):
            check_symmetries(changed(other, name, group="other"), network)


def test_a_wrong_symmetry_is_found_when_the_space_is_built() -> None:
    network = mlp([5, 4, 2])
    network[3].register_forward_pre_hook(lambda layer, inputs: inputs[0] * torch.arange(4))
    with pytest.raises(SymmetryError, match="permuting group 'hidden1'"):
        WeightSpace.from_module(network)
    assert WeightSpace.from_module(network, check=False).dim == 34


def test_outputs_that_are_not_finite_are_no_proof() -> None:
    network = mlp([5, 4, 2])
    space = WeightSpace.from_module(network)
    nn.init.constant_(network[3].bias, torch.inf)
    with pytest.raises(SymmetryError, match="outputs are not finite"):
        check_symmetries(space, network)


def test_few_neurons_are_dead_on_all_inputs() -> None:
    """Of four ReLU neurons, most are dead on a single example."""
    network = square()
    space = WeightSpace.from_module(network, torch.ones(1, 5))
    for seed in range(20):
        with pytest.raises(SymmetryError, match="permuting group"):
            check_symmetries(changed(space, "5.weight", source="hidden1"), network, torch.ones(1, 5), seed=seed)


def test_the_network_and_the_random_state_stay_as_they_are() -> None:
    network = normalised()
    space = WeightSpace.from_module(network, INPUTS["image"])
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    check_symmetries(space, network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_space_built_by_hand_needs_an_example() -> None:
    space = replace(WeightSpace.from_module(mlp([5, 4, 2])), input_shape=None)
    with pytest.raises(ValueError, match="check_symmetries needs an example_input"):
        check_symmetries(space, mlp([5, 4, 2]))
