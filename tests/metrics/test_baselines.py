from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.metrics import (
    AverageBaseline,
    Baseline,
    CanonicalWeights,
    DisplacementBaseline,
    EqualCostBaseline,
    GaussianBaseline,
    Material,
    NoiseBaseline,
    RetrievalBaseline,
)
from wsflow.metrics.baselines import default_baselines
from wsflow.weightspace import WeightSpace


@pytest.fixture
def material(space: WeightSpace, generator: torch.Generator) -> Material:
    """Forty networks of two kinds, matched to the first, their starts and ten fresh ones; float64."""
    form = CanonicalWeights(space)
    centre = torch.randn(space.dim, generator=generator, dtype=torch.float64)
    theta = centre + 0.2 * torch.randn(40, space.dim, generator=generator, dtype=torch.float64)
    starts = theta - 1 + 0.1 * torch.randn(40, space.dim, generator=generator, dtype=torch.float64)
    fresh = torch.randn(10, space.dim, generator=generator, dtype=torch.float64)
    x = form(theta)
    return Material(form, theta, form.match(x, x[0]), starts, fresh)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BASELINES = [
    GaussianBaseline(),
    NoiseBaseline(),
    AverageBaseline(),
    DisplacementBaseline(),
    RetrievalBaseline(),
    EqualCostBaseline(lambda starts, seconds: starts + seconds, 2.0),
]


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_a_baseline_is_a_function_of_its_seed(baseline: Baseline, material: Material) -> None:
    one = baseline.generate(material, 8, seeded())
    assert one.shape == (8, material.form.space.dim)
    assert torch.equal(one, baseline.generate(material, 8, seeded()))
    assert not torch.equal(one, baseline.generate(material, 8, seeded(1)))


def test_gaussian_has_the_zoo_s_moments(material: Material) -> None:
    theta = GaussianBaseline().generate(material, 4000, seeded())
    biases = [part for name, part in material.form.tensors(material.form(theta)).items() if "bias" in name]
    wanted = [part for name, part in material.form.tensors(material.x).items() if "bias" in name]
    torch.testing.assert_close(torch.cat(biases, 1).mean(0), torch.cat(wanted, 1).mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cat(biases, 1).std(0), torch.cat(wanted, 1).std(0), rtol=0.1, atol=0)


def test_noise_begins_with_training_networks_used_evenly(material: Material) -> None:
    theta = NoiseBaseline().generate(material, 60, seeded())
    counts = (theta[:, None] == material.theta).all(2).sum(0)
    assert counts.tolist().count(1) == 20
    assert counts.tolist().count(2) == 20


def test_an_average_lies_between_two_networks(material: Material) -> None:
    two = Material(material.form, material.theta[:2], material.x[:2])
    x = AverageBaseline().generate(two, 3, seeded())
    a, b = material.x[0], material.form.match(material.x[1:2], material.x[0])[0]
    expected = material.form.invert((a + b)[None] / 2)
    other = material.form.invert((material.x[1] + material.form.match(a[None], material.x[1])[0])[None] / 2)
    for row in x:
        assert torch.allclose(row, expected[0]) or torch.allclose(row, other[0])


def test_displacement_uses_the_nearest_matched_start(material: Material) -> None:
    space = material.form.space
    found = DisplacementBaseline(candidates=40).generate(material, 10, seeded())
    order = torch.randperm(10, generator=seeded())
    for network, start in zip(found, material.fresh[order], strict=True):
        perms = material.form.aligner.align(space, material.starts, start)
        matched = space.permute(material.starts, perms)
        run = int((matched - start).norm(dim=1).argmin())
        displacement = space.permute(material.theta - material.starts, perms)[run]
        torch.testing.assert_close(network, start + displacement)


def test_displacement_of_a_training_start_with_its_neurons_permuted_is_its_own_run(material: Material) -> None:
    space = material.form.space
    perms = [torch.arange(group.size).flip(0) for group in space.hidden]
    fresh = space.permute(material.starts[5:6], perms)
    found = DisplacementBaseline().generate(
        Material(material.form, material.theta, material.x, material.starts, fresh), 1, seeded()
    )
    torch.testing.assert_close(found, space.permute(material.theta[5:6], perms))


def test_equal_cost_trains_fresh_starts_for_the_time_given(material: Material) -> None:
    given = []

    def train(starts: Tensor, seconds: float) -> Tensor:
        given.append((starts, seconds))
        return starts * 2

    found = EqualCostBaseline(train, 0.25).generate(material, 4, seeded())
    ((starts, seconds),) = given
    assert seconds == 0.25
    assert torch.equal(found, starts * 2)
    assert (starts[:, None] == material.fresh).all(2).any(1).all()


@pytest.mark.parametrize(
    ("baseline", "match"),
    [(DisplacementBaseline(), "starts"), (EqualCostBaseline(lambda s, t: s, 1.0), "fresh starts")],
    ids=["displacement", "equal-cost"],
)
def test_missing_starts_are_named(baseline: Baseline, match: str, material: Material) -> None:
    with pytest.raises(ValueError, match=match):
        baseline.generate(Material(material.form, material.theta, material.x), 3, seeded())


def test_one_training_network_has_no_average(material: Material) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        AverageBaseline().generate(Material(material.form, material.theta[:1], material.x[:1]), 3, seeded())


def test_default_baselines_are_those_with_material(material: Material) -> None:
    names = [baseline.name for baseline in default_baselines(material)]
    assert names == ["gaussian", "noise", "average", "displacement", "retrieval"]
    bare = Material(material.form, material.theta, material.x, material.starts)
    assert "displacement" not in [baseline.name for baseline in default_baselines(bare)]


def test_noise_is_sized_by_tensor(material: Material) -> None:
    std = material.tensor_std()
    for name, part in material.form.tensors(material.x).items():
        expected = part.var(0).mean().sqrt()
        torch.testing.assert_close(material.form.tensors(std[None])[name], expected.expand(1, part.shape[1]))
