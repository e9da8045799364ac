"""Couplings: the least plan, the order of the batch, and what they refuse."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from wsflow.alignment import WeightMatching
from wsflow.flow import (
    AlignedOptimalTransportCoupling,
    Coupling,
    GaussianPrior,
    IndependentCoupling,
    OptimalTransportCoupling,
    TrajectoryCoupling,
)
from wsflow.flow.coupling import assign, label_groups
from wsflow.geometry import Euclidean, Geometry, PrincipalComponents
from wsflow.weightspace import WeightSpace, ZooBatch
from wsflow.weightspace.symmetry import random_permutations

COUPLINGS = {
    "independent": IndependentCoupling(),
    "optimal_transport": OptimalTransportCoupling(),
    "aligned": AlignedOptimalTransportCoupling(),
    "trajectory": TrajectoryCoupling(),
}
OPTIMAL = ("optimal_transport", "aligned")


@pytest.fixture
def batch(space: WeightSpace, generator: torch.Generator) -> ZooBatch:
    x1, start = torch.randn(2, 5, space.dim, generator=generator, dtype=torch.float64)
    return ZooBatch(x1=x1, start=start, run=torch.arange(5))


@pytest.fixture
def x0(geometry: Geometry, generator: torch.Generator) -> Tensor:
    return geometry.encode(torch.randn(5, geometry.space.dim, generator=generator, dtype=torch.float64))


def same_rows(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices hold the same rows in some order."""
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return bool((distance < 1e-12).any(0).all()) and bool((distance < 1e-12).any(1).all())


@pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS.keys())
def test_networks_keep_the_order_of_the_batch(coupling: Coupling, batch: ZooBatch, x0: Tensor, geometry: Geometry):
    a, b = coupling(batch, x0, geometry)
    assert torch.equal(b, geometry.encode(batch.x1))
    assert a.shape == b.shape
    assert torch.allclose(geometry.project(a), a)


@pytest.mark.parametrize("name", ["independent", "optimal_transport"])
def test_prior_states_are_used_once_each(name: str, batch: ZooBatch, x0: Tensor, geometry: Geometry):
    a, _ = COUPLINGS[name](batch, x0, geometry)
    assert same_rows(a, x0)


def test_optimal_transport_is_optimal(batch: ZooBatch, x0: Tensor, geometry: Geometry):
    a, b = OptimalTransportCoupling()(batch, x0, geometry)
    best = min(geometry.distance(x0[list(p)], b).square().sum() for p in permutations(range(5)))
    assert geometry.distance(a, b).square().sum() == pytest.approx(best.item())


def test_aligned_transport_is_optimal_after_matching(
    batch: ZooBatch, x0: Tensor, geometry: Geometry, monkeypatch: pytest.MonkeyPatch
):
    aligner, space = WeightMatching(), geometry.space
    a, b = AlignedOptimalTransportCoupling(aligner)(batch, x0, geometry)
    cost = torch.empty(5, 5)
    for i in range(5):
        for j in range(5):  # one pair at a time, permuting the decoded weights
            theta0, theta1 = geometry.decode(x0[i : i + 1]), geometry.decode(b[j : j + 1])
            moved = geometry.encode(space.permute(theta0, aligner.align(space, theta0, theta1[0])))
            cost[i, j] = geometry.distance(moved, b[j : j + 1]).square()
    best = min(cost[list(p), range(5)].sum() for p in permutations(range(5)))
    assert geometry.distance(a, b).square().sum().item() == pytest.approx(best.item(), rel=1e-5)
    assert best < geometry.distance(*OptimalTransportCoupling()(batch, x0, geometry)).square().sum()
    monkeypatch.setattr("wsflow.flow.coupling.ELEMENTS", 1)  # pairs in small chunks
    assert torch.equal(AlignedOptimalTransportCoupling(aligner)(batch, x0, geometry)[0], a)


def test_aligned_transport_finds_planted_pairs(batch: ZooBatch, geometry: Geometry, generator: torch.Generator):
    space = geometry.space
    order = torch.tensor([2, 0, 4, 1, 3])
    hidden = space.permute(batch.x1, random_permutations(space, 5, generator))[order]
    a, b = AlignedOptimalTransportCoupling(WeightMatching(restarts=3))(batch, geometry.encode(hidden), geometry)
    assert torch.allclose(a, b)


def test_aligned_transport_keeps_functions(batch: ZooBatch, x0: Tensor, geometry: Geometry, generator: torch.Generator):
    a, _ = AlignedOptimalTransportCoupling(WeightMatching())(batch, x0, geometry)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    before, after = (geometry.space.forward(geometry.decode(x), inputs).flatten(1) for x in (x0, a))
    assert torch.cdist(before, after).min(dim=0).values.max() < 1e-6
    assert not same_rows(a, x0)


def test_trajectory_pairs_each_network_with_its_start(batch: ZooBatch, x0: Tensor, geometry: Geometry):
    a, _ = TrajectoryCoupling()(batch, x0, geometry)
    assert torch.equal(a, geometry.encode(batch.start))
    with pytest.raises(ValueError, match="collect a zoo that keeps them"):
        TrajectoryCoupling()(batch._replace(start=None), x0, geometry)


