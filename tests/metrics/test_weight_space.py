from __future__ import annotations

import pytest
import torch
from scalable_networks import build, draw
from torch import Tensor

from wsflow.metrics import CanonicalWeights, distance, nearest_distance, weight_space
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import random_permutations, random_scales


def disguised(space: WeightSpace, theta: Tensor, generator: torch.Generator) -> Tensor:
    """The same functions with other weights."""
    n = len(theta)
    moved = space.permute(theta, random_permutations(space, n, generator))
    return space.rescale(moved, random_scales(space, n, generator))


def test_symmetric_copies_are_at_distance_zero(space: WeightSpace, theta: Tensor, generator: torch.Generator) -> None:
    form = CanonicalWeights(space)
    copies = disguised(space, theta, generator)
    assert (theta - copies).norm(dim=1).min() > 1
    assert distance(form, form(theta), form(copies)).max() < 1e-9
    assert distance(form, form(theta), form(theta.roll(1, 0))).min() > 0.1


@pytest.mark.parametrize("name", ["cnn_batch_norm", "heads"])
def test_other_networks_and_their_statistics(name: str, generator: torch.Generator) -> None:
    space = build(name)
    form, theta = CanonicalWeights(space), draw(space, 4)
    copies = disguised(space, theta, generator)
    x = form(theta)
    assert x.shape == (4, form.geometry.dim)
    assert torch.equal(x, form(theta[:, : space.dim]))
    assert distance(form, x, form(copies)).max() < 1e-9
    assert distance(form, x, x.roll(1, 0)).min() > 0.1
    assert torch.equal(torch.cat(list(form.tensors(x).values()), 1), x)
    torch.testing.assert_close(form(form.invert(x)), x)


def test_coordinates_go_back_to_the_same_functions(space: WeightSpace, theta: Tensor) -> None:
    form, inputs = CanonicalWeights(space), torch.randn(20, 5, dtype=torch.float64)
    torch.testing.assert_close(space.forward(form.invert(form(theta)), inputs), space.forward(theta, inputs))


def test_coordinates_off_the_spheres_are_projected(space: WeightSpace, theta: Tensor) -> None:
    form = CanonicalWeights(space)
    x = form(theta)
    again = form(form.invert(x + 0.3 * torch.randn_like(x)))
    norms = again[:, space.incoming("hidden1")].norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_matching_takes_one_reference_for_all_or_one_for_each(space: WeightSpace, theta: Tensor) -> None:
    form = CanonicalWeights(space)
    x = form(theta)
    one, each = form.match(x, x[0]), form.match(x, x.roll(1, 0))
    torch.testing.assert_close(one[3:4], form.match(x[3:4], x[0]))
    torch.testing.assert_close(each[3:4], form.match(x[3:4], x[2]))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("piece", [1, 2**22], ids=["one by one", "together"])
def test_the_nearest_of_the_candidates(
    space: WeightSpace, theta: Tensor, k: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_space, "PIECE", piece)
    form = CanonicalWeights(space)
    x, train = form(theta[:3]), form(theta[3:])
    index = torch.tensor([[0, 1, 2], [3, 2, 1], [1, 3, 0]])[:, :k]
    slow = [min(float(distance(form, x[i : i + 1], train[j : j + 1])) for j in row) for i, row in enumerate(index)]
    torch.testing.assert_close(nearest_distance(form, x, train, index), torch.tensor(slow, dtype=torch.float64))


def test_tensors_cover_every_coordinate_once(space: WeightSpace, regression_space: WeightSpace, theta: Tensor) -> None:
    form = CanonicalWeights(space)
    parts = form.tensors(form(theta))
    assert list(parts) == [tensor.name for tensor in space.tensors] + ["log_scale"]
    assert torch.equal(torch.cat(list(parts.values()), 1), form(theta))
    other = CanonicalWeights(regression_space)
    assert "log_scale" not in other.tensors(other(torch.randn(2, regression_space.dim)))
