from itertools import permutations, product

import pytest
import torch

from wsflow.alignment import Aligner, WeightMatching, similarity, weight_matching
from wsflow.weightspace import GroupVector, NeuronGroup, WeightBlock, WeightSpace, mlp
from wsflow.weightspace.networks import cnn
from wsflow.weightspace.symmetry import invert, random_permutations

SMALL = WeightSpace.from_module(mlp([4, 3, 3, 2]))
THESIS = WeightSpace.from_module(mlp([30, 16, 16, 2]))
DEEP = WeightSpace.from_module(mlp([6, 8, 8, 8, 8, 3]))


def branched():
    """Two branches, one with a kernel, that meet in one group; a norm weight; several vectors on one group."""
    groups = (
        NeuronGroup("input", 3, "input"),
        NeuronGroup("a", 6, "hidden", "relu"),
        NeuronGroup("b", 7, "hidden", "relu"),
        NeuronGroup("output", 2, "output", "softmax"),
    )
    sizes = {group.name: group.size for group in groups}
    blocks, vectors, start = [], [], 0
    for name, source, target, kernel in [
        ("conv", "input", "a", (2, 2)),
        ("skip", "input", "b", ()),
        ("main", "a", "b", (3,)),
        ("head", "b", "output", ()),
    ]:
        shape = (sizes[target], sizes[source], *kernel)
        blocks.append(WeightBlock(f"{name}.weight", source, target, *shape[:2], kernel, shape, start))
        start += blocks[-1].numel
        for kind in ("bias", "norm_weight") if name == "main" else ("bias",):
            vectors.append(GroupVector(f"{name}.{kind}", target, kind, sizes[target], start))
            start += sizes[target]
    return WeightSpace(groups, tuple(blocks), tuple(vectors))


def draw(space, n, seed=0):
    return torch.randn(n, space.dim, generator=torch.Generator().manual_seed(seed))


def align(space, theta, reference, **settings):
    return space.permute(theta, WeightMatching(**settings).align(space, theta, reference))


@pytest.mark.parametrize("space", [pytest.param(THESIS, id="30-16-16-2"), pytest.param(branched(), id="branched")])
def test_planted_permutations_are_recovered_for_twenty_seeds(space):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        reference = torch.randn(space.dim, generator=generator)
        noise = 0.1 * torch.randn(5, space.dim, generator=generator)
        planted = random_permutations(space, 5, generator)
        found = WeightMatching().align(space, space.permute(reference + noise, planted), reference)
        for perm, inverse in zip(found, invert(planted), strict=True):
            assert torch.equal(perm, inverse)


def test_each_network_may_have_its_own_reference():
    reference = draw(THESIS, 8)
    planted = random_permutations(THESIS, 8, torch.Generator().manual_seed(1))
    theta = THESIS.permute(reference, planted)
    assert torch.equal(align(THESIS, theta, reference), reference)
    shared = [WeightMatching().align(THESIS, theta, r) for r in (reference[0], reference[:1].expand(8, -1))]
    assert all(torch.equal(a, b) for a, b in zip(*shared, strict=True))


def slow_similarity(space, group, theta, reference, perm):
    """What permuting one group of one network would make of the inner product."""
    perms = [torch.tensor(perm) if g.name == group.name else torch.arange(g.size) for g in space.hidden]
    return float(similarity(space, space.permute(theta[None], perms), reference))


def test_no_permutation_of_a_single_group_is_better():
    reference, theta = draw(SMALL, 1)[0], draw(SMALL, 10, seed=1)
    aligned = align(SMALL, theta, reference)
    assert (similarity(SMALL, aligned, reference) >= similarity(SMALL, theta, reference)).all()
    for network in aligned:
        now = float(similarity(SMALL, network[None], reference))
        for group in SMALL.hidden:
            best = max(slow_similarity(SMALL, group, network, reference, p) for p in permutations(range(3)))
            assert best <= now + 1e-9


def test_restarts_reach_the_best_of_all_permutations():
    space = WeightSpace.from_module(mlp([1, 3, 3, 3, 1], bias=False))
    reference, theta = draw(space, 1)[0], draw(space, 30, seed=1)
    every = [[torch.tensor(p) for p in perms] for perms in product(permutations(range(3)), repeat=3)]
    best = torch.stack([similarity(space, space.permute(theta, perms), reference) for perms in every]).amax(0)
    once = similarity(space, align(space, theta, reference), reference)
    often = similarity(space, align(space, theta, reference, restarts=40), reference)
    torch.testing.assert_close(often, best)
    assert (once < best - 1e-6).any()
    assert (similarity(space, align(space, theta, reference, restarts=1), reference) >= once).all()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_result_does_not_depend_on_the_batch(shared, monkeypatch):
    theta = draw(THESIS, 7)
    reference = draw(THESIS, 7, seed=1)
    reference = reference[0] if shared else reference
    whole = WeightMatching(restarts=1).align(THESIS, theta, reference)
    monkeypatch.setattr(weight_matching, "ELEMENTS", 3 * THESIS.dim)
    for a, b in zip(whole, WeightMatching(restarts=1).align(THESIS, theta, reference), strict=True):
        assert torch.equal(a, b)
    alone = WeightMatching(restarts=1).align(THESIS, theta[4:5], reference if shared else reference[4:5])
    for a, b in zip(whole, alone, strict=True):
        assert torch.equal(a[4:5], b)


