"""Geometries to try everything on."""

from __future__ import annotations

import pytest

from wsflow.geometry import Euclidean, Geometric, Geometry, Normalized
from wsflow.weightspace import WeightSpace, mlp

GEOMETRIES = {
    "euclidean": Euclidean,
    "normalized": Normalized,
    "normalized_no_scale": lambda space: Normalized(space, keep_scale=False),
    "geometric": Geometric,
    "geometric_no_scale": lambda space: Geometric(space, keep_scale=False),
}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request: pytest.FixtureRequest, space: WeightSpace) -> Geometry:
    return request.param(space)


@pytest.fixture
def sphere() -> Geometric:
    """One sphere S^3 in coordinates 0 to 3, and a line."""
    return Geometric(WeightSpace.from_module(mlp([4, 1, 1], bias=False), output_activation="identity"))


@pytest.fixture
def flat() -> Euclidean:
    """A plane R^2."""
    return Euclidean(WeightSpace.from_module(mlp([2, 1], bias=False), output_activation="identity"))
