"""Weight matching on residual, convolutional, grouped, normalised and attending networks."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from architectures import NETWORKS, resnet20, space_of
from scipy.optimize import linear_sum_assignment
from torchvision.models import resnet18

from wsflow.alignment import WeightMatching, check_same_functions, gains, similarity
from wsflow.alignment.gains import Networks, best_step
from wsflow.alignment.moves import apply, find_moves
from wsflow.weightspace import mlp
from wsflow.weightspace.networks import cnn
from wsflow.weightspace.symmetry import check_permutations, invert, random_permutations, units

SPACES = {name: space_of(network(), shape) for name, (network, shape) in NETWORKS.items()}
PLAIN = ("mlp", "cnn", "cnn_batch_norm", "residual", "concatenated", "depthwise", "resnet")
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def draw(space, n, seed=0):
    return torch.randn(n, space.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_space
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_planted_permutations_are_recovered(space, noise):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        reference = torch.randn(space.dim, generator=generator)
        planted = random_permutations(space, 4, generator)
        theta = space.permute(reference + noise * torch.randn(4, space.dim, generator=generator), planted)
        found = WeightMatching().match(space, theta, reference)
        assert (found.descents <= 1).all()
        for perm, inverse in zip(found.perms, invert(planted), strict=True):
            assert torch.equal(perm, inverse)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention under vmap
@each_space
def test_alignment_keeps_functions_and_never_takes_a_network_away(space):
    theta, reference = draw(space, 12), draw(space, 12, seed=1)
    theta = torch.cat([theta, space.permute(theta, WeightMatching().align(space, theta, reference))])
    reference = reference.repeat(2, 1)
    for restarts in (0, 2):
        found = WeightMatching(restarts=restarts).match(space, theta, reference)
        check_permutations(space, found.perms)
        moved = space.permute(theta, found.perms)
        torch.testing.assert_close(found.similarity, similarity(space, moved, reference))
        assert (found.similarity >= similarity(space, theta, reference) - 1e-9).all()
        check_same_functions(space, theta, moved)


@each_space
def test_a_network_is_aligned_as_it_is_alone(space, monkeypatch):
    theta, reference = draw(space, 5), draw(space, 1, seed=1)[0]
    whole = WeightMatching(restarts=1).align(space, theta, reference)
    monkeypatch.setattr(gains, "ELEMENTS", 50)
    for i in range(5):
        alone = WeightMatching(restarts=1).align(space, theta[i : i + 1], reference.expand(1, -1))
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(whole, alone, strict=True))


def allowed(groups):
    """All permutations of a unit of groups: (N, size) for each of them."""
    partition = groups[0].partition
    parts, across = (partition.parts, partition.across) if partition else (1, False)
    places = list(permutations(range(parts))) if across else [tuple(range(parts))]
    inner = []
    for group in groups:
        n = group.size // parts
        orders = list(permutations(range(n))) if partition is None or partition.within else [tuple(range(n))]
        inner.append([(n, chosen) for chosen in product(orders, repeat=parts)])
    found = [
        [[q * n + i for q, order in zip(place, orders, strict=True) for i in order] for n, orders in chosen]
        for place in places
        for chosen in product(*inner)
    ]
    return [torch.tensor(perms) for perms in zip(*found, strict=True)]


@pytest.mark.parametrize("name", [name for name in SPACES if name not in ("residual_own", "grouped_residual")])
def test_a_move_is_the_best_of_all_that_are_allowed(name):
    space = SPACES[name]
    theta, reference = draw(space, 3), draw(space, 3, seed=1)
    for members, found in zip(units(space), find_moves(space), strict=True):
        if found[0].inside:
            continue
        assert len(found) == 1
        every = allowed([space.hidden[i] for i in members])
        step, better = best_step(found[0], Networks(theta, reference, torch.full((len(theta),), 1e-9)), names(space))
        moved = theta.clone()
        apply(found[0], moved, None, step)
        perms = [torch.arange(group.size).expand(len(every[0]), -1) for group in space.hidden]
        for i, p in zip(members, every, strict=True):
            perms[i] = p
        for row in range(3):
            best = similarity(space, space.permute(theta[row].expand(len(every[0]), -1), perms), reference[row]).max()
            assert float(similarity(space, moved[row], reference[row])) == pytest.approx(float(best))
        assert set(step) == {space.hidden[i].name for i in members}
        assert better.all()


def names(space):
    return [group.name for group in space.groups]


@pytest.mark.parametrize("name", ["residual_own", "grouped", "grouped_residual"])
def test_a_move_with_a_block_inside_says_whether_it_raises_the_inner_product(name):
    space = SPACES[name]
    theta, reference = draw(space, 200), draw(space, 1, seed=1)[0]
    inexact = [move for unit in find_moves(space) for move in unit if move.inside]
    assert inexact
    verdicts = []
    for move in inexact:
        step, better = best_step(move, Networks(theta, reference, torch.full((len(theta),), 1e-9)), names(space))
        moved = theta.clone()
        apply(move, moved, None, step)
        rise = similarity(space, moved, reference) - similarity(space, theta, reference)
        assert torch.equal(better, rise > 1e-9)
        verdicts.append(better)
    assert not torch.stack(verdicts).all()


def slow_match(space, theta, reference, seed):
    """The same search, one network, one neuron pair and one number at a time."""
    index = {block: block.view(torch.arange(space.dim)) for block in space.blocks}
    first = torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(int(first))
    perms = [list(range(group.size)) for group in space.hidden]
    theta = theta.clone()

    def visit(g, known):
        group, pairs = space.hidden[g], []
        for block, places in index.items():
            if block.target == group.name and block.source in known:
                pairs += [[places[i].flatten() for i in range(group.size)]]
            if block.source == group.name and block.target in known:
                pairs += [[places[:, i].flatten() for i in range(group.size)]]
        for vector in space.vectors:
            if vector.group == group.name:
                pairs += [list(vector.view(torch.arange(space.dim)))]
        gain = np.array(
            [
                [sum(float((reference[p[i]] * theta[p[j]]).sum()) for p in pairs) for j in range(group.size)]
                for i in range(group.size)
            ]
        )
        order = linear_sum_assignment(gain, maximize=True)[1]
        if gain[range(group.size), order].sum() - gain.trace() < 1e-9:
            return False
        step = [torch.tensor(order) if k == g else torch.arange(len(p)) for k, p in enumerate(perms)]
        theta[:] = space.permute(theta[None], step)[0]
        perms[g] = [perms[g][i] for i in order]
        return True

    known = {group.name for group in space.groups if group.role != "hidden"}
    for g, group in enumerate(space.hidden):
        visit(g, known)
        known.add(group.name)
    changed = True
    while changed:
        changed = max([visit(g, known) for g in torch.randperm(len(perms), generator=generator).tolist()])
    return perms


@pytest.mark.parametrize("name", PLAIN)
def test_batched_matching_equals_a_slow_loop(name):
    space = SPACES[name]
    theta, reference = draw(space, 3), draw(space, 1, seed=1)[0]
    found = WeightMatching(seed=5).match(space, theta, reference)
    for i in range(3):
        if found.similarity[i] > similarity(space, theta[i], reference):
            assert [p[i].tolist() for p in found.perms] == slow_match(space, theta[i], reference, 5)


def trained(network, shape, steps=20):
    """A network after a few steps of Adam on noise."""
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-2)
    inputs = torch.randn(32, *shape)
    labels = torch.arange(32) % 2
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network.eval()


def recovered(network, shape, seeds=20):
    """In how many seeds a permuted copy comes back exactly, in all groups, by the first descent."""
    space = space_of(network, shape)
    reference = space.flatten(network.state_dict())
    count = 0
    for seed in range(seeds):
        planted = random_permutations(space, 1, torch.Generator().manual_seed(seed))
        found = WeightMatching().match(space, space.permute(reference[None], planted), reference)
        same = [torch.equal(a, b) for a, b in zip(found.perms, invert(planted), strict=True)]
        count += all(same) and bool((found.descents == 1).all())
    return count


@pytest.mark.parametrize("state", ["initial", "trained"])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        pytest.param(lambda: mlp([30, 16, 16, 2]), (30,), id="30-16-16-2"),
        pytest.param(lambda: mlp([784, 10, 10]), (784,), id="784-10-10"),
        pytest.param(lambda: mlp([784, 32, 32, 10]), (784,), id="784-32-32-10"),
        pytest.param(cnn, (1, 28, 28), id="cnn"),
        pytest.param(lambda: cnn(batch_norm=True), (1, 28, 28), id="cnn-batch-norm"),
        pytest.param(resnet20, (3, 8, 8), id="resnet20"),
    ],
)
def test_a_permuted_network_is_brought_back(network, shape, state):
    made = network() if state == "initial" else trained(network(), shape)
    assert recovered(made, shape) >= 19


@pytest.mark.slow
def test_a_permuted_resnet18_is_brought_back():
    assert recovered(resnet18(), (3, 64, 64)) >= 19


def test_groups_that_share_parts_must_agree():
    space = SPACES["grouped"]
    wrong = replace(space.groups[1], partition=replace(space.groups[1].partition, across=False))
    bad = replace(space, groups=(space.groups[0], wrong, *space.groups[2:]))
    with pytest.raises(ValueError, match=r"groups \['hidden1', 'hidden2'\] share a permutation of parts"):
        WeightMatching().align(bad, draw(space, 1), draw(space, 1)[0])
