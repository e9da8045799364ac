"""The path through a run's snapshots passes all of them, and its velocity is its derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsflow.fields import Endpoint
from wsflow.flow import GeodesicPath, SnapshotPath
from wsflow.geometry import Euclidean, Geometry
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import WeightSpace, ZooBatch

TIMES = torch.tensor([[0.1, 0.25, 0.6]]).double()


@pytest.fixture
def batch(theta: Tensor, generator: torch.Generator) -> ZooBatch:
    """Seven networks with three snapshots each; one has times of its own."""
    path = theta[:, None] + 0.5 * torch.randn(7, 3, theta.shape[1], generator=generator, dtype=theta.dtype)
    times = TIMES.repeat(7, 1)
    times[3] = torch.tensor([0.3, 0.5, 0.9])
    return ZooBatch(theta.flip(0) + 0.3, theta, torch.arange(7), None, path, times)


@pytest.fixture
def ends(geometry: Geometry, batch: ZooBatch) -> tuple[Tensor, Tensor]:
    return geometry.encode(batch.start), geometry.encode(batch.x1)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_it_passes_the_ends_and_every_snapshot(power, geometry, batch, ends):
    path = SnapshotPath(power)
    for s in range(3):
        sample = path.along(batch, *ends, batch.path_times[:, s] ** power, geometry)
        torch.testing.assert_close(sample.x_t, geometry.encode(batch.path[:, s]), atol=1e-9, rtol=0)
    for t, end in ((0.0, ends[0]), (1 - 1e-10, ends[1])):
        x_t = path.along(batch, *ends, torch.full((7,), t).double(), geometry).x_t
        torch.testing.assert_close(x_t, end, atol=1e-7, rtol=0)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_velocity_is_the_derivative(power, geometry, batch, ends):
    path, step = SnapshotPath(power), 1e-6
    for t in torch.linspace(0.007, 0.991, 23).double():
        t = t.expand(7)
        sample = path.along(batch, *ends, t, geometry)
        after, before = (path.along(batch, *ends, t + h, geometry).x_t for h in (step, -step))
        torch.testing.assert_close(sample.u_t, (after - before) / (2 * step), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(geometry.tangent(sample.x_t, sample.u_t), sample.u_t, atol=1e-8, rtol=0)


def test_velocities_are_exact_in_single_precision_next_to_snapshots(space: WeightSpace, batch: ZooBatch):
    geometry = Euclidean(space)
    single = ZooBatch._make(None if v is None else v.float() if v.is_floating_point() else v for v in batch)
    for near in (0.1, 0.25, 0.6, 1.0):
        for t in (near - 1e-6, near + 1e-6 if near < 1 else near - 1e-4):
            t = torch.full((7,), t)
            found = SnapshotPath().along(single, single.start, single.x1, t, geometry).u_t
            exact = SnapshotPath().along(batch, batch.start, batch.x1, t.double(), geometry).u_t
            torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)


def test_without_snapshots_it_is_the_geodesic_or_refused(geometry, batch, ends):
    t = torch.linspace(0, 0.9, 7).double()
    path, plain = SnapshotPath().sample(*ends, t, geometry), GeodesicPath().sample(*ends, t, geometry)
    torch.testing.assert_close(path.x_t, plain.x_t)
    torch.testing.assert_close(path.u_t, plain.u_t, atol=1e-7, rtol=1e-6)
    with pytest.raises(ValueError, match="set snapshots: true in the data module"):
        SnapshotPath().along(batch._replace(path=None), *ends, t, geometry)


def test_what_does_not_go_with_it(space: WeightSpace):
    with pytest.raises(ValueError, match="power must be positive"):
        SnapshotPath(0.0)
    description = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [5, 4, 3, 2]}}
    with pytest.raises(ValueError, match="choose the Velocity parametrization"):
        FlowMatchingModule(description, path=SnapshotPath(), parametrization=Endpoint())
