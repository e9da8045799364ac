"""Sinkhorn re-basin: planted permutations, objectives, and what its results may depend on."""

import pytest
import torch
from architectures import NETWORKS, space_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from wsflow.alignment import (
    Aligner,
    AsGiven,
    L2Objective,
    MidObjective,
    RandomObjective,
    SinkhornRebasin,
    WeightMatching,
    search,
    sinkhorn,
)
from wsflow.description import build
from wsflow.tasks import BreastCancer
from wsflow.weightspace import Objective, WeightSpace, mlp
from wsflow.weightspace.symmetry import check_permutations, invert, random_permutations

THESIS = WeightSpace.from_module(mlp([30, 16, 16, 2]))
SMALL = WeightSpace.from_module(mlp([5, 6, 6, 3]))
SPACES = {name: space_of(network(), shape) for name, (network, shape) in NETWORKS.items()}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


class Labels(Objective):
    """Cross-entropy on points with the labels that a teacher gives them, of all or of a mini-batch."""

    def __init__(self, space: WeightSpace, teacher: Tensor, batch_size: int | None = None) -> None:
        size = space.groups[0].size
        self.space, self.batch_size = space, batch_size
        self.inputs = torch.randn(64, size, generator=torch.Generator().manual_seed(5), dtype=teacher.dtype)
        self.labels = space.forward(teacher[None], self.inputs)[0].argmax(1)

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        index = torch.randperm(64, generator=generator)[: self.batch_size] if self.batch_size else slice(None)
        logits = self.space.forward(theta, self.inputs[index])
        labels = self.labels[index].expand(len(theta), -1)
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(len(theta), -1).mean(1)


class Recorded(Objective):
    """The sum of the weights; keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.seen.append(theta)
        return theta.sum(1)


def draw(space, n, seed=0, dtype=torch.float64):
    return torch.randn(n, space.dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def planted(space, n, seed, noise=0.0):
    """A reference, permuted copies of it with noise, and the permutations that bring them back."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(space.dim, generator=generator)
    perms = random_permutations(space, n, generator)
    copies = reference + noise * torch.randn(n, space.dim, generator=generator)
    return reference, space.permute(copies, perms), invert(perms)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_planted_permutations_of_the_thesis_network_are_recovered_for_twenty_seeds(noise):
    for seed in range(20):
        reference, theta, perms = planted(THESIS, 2, seed, noise)
        found = SinkhornRebasin().match(THESIS, theta, reference)
        assert (found.searches == 1).all()
        assert all(torch.equal(a, b) for a, b in zip(found.perms, perms, strict=True))


@each_space
def test_planted_permutations_are_recovered_in_every_structure(space):
    for seed in range(3):
        reference, theta, perms = planted(space, 4, seed, 0.03)
        found = SinkhornRebasin().align(space, theta, reference)
        assert all(torch.equal(a, b) for a, b in zip(found, perms, strict=True))


@pytest.mark.parametrize("objective", [MidObjective(), RandomObjective()], ids=["mid", "random"])
def test_a_loss_alone_leads_most_of_the_way_back_to_a_permuted_copy(objective):
    for seed in range(3):
        reference, theta, perms = planted(THESIS, 4, seed)
        loss = Labels(THESIS, reference)
        found = SinkhornRebasin(objective, AsGiven()).match(THESIS, theta, reference, loss)
        before = objective.judge(reference.expand_as(theta), theta, loss, torch.Generator())
        assert (found.value < 0.6 * before.mean()).all()
        matched = SinkhornRebasin(objective, iterations=10).align(THESIS, theta, reference, loss)
        assert all(torch.equal(a, b) for a, b in zip(matched, perms, strict=True))


@pytest.mark.parametrize("objective", [L2Objective(), MidObjective(), RandomObjective()], ids=["l2", "mid", "random"])
@pytest.mark.parametrize("start", [AsGiven(), WeightMatching()], ids=["as_given", "weight_matching"])
def test_an_aligned_network_is_judged_at_least_as_well_as_its_start(objective, start):
    theta, reference = draw(SMALL, 20), draw(SMALL, 20, seed=1)
    loss = Labels(SMALL, reference[0])
    found = SinkhornRebasin(objective, start, iterations=12).match(SMALL, theta, reference, loss)
    began = SMALL.permute(theta, start.align(SMALL, theta, reference))
    before = objective.judge(reference, began, loss, torch.Generator())
    after = objective.judge(reference, SMALL.permute(theta, found.perms), loss, torch.Generator())
    torch.testing.assert_close(found.value, after)
    assert (after <= before + 1e-12).all()
    assert ((found.searches == 0) == (after == before)).all()
    assert (found.searches == 1).any()