def test_the_seed_chooses_the_order_of_groups():
    theta, reference = draw(DEEP, 20), draw(DEEP, 1, seed=1)[0]
    first, again = align(DEEP, theta, reference, seed=3), align(DEEP, theta, reference, seed=3)
    assert torch.equal(first, again)
    assert any(not torch.equal(first, align(DEEP, theta, reference, seed=seed)) for seed in range(3))


def test_the_result_does_not_depend_on_the_order_of_neurons():
    theta, reference = draw(DEEP, 20), draw(DEEP, 1, seed=1)[0]
    shuffled = DEEP.permute(theta, random_permutations(DEEP, 20, torch.Generator().manual_seed(2)))
    assert torch.equal(align(DEEP, theta, reference), align(DEEP, shuffled, reference))


def test_descents_are_counted():
    theta, reference = draw(DEEP, 40), draw(DEEP, 1, seed=1)[0]
    theta[0] = reference
    once, often = (WeightMatching(restarts=n).match(DEEP, theta, reference) for n in (0, 20))
    assert once.descents.tolist() == [0] + 39 * [1]
    assert 1 < int(often.descents.max()) <= 21
    assert torch.equal(often.descents > 1, often.similarity > once.similarity + 1e-9)
    found = [similarity(DEEP, DEEP.permute(theta, m.perms), reference) for m in (once, often)]
    torch.testing.assert_close(torch.stack(found), torch.stack([once.similarity, often.similarity]))
    again = WeightMatching(restarts=20).match(DEEP, DEEP.permute(theta, often.perms), reference)
    assert (again.similarity >= often.similarity - 1e-9).all()


def test_identical_neurons_do_not_change_places():
    theta, reference = draw(THESIS, 20), draw(THESIS, 1, seed=1)[0]
    profile = torch.cat([THESIS.incoming("hidden1"), THESIS.attached("hidden1"), THESIS.outgoing("hidden1")], dim=1)
    theta[:, profile[8:]] = theta[:, profile[:8]]
    for perm in WeightMatching(iterations=1).align(THESIS, align(THESIS, theta, reference), reference):
        assert torch.equal(perm, torch.arange(16).expand(20, 16))


def test_nothing_to_permute():
    linear = WeightSpace.from_module(mlp([4, 2]))
    assert WeightMatching().align(linear, draw(linear, 3), draw(linear, 1)[0]) == []
    empty = WeightMatching().align(SMALL, draw(SMALL, 0), draw(SMALL, 1)[0])
    assert [p.shape for p in empty] == [(0, 3), (0, 3)]


def test_one_sweep_is_not_enough_for_a_hard_case():
    theta, reference = draw(THESIS, 20), draw(THESIS, 1, seed=1)[0]
    one, many = (similarity(THESIS, align(THESIS, theta, reference, iterations=n), reference) for n in (1, 50))
    assert (many >= one).all()
    assert (many > one).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    theta, reference = draw(SMALL, 4), draw(SMALL, 1, seed=1)[0]
    theta[2, 5] = value
    with pytest.raises(ValueError, match=r"network 2 has weights that are not finite \(1 in all\)"):
        WeightMatching().align(SMALL, theta, reference)
    with pytest.raises(ValueError, match="reference 0 has weights that are not finite"):
        WeightMatching().align(SMALL, theta[:2], theta[2])


def test_shapes_that_do_not_fit_are_refused():
    theta = draw(SMALL, 4)
    with pytest.raises(ValueError, match="D = "):
        WeightMatching().align(SMALL, torch.zeros(2, 5), theta[0])
    with pytest.raises(ValueError, match="D = "):
        WeightMatching().align(SMALL, theta, torch.zeros(5))
    with pytest.raises(ValueError, match="or one per network"):
        WeightMatching().align(SMALL, theta, theta[:3])
    with pytest.raises(ValueError, match="or one per network"):
        WeightMatching().align(SMALL, theta[0], theta[0])


def test_running_statistics_do_not_count():
    network = cnn(channels=(6, 5), batch_norm=True)
    space = WeightSpace.from_module(network, torch.randn(2, 1, 28, 28))
    reference = torch.randn(space.full_dim, generator=torch.Generator().manual_seed(0))
    planted = random_permutations(space, 5, torch.Generator().manual_seed(1))
    theta = space.permute(reference.expand(5, -1), planted)
    assert torch.equal(align(space, theta, reference), reference.expand(5, -1))
    found = WeightMatching().align(space, theta, reference)
    theta[:, space.dim :] = torch.randn(5, space.full_dim - space.dim)
    for short in (found, WeightMatching().align(space, theta[:, : space.dim], reference)):
        for a, b in zip(WeightMatching().align(space, theta, reference), short, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"restarts": -1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        WeightMatching(**settings)


class Plugin(Aligner):
    """An aligner of a user's own, which does nothing."""

    def __init__(self, strength: float = 0.5) -> None:
        self.strength = strength

    def align(self, space, theta, reference, objective=None):
        return [torch.arange(group.size).expand(len(theta), -1) for group in space.hidden]


def test_description_is_plain_and_complete():
    assert WeightMatching(iterations=7, seed=2).description() == {
        "class_path": "wsflow.alignment.weight_matching.WeightMatching",
        "init_args": {"iterations": 7, "restarts": 0, "seed": 2},
    }
    assert Plugin(0.25).description()["init_args"] == {"strength": 0.25}
    assert Plugin().description()["class_path"].endswith(".Plugin")
