import json

import pytest
import torch
from architectures import NETWORKS, space_of

from wsflow.alignment import Aligner, WeightMatching, ZooCenter, similarity
from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.symmetry import check_permutations, random_permutations

SPACE = WeightSpace.from_module(mlp([8, 9, 9, 3]))


def draw(space, n, seed=0):
    return torch.randn(n, space.dim, generator=torch.Generator().manual_seed(seed))


def scatter(theta):
    """Mean squared distance of two different networks."""
    return torch.pdist(theta.double()).square().mean()


@pytest.mark.parametrize("name", ["mlp", "resnet", "group_norm", "grouped", "transformer"])
def test_noisy_copies_meet_at_what_they_are_copies_of(name):
    network, shape = NETWORKS[name]
    space, generator = space_of(network(), shape), torch.Generator().manual_seed(1)
    copies = draw(space, 1) + 0.05 * torch.randn(30, space.dim, generator=generator)
    theta = space.permute(copies, random_permutations(space, 30, generator))
    found = ZooCenter().align_to_center(space, theta)
    check_permutations(space, found.perms)
    aligned = space.permute(theta, found.perms)
    torch.testing.assert_close(scatter(aligned), scatter(copies))
    torch.testing.assert_close(found.center, aligned.mean(0))
    assert found.spread[-1] == pytest.approx(0.05**2 * space.dim * 29 / 30, rel=0.1)


def test_the_spread_falls_until_nothing_changes():
    theta = draw(SPACE, 40)
    found = ZooCenter().align_to_center(SPACE, theta)
    assert 3 < len(found.spread) < 31
    assert (found.spread.diff() <= 1e-6).all()
    aligned = SPACE.permute(theta, found.perms)
    distance = (aligned - found.center).double().square().sum(1).mean()
    torch.testing.assert_close(found.spread[-1], distance, rtol=1e-5, atol=0)
    for perm in WeightMatching().align(SPACE, aligned, found.center):
        assert torch.equal(perm, torch.arange(9).expand(40, 9))
    again = ZooCenter().align_to_center(SPACE, aligned, start=found.center)
    torch.testing.assert_close(again.center, found.center)


def test_networks_lie_nearer_together_than_after_alignment_to_one():
    theta = draw(SPACE, 40)
    to_first = SPACE.permute(theta, WeightMatching().align(SPACE, theta, theta[0]))
    to_center = SPACE.permute(theta, ZooCenter().align_to_center(SPACE, theta).perms)
    assert scatter(to_center) < 0.98 * scatter(to_first) < scatter(theta)


def test_the_start_is_the_candidate_nearest_to_all():
    theta = draw(SPACE, 20)
    theta[7] *= 0.1  # short, so near to all
    for candidates, start in ((20, 7), (1, 0)):
        found = ZooCenter(rounds=1, candidates=candidates).align_to_center(SPACE, theta)
        given = ZooCenter(rounds=1).align_to_center(SPACE, theta, start=theta[start])
        assert torch.equal(found.center, given.center)


def test_the_reference_is_the_center_and_alignment_is_the_aligners():
    theta, center = draw(SPACE, 20), ZooCenter(WeightMatching(restarts=1), candidates=2)
    assert torch.equal(center.reference(SPACE, theta), center.align_to_center(SPACE, theta).center)
    assert torch.equal(WeightMatching().reference(SPACE, theta), theta[0])
    for a, b in zip(
        center.align(SPACE, theta, theta[3]), WeightMatching(restarts=1).align(SPACE, theta, theta[3]), strict=True
    ):
        assert torch.equal(a, b)


class Shift(Aligner):
    """Never content: every neuron moves on by one."""

    def align(self, space, theta, reference, objective=None):
        return [torch.arange(group.size).roll(1).expand(len(theta), -1) for group in space.hidden]


def test_rounds_end_with_any_aligner():
    assert len(ZooCenter(Shift(), rounds=4).align_to_center(SPACE, draw(SPACE, 3)).spread) == 5


def test_one_network_is_its_own_center():
    theta = draw(SPACE, 1)
    found = ZooCenter().align_to_center(SPACE, theta)
    assert torch.equal(found.center, theta[0])
    assert float(similarity(SPACE, theta, found.center)) > 0
    with pytest.raises(ValueError, match=r"a centre needs networks \(B, 201\), got \(0, 201\)"):
        ZooCenter().align_to_center(SPACE, theta[:0])


def test_description_holds_the_aligners():
    description = ZooCenter(WeightMatching(seed=3), rounds=5).description()
    assert json.loads(json.dumps(description)) == {
        "class_path": "wsflow.alignment.center.ZooCenter",
        "init_args": {
            "aligner": {
                "class_path": "wsflow.alignment.weight_matching.WeightMatching",
                "init_args": {"iterations": 50, "restarts": 0, "seed": 3},
            },
            "rounds": 5,
            "candidates": 8,
        },
    }


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"candidates": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be at least 1"):
        ZooCenter(**settings)