def test_what_looks_at_a_loss_starts_from_weight_matching():
    assert isinstance(SinkhornRebasin(MidObjective()).start, WeightMatching)
    assert isinstance(SinkhornRebasin().start, AsGiven)


def test_objectives_are_those_of_the_thesis():
    reference, moved, loss, generator = draw(SMALL, 3), draw(SMALL, 3, seed=1), Recorded(), torch.Generator()
    l2 = L2Objective()(reference, moved, None, generator)
    torch.testing.assert_close(l2, torch.linalg.vector_norm(reference - moved, dim=1) ** 2)
    MidObjective()(reference, moved, loss, generator)
    torch.testing.assert_close(loss.seen.pop(), (reference + moved) / 2)
    shares = []
    for _ in range(200):
        RandomObjective()(reference, moved, loss, generator)
        share = ((loss.seen[-1] - reference) / (moved - reference)).flatten()
        torch.testing.assert_close(share, share[:1].expand_as(share))
        shares.append(float(share[0]))
    assert min(shares) >= 0
    assert max(shares) <= 1
    assert abs(sum(shares) / 200 - 0.5) < 0.1
    expected = torch.stack([loss(torch.lerp(reference, moved, at)) for at in (0.25, 0.75)]).mean(0)
    torch.testing.assert_close(RandomObjective(2).judge(reference, moved, loss, generator), expected)


