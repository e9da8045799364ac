"""The Sinkhorn operator, soft permutations of weights, and their rounding."""

from itertools import permutations, product

import pytest
import torch
from architectures import NETWORKS, space_of
from torch.autograd import gradcheck

from wsflow.alignment.relaxation import best_permutations, join, leaf_shapes
from wsflow.alignment.soft import log_sinkhorn, sinkhorn, soft_permute
from wsflow.weightspace.symmetry import check_permutations, random_permutations

SPACES = {name: space_of(network(), shape) for name, (network, shape) in NETWORKS.items()}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices_of(perms):
    """Permutation matrices with ones at (i, p(i))."""
    return [torch.nn.functional.one_hot(p, p.shape[-1]).double() for p in perms]


def random_matrices(space, n, seed=0):
    """Soft permutations with the structure of the space."""
    leaves = {
        key: log_sinkhorn(2 * normal(n, *shape, seed=seed + i), 200).exp()
        for i, (key, shape) in enumerate(leaf_shapes(space).items())
    }
    return leaves, join(space, leaves)


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_the_operator_is_doubly_stochastic_and_maximises_its_objective(tau):
    x = normal(3, 5, 5)
    p = sinkhorn(x, tau, sweeps=500)
    torch.testing.assert_close(p.sum(1), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(p.sum(2), torch.ones(3, 5, dtype=torch.float64))

    def objective(p):
        return (p * x - tau * torch.xlogy(p, p)).sum((1, 2))

    for seed in range(10):
        other = sinkhorn(normal(3, 5, 5, seed=seed + 1), 1.0, sweeps=500)
        for share in (1e-3, 0.5, 1.0):
            assert (objective(torch.lerp(p, other, share)) < objective(p)).all()


def test_a_small_tau_gives_the_best_assignment():
    x = normal(6, 4, 4)
    hard = sinkhorn(x, 0.003, sweeps=5000).round()
    best = [max(permutations(range(4)), key=lambda p: float(m[range(4), p].sum())) for m in x]
    assert torch.equal(hard, matrices_of([torch.tensor(best)])[0])


def test_the_operator_is_finite_where_logits_are_large():
    x = 1e4 * normal(2, 6, 6).float()
    x.requires_grad_()
    p = sinkhorn(x, 1.0, sweeps=50)
    (grad,) = torch.autograd.grad(p.square().sum(), x)
    assert p.isfinite().all()
    assert grad.isfinite().all()


def test_the_implicit_gradient_of_the_operator():
    x = normal(2, 2, 4, 4).requires_grad_()
    assert gradcheck(lambda x: sinkhorn(x, 0.7, sweeps=100), x)


def test_a_gradient_does_not_change_when_numbers_are_added_to_rows_and_columns():
    x, weights = normal(4, 4), normal(4, 4, seed=1)
    shifted = x + 3 * normal(4, 1, seed=2) - normal(1, 4, seed=3)
    grads = []
    for start in (x, shifted):
        leaf = start.clone().requires_grad_()
        grads += torch.autograd.grad((weights * sinkhorn(leaf, 1.0, 300)).sum(), leaf)
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(grads[0].sum(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(grads[0].sum(1), torch.zeros(4, dtype=torch.float64))


@each_space
def test_hard_matrices_permute_as_permutations_do(space):
    theta = normal(3, space.dim)
    perms = random_permutations(space, 3, torch.Generator().manual_seed(1))
    assert torch.equal(soft_permute(space, theta, matrices_of(perms)), space.permute(theta, perms))


@each_space
def test_gradients_of_soft_permutations(space):
    theta = normal(2, space.dim).requires_grad_()
    matrices = [m.detach().requires_grad_() for m in random_matrices(space, 2)[1]]
    assert gradcheck(lambda theta, *m: soft_permute(space, theta, m), (theta, *matrices), fast_mode=True)


@each_space
def test_soft_permutations_are_mixed_network_by_network(space):
    theta, (_, matrices) = normal(3, space.dim), random_matrices(space, 3)
    whole = soft_permute(space, theta, matrices)
    alone = [soft_permute(space, theta[i : i + 1], [m[i : i + 1] for m in matrices]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone))


@each_space
def test_soft_permutations_have_the_structure_of_the_groups(space):
    leaves, matrices = random_matrices(space, 2)
    for matrix in matrices:
        one = torch.ones(matrix.shape[:2], dtype=torch.float64)
        torch.testing.assert_close(matrix.sum(1), one)
        torch.testing.assert_close(matrix.sum(2), one)
    for leaf in leaves.values():
        order = torch.rand(leaf.shape[:-1]).argsort(-1)
        leaf.copy_(matrices_of([order])[0])
    hard = join(space, leaves)
    perms = [m.argmax(-1) for m in hard]
    check_permutations(space, perms)
    assert all(torch.equal(m, other) for m, other in zip(hard, matrices_of(perms), strict=True))


@each_space
def test_rounding_gives_back_hard_matrices(space):
    perms = random_permutations(space, 4, torch.Generator().manual_seed(2))
    found = best_permutations(space, [m + 0.1 * normal(*m.shape) for m in matrices_of(perms)])
    assert all(torch.equal(a, b) for a, b in zip(found, perms, strict=True))


@pytest.mark.parametrize("name", ["group_norm", "grouped", "transformer"])
def test_no_allowed_permutations_gain_more_than_rounding_finds(name):
    space = SPACES[name]
    gains = [normal(2, g.size, g.size, seed=i) for i, g in enumerate(space.hidden)]
    found = best_permutations(space, gains)
    check_permutations(space, found)
    sampled = random_permutations(space, 20000, torch.Generator().manual_seed(0))
    for b in range(2):
        value = sum(float(g[b].gather(1, p[b][:, None]).sum()) for g, p in zip(gains, found, strict=True))
        others = sum(g[b].gather(1, p.T).sum(0) for g, p in zip(gains, sampled, strict=True))
        assert value >= float(others.max()) - 1e-9


def test_rounding_is_exact_for_parts_that_move_whole_and_inside():
    space = SPACES["group_norm"]
    gain = normal(4, 6, 6)
    (found,) = best_permutations(space, [gain])
    every = [
        [2 * part + turn for part, pair in zip(places, turns, strict=True) for turn in pair]
        for places, turns in product(permutations(range(3)), product(permutations(range(2)), repeat=3))
    ]
    best = torch.stack([gain[:, range(6), order].sum(1) for order in every]).amax(0)
    torch.testing.assert_close(gain.gather(2, found[..., None]).sum((1, 2)), best)
