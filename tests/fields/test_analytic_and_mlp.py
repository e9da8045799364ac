"""The exact Gaussian field, the MLP field, and how both see time."""

from __future__ import annotations

import pytest
import torch

from wsflow.fields import GaussianField, MLPField, TimeEmbedding
from wsflow.weightspace import WeightSpace, mlp

LAW = {"mean0": -0.5, "std0": 0.8, "mean1": 2.0, "std1": 0.25}
TIMES = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)


def test_exact_velocity_follows_the_exact_flow(space: WeightSpace):
    """Points keep their standard score: x_t = mean_t + std_t z."""
    field, z = GaussianField(space, 1, **LAW), torch.randn(4, space.dim + 1, dtype=torch.float64)

    def state(t: torch.Tensor) -> torch.Tensor:
        mean, variance = -0.5 * (1 - t) + 2 * t, (0.8 * (1 - t)) ** 2 + (0.25 * t) ** 2
        return mean[:, None] + variance.sqrt()[:, None] * z

    _, velocity = torch.func.jvp(state, (TIMES,), (torch.ones_like(TIMES),))
    assert torch.allclose(field(state(TIMES), TIMES), velocity)


def test_exact_endpoint_is_the_posterior_mean(space: WeightSpace, generator: torch.Generator):
    t, n = 0.4, 400_000
    x0 = -0.5 + 0.8 * torch.randn(n, generator=generator, dtype=torch.float64)
    x1 = 2 + 0.25 * torch.randn(n, generator=generator, dtype=torch.float64)
    x_t = (1 - t) * x0 + t * x1
    near = (x_t - 0.8).abs() < 0.02
    field = GaussianField(space, endpoint=True, **LAW)
    exact = field(torch.full((1, space.dim), 0.8, dtype=torch.float64), torch.tensor([t], dtype=torch.float64))
    assert exact[0, 0].item() == pytest.approx(x1[near].mean().item(), abs=0.01)


def test_exact_fields_run_on_other_widths(space: WeightSpace):
    bound = GaussianField(space, **LAW).bind(WeightSpace.from_module(mlp([5, 8, 3, 2])))
    assert bound(torch.zeros(2, bound.dim), torch.zeros(2)).shape == (2, bound.dim)


def test_exact_fields_need_positive_standard_deviations(space: WeightSpace):
    with pytest.raises(ValueError, match="must be positive"):
        GaussianField(space, std1=0.0)


def noisy(field: MLPField) -> MLPField:
    """The field with a last layer that is not zero."""
    torch.nn.init.normal_(field.write.weight)
    return field


@pytest.mark.parametrize("extra", [0, 1])
def test_mlp_starts_at_zero_and_every_output_sees_time(extra: int, space: WeightSpace):
    field = MLPField(space, extra, width=16, depth=2)
    x = torch.randn(1, field.dim).expand(2, -1)
    assert torch.equal(field(x, torch.tensor([0.1, 0.9])), torch.zeros(2, field.dim))
    early, late = noisy(field)(x, torch.tensor([0.1, 0.9]))
    assert ((early - late).abs() > 1e-4).float().mean() > 0.95
    for tensor in space.tensors:
        assert not torch.allclose(early[tensor.slice], late[tensor.slice])


def test_mlp_is_not_equivariant(space: WeightSpace, theta: torch.Tensor):
    field, perms = noisy(MLPField(space, width=16)).double(), [torch.arange(4).flip(0), torch.arange(3)]
    t = torch.zeros(7).double()
    assert not torch.allclose(field(space.permute(theta, perms), t), space.permute(field(theta, t), perms))


def test_mlp_learns_a_linear_map(space: WeightSpace, generator: torch.Generator):
    field, gain = MLPField(space, width=64, depth=2), torch.randn(space.dim, generator=generator)
    x, t = torch.randn(256, space.dim, generator=generator), torch.rand(256, generator=generator)
    target = 10 * t[:, None] * gain * x.mean(dim=1, keepdim=True)
    field.calibrate(x, target)
    optimizer = torch.optim.Adam(field.parameters(), lr=3e-3)
    for _ in range(150):
        loss = (field(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * target.square().mean()


def test_mlp_is_tied_to_its_space(space: WeightSpace):
    field = MLPField(space, width=8)
    assert field.bind(WeightSpace.from_module(mlp([5, 4, 3, 2]))).write is field.write
    with pytest.raises(ValueError, match="cannot be bound to one with D ="):
        field.bind(WeightSpace.from_module(mlp([5, 6, 3, 2])))


def test_mlp_labels(space: WeightSpace):
    x, t = torch.randn(1, space.dim).expand(2, -1), torch.zeros(2)
    field = noisy(MLPField(space, width=8, condition=1))
    one, other = field(x, t, torch.tensor([[0.0], [1.0]]))
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match="needs a label"):
        field(x, t)
    with pytest.raises(ValueError, match="takes none"):
        MLPField(space, width=8)(x, t, torch.zeros(2, 1))


@pytest.mark.parametrize("sizes", [{"width": 0}, {"depth": 0}], ids=str)
def test_mlp_sizes_are_checked(sizes: dict[str, int], space: WeightSpace):
    with pytest.raises(ValueError, match="at least 1"):
        MLPField(space, **sizes)


def test_time_embedding_tells_times_apart():
    embedding = TimeEmbedding(8)
    out = embedding(torch.linspace(0, 1, 50))
    assert out.shape == (50, 8)
    assert torch.pdist(out).min() > 0
    assert not embedding.state_dict().keys() & {"_angular"}


@pytest.mark.parametrize("arguments", [(0,), (4, 0), (4, 4, 0.5)], ids=str)
def test_time_embedding_sizes_are_checked(arguments: tuple[float, ...]):
    with pytest.raises(ValueError, match="max_turns above"):
        TimeEmbedding(*arguments)