@pytest.mark.parametrize("objective", [L2Objective(), RandomObjective()], ids=["l2", "random"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_result_does_not_depend_on_the_batch(objective, shared, monkeypatch):
    theta, reference = draw(SMALL, 7), draw(SMALL, 7, seed=1)
    theta[3] = SMALL.permute(reference[:1], random_permutations(SMALL, 1))[0]  # stands still first
    reference = reference[0] if shared else reference
    aligner = SinkhornRebasin(objective, AsGiven(), iterations=20, restarts=1)
    loss = Labels(SMALL, reference.reshape(-1, SMALL.dim)[0], batch_size=32)
    whole = aligner.match(SMALL, theta, reference, loss)
    alone = aligner.match(SMALL, theta[4:5], reference if shared else reference[4:5], loss)
    monkeypatch.setattr(sinkhorn, "ELEMENTS", 3 * (SMALL.dim + 72))
    parts = aligner.match(SMALL, theta, reference, loss)
    for a, b, c in zip(whole.perms, parts.perms, alone.perms, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[4:5], c)
    torch.testing.assert_close(whole.value, parts.value)


def test_the_seed_alone_decides():
    theta, reference = draw(SMALL, 6), draw(SMALL, 1, seed=1)[0]
    loss = Labels(SMALL, reference, batch_size=8)

    def found(seed):
        torch.rand(1)  # the global random state is another at every call
        return SinkhornRebasin(RandomObjective(), AsGiven(), iterations=20, seed=seed).match(
            SMALL, theta, reference, loss
        )

    first, again, other = found(1), found(1), found(2)
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)


def test_the_order_that_neurons_had_does_not_matter():
    theta, reference = draw(SMALL, 10), draw(SMALL, 1, seed=1)[0]
    shuffled = SMALL.permute(theta, random_permutations(SMALL, 10, torch.Generator().manual_seed(3)))
    first, second = (SMALL.permute(x, SinkhornRebasin().align(SMALL, x, reference)) for x in (theta, shuffled))
    torch.testing.assert_close(first, second)


def test_restarts_keep_the_best_and_say_which():
    theta, reference = draw(SMALL, 30), draw(SMALL, 1, seed=1)[0]
    once = SinkhornRebasin(iterations=30).match(SMALL, theta, reference)
    often = SinkhornRebasin(iterations=30, restarts=4).match(SMALL, theta, reference)
    assert (often.value <= once.value).all()
    assert (often.value < once.value)[often.searches > 1].all()
    assert (often.searches > 1).any()
    same = often.searches <= 1
    assert all(torch.equal(a[same], b[same]) for a, b in zip(often.perms, once.perms, strict=True))


def test_networks_that_stand_still_are_left_alone(monkeypatch):
    steps = []
    inner = search.Search.step
    monkeypatch.setattr(search.Search, "step", lambda s, length: (steps.append(len(s.rows)), inner(s, length)))
    reference, theta, _ = planted(THESIS, 4, 0)
    SinkhornRebasin(iterations=200).align(THESIS, theta, reference)
    assert sum(steps) < 4 * 100


def test_a_loss_that_is_not_a_number_leaves_a_network_as_it_is_judged():
    class Broken(Objective):
        def __call__(self, theta, generator=None):
            value = (theta - reference).square().sum(1)
            return torch.where(theta[:, 0] > 0, value, value * torch.nan)

    theta, reference = draw(SMALL, 12), draw(SMALL, 1, seed=1)[0]
    found = SinkhornRebasin(MidObjective(), iterations=20).align(SMALL, theta, reference, Broken())
    check_permutations(SMALL, found)


def test_running_statistics_are_passed_over():
    space = SPACES["cnn_batch_norm"]
    reference, theta, perms = planted(space, 2, 0)
    extended = torch.cat([theta, torch.full((2, space.full_dim - space.dim), torch.nan)], dim=1)
    found = SinkhornRebasin().align(space, extended, reference)
    assert all(torch.equal(a, b) for a, b in zip(found, perms, strict=True))


def test_no_networks_and_no_hidden_groups():
    reference = draw(SMALL, 1)[0]
    empty = SinkhornRebasin().align(SMALL, draw(SMALL, 0), reference)
    assert [p.shape for p in empty] == [(0, 6), (0, 6)]
    linear = WeightSpace.from_module(mlp([5, 2]))
    assert SinkhornRebasin().align(linear, draw(linear, 3), draw(linear, 1)[0]) == []


def test_a_network_is_not_touched_and_gradients_need_not_be_on():
    theta, reference = draw(SMALL, 3).requires_grad_(), draw(SMALL, 1, seed=1)[0]
    before = theta.detach().clone()
    with torch.no_grad():
        perms = SinkhornRebasin(iterations=3).align(SMALL, theta, reference)
    assert not any(p.requires_grad for p in perms)
    assert torch.equal(theta.detach(), before)
    assert theta.grad is None


def test_settings_are_plain_data():
    aligner = SinkhornRebasin(RandomObjective(3), WeightMatching(restarts=2), tau=0.5, seed=4)
    again = build(aligner.description())
    assert isinstance(again, Aligner)
    assert again.description() == aligner.description()
    assert (again.objective.points, again.start.restarts, again.tau) == (3, 2, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinkhornRebasin(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: SinkhornRebasin(sweeps=0), "sweeps must be at least 1"),
        (lambda: SinkhornRebasin(restarts=-1), "restarts must be at least 0"),
        (lambda: SinkhornRebasin(tau=0.0), "tau must be positive"),
        (lambda: SinkhornRebasin(learning_rate=float("nan")), "learning_rate must be positive"),
        (lambda: RandomObjective(0), "points must be at least 1"),
        (lambda: SinkhornRebasin(MidObjective()).align(SMALL, draw(SMALL, 2), draw(SMALL, 1)[0]), "needs a loss"),
        (lambda: SinkhornRebasin().align(SMALL, draw(SMALL, 2), draw(SMALL, 3)), "one per network"),
        (lambda: SinkhornRebasin().align(SMALL, draw(SMALL, 2) / 0, draw(SMALL, 1)[0]), "not finite"),
        (lambda: SinkhornRebasin().align(SMALL, draw(SMALL, 2), draw(SMALL, 1)[0] / 0), "reference 0 has weights"),
    ],
)
def test_refusals_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_losses_by_each_networks_own_data_are_refused():
    loss = BreastCancer().objective("train", 8, shared=False)
    theta = torch.randn(3, THESIS.dim, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="draws data points for each network by itself"):
        SinkhornRebasin(RandomObjective()).align(THESIS, theta, theta[0], loss)
