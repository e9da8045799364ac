from dataclasses import replace

import pytest
import torch
from torch import nn

from wsflow.alignment import WeightMatching, base, check_same_functions, similarity
from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.symmetry import random_permutations

SPACE = WeightSpace.from_module(mlp([30, 16, 16, 2]))


def draw(n, dtype=torch.float32):
    return torch.randn(n, SPACE.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_aligned_networks_compute_the_same(dtype, scale, monkeypatch):
    monkeypatch.setattr(base, "BATCH", 7)
    theta = scale * draw(20, dtype)
    aligned = SPACE.permute(theta, WeightMatching().align(SPACE, theta, draw(21, dtype)[20]))
    assert not torch.equal(aligned, theta)
    check_same_functions(SPACE, theta, aligned)
    check_same_functions(SPACE, theta, aligned, inputs=torch.ones(1, 30), seed=5)


def test_a_changed_network_is_found():
    theta = draw(20)
    perms = random_permutations(SPACE, 20, torch.Generator().manual_seed(1))
    aligned = SPACE.permute(theta, perms)
    aligned[4, 100] += 0.1
    aligned[9] = aligned[8]
    with pytest.raises(ValueError, match=r"function of 2 of 20 networks: outputs of network 4 differ"):
        check_same_functions(SPACE, theta, aligned)
    check_same_functions(SPACE, theta, aligned, tolerance=1e3)


def test_outputs_that_are_not_finite_are_found():
    theta = draw(3)
    theta[1, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 3 networks: outputs of network 1"):
        check_same_functions(SPACE, theta, theta.clone())


def test_networks_without_output_pass_and_batches_must_match():
    check_same_functions(SPACE, torch.zeros(2, SPACE.dim), torch.zeros(2, SPACE.dim))
    with pytest.raises(ValueError, match="cannot equal"):
        check_same_functions(SPACE, draw(2), draw(3))


def test_similarity_orders_like_distance():
    theta, reference = draw(5), draw(6)[5]
    perms = random_permutations(SPACE, 5, torch.Generator().manual_seed(1))
    moved = SPACE.permute(theta, perms)
    gain = similarity(SPACE, moved, reference) - similarity(SPACE, theta, reference)
    squares = [(x.double() - reference.double()).square().sum(1) for x in (theta, moved)]
    torch.testing.assert_close(gain, (squares[0] - squares[1]) / 2)


class TwoHeads(nn.Module):
    """Two outputs of different shapes from one convolution."""

    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = nn.Conv2d(2, 4, 3), nn.Linear(4, 2), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return self.first(x.mean((2, 3))), self.second(x)


def test_inputs_and_outputs_may_have_any_shape():
    space = WeightSpace.from_module(TwoHeads(), torch.randn(2, 2, 6, 5))
    theta = torch.randn(5, space.dim, generator=torch.Generator().manual_seed(0))
    aligned = space.permute(theta, random_permutations(space, 5, torch.Generator().manual_seed(1)))
    check_same_functions(space, theta, aligned)
    aligned[3, -1] += 0.1  # the bias of the second head
    with pytest.raises(ValueError, match="function of 1 of 5 networks: outputs of network 3"):
        check_same_functions(space, theta, aligned)


def test_a_space_that_does_not_know_its_inputs_wants_some():
    space, theta = replace(SPACE, input_shape=None), draw(2)
    with pytest.raises(ValueError, match="give inputs to compare networks on"):
        check_same_functions(space, theta, theta)
    check_same_functions(space, theta, theta, inputs=torch.ones(1, 30))