@pytest.mark.parametrize("name", OPTIMAL)
def test_weights_that_are_not_finite_are_refused(name: str, batch: ZooBatch, x0: Tensor, geometry: Geometry):
    batch.x1[1, 3] = float("nan")
    with pytest.raises(ValueError, match="1 of 5 networks of the batch are not finite, the first at row 1"):
        COUPLINGS[name](batch, x0, geometry)


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 4 transport costs are not finite"):
        assign(torch.tensor([[0.0, float("inf")], [1.0, 2.0]]))


@pytest.mark.parametrize("name", OPTIMAL)
def test_batches_of_other_sizes_are_refused(name: str, batch: ZooBatch, x0: Tensor, geometry: Geometry):
    with pytest.raises(ValueError, match="as many prior states as networks"):
        COUPLINGS[name](batch, x0[:3], geometry)


@pytest.mark.parametrize("name", OPTIMAL)
def test_pairs_stay_within_a_label(name: str, batch: ZooBatch, x0: Tensor, geometry: Geometry):
    label = torch.tensor([[0.0], [1.0], [0.0], [0.0], [1.0]])
    a, b = COUPLINGS[name](batch._replace(label=label), x0, geometry)
    for value in (0.0, 1.0):
        rows = (label[:, 0] == value).nonzero()[:, 0]
        part = ZooBatch(batch.x1[rows], batch.start[rows], batch.run[rows])
        alone, _ = COUPLINGS[name](part, x0[rows], geometry)
        torch.testing.assert_close(a[rows], alone)
    torch.testing.assert_close(b, geometry.encode(batch.x1))


def test_groups_of_continuous_labels_are_neighbours_of_the_least_size():
    label = torch.tensor([[5.0], [1.0], [4.0], [2.0], [6.0], [3.0], [torch.nan]])
    groups = [sorted(rows.tolist()) for rows in label_groups(label, 7, 3)]
    assert groups == [[1, 3, 5], [0, 2, 4, 6]]
    assert [len(rows) for rows in label_groups(label, 7, 4)] == [7]
    two = torch.cat([torch.zeros(8, 1), torch.arange(8.0)[:, None]], dim=1)
    assert [sorted(rows.tolist()) for rows in label_groups(two, 8, 2)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [len(rows) for rows in label_groups(None, 5, 1)] == [5]


def test_labels_do_not_change_the_law_of_prior_states(generator: torch.Generator, flat: Euclidean):
    """Networks lie where their label says.  A plan across labels gives each label its own half of the prior."""
    label = torch.cat([torch.zeros(100, 1), torch.ones(100, 1)])
    batch = ZooBatch(3 * label.expand(-1, 2).double(), None, torch.arange(200), label)
    x0 = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    within, _ = OptimalTransportCoupling()(batch, x0, flat)
    across, _ = OptimalTransportCoupling()(batch._replace(label=None), x0, flat)
    gap = [float((a[100:] - a[:100]).mean()) for a in (within, across)]
    assert abs(gap[0]) < 0.3
    assert gap[1] > 1


@pytest.mark.parametrize("name", OPTIMAL)
def test_one_pair(name: str, batch: ZooBatch, x0: Tensor, geometry: Geometry):
    one = ZooBatch(batch.x1[:1], batch.start[:1], batch.run[:1])
    a, b = COUPLINGS[name](one, x0[:1], geometry)
    assert a.shape == b.shape == (1, geometry.dim)


def test_assignment_agrees_with_the_hungarian_method(generator: torch.Generator):
    from scipy.optimize import linear_sum_assignment

    cost = torch.rand(40, 40, generator=generator, dtype=torch.float64)
    rows = assign(cost)
    assert sorted(rows.tolist()) == list(range(40))
    assert cost[rows, range(40)].sum().item() == pytest.approx(cost.numpy()[linear_sum_assignment(cost)].sum())


def test_a_plan_that_is_no_assignment_is_noticed(monkeypatch: pytest.MonkeyPatch):
    plans = SimpleNamespace(emd=lambda a, b, cost, **settings: 0 * cost)  # what POT gives for costs it cannot handle
    monkeypatch.setattr("wsflow.flow.coupling._ot", lambda: plans)
    with pytest.raises(RuntimeError, match="not an assignment"):
        assign(torch.ones(3, 3))


def test_assignment_of_equal_costs_is_a_permutation():
    assert sorted(assign(torch.ones(7, 7)).tolist()) == list(range(7))


def test_optimal_transport_works_in_float32(batch: ZooBatch, geometry: Geometry, generator: torch.Generator):
    x0 = GaussianPrior().sample(5, geometry, generator)
    a, b = OptimalTransportCoupling()(batch._replace(x1=batch.x1.float()), x0, geometry)
    assert a.dtype == b.dtype == torch.float32


def test_neurons_are_matched_in_three_sweeps_by_default():
    aligner = AlignedOptimalTransportCoupling().aligner
    assert aligner.description() == WeightMatching(iterations=3).description()


def test_neurons_cannot_be_matched_in_a_latent_space(batch: ZooBatch, space: WeightSpace):
    latent = PrincipalComponents(space, 2).double()
    latent.fit(batch.x1)
    x0 = torch.zeros(5, latent.dim, dtype=torch.float64)
    with pytest.raises(ValueError, match="coordinates of PrincipalComponents belong to no neuron"):
        AlignedOptimalTransportCoupling()(batch, x0, latent)
    assert OptimalTransportCoupling()(batch, x0, latent)[1].shape == (5, latent.dim)
