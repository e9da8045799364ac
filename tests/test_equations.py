"""The page of equations names code and tests that exist, and computations that no other test holds."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsflow.flow import RK4, GaussianPrior, Sampler, integrate
from wsflow.flow.divergence import ExactTrace
from wsflow.flow.likelihood import Likelihood
from wsflow.geometry import Euclidean, Geometric, Geometry
from wsflow.weightspace import WeightSpace

ROOT = Path(__file__).parents[1]
NUMBERS = ["2.1", *(f"3.{k}" for k in range(1, 25)), *(f"4.{k}" for k in range(1, 7)), *(f"5.{k}" for k in range(1, 7))]
ROW = re.compile(r"^\| (\d\.\d+) \| ([^|]+) \| `([^`]+)` \| `([^`]+)` \|([^|]*)\|$", re.MULTILINE)
CORRECTED = {"3.2", "3.14", "3.21", "4.3", "5.2", "5.5", "5.6", "6.1"}


def rows() -> list[tuple[str, ...]]:
    page = (ROOT / "docs" / "equations.md").read_text()
    found = ROW.findall(page)
    lines = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(found) == len(lines), "a row does not have five cells with code and test in backticks"
    return found


def test_every_equation_has_its_row_and_corrections_are_said() -> None:
    found = rows()
    assert [number for number, *_ in found][: len(NUMBERS) + 1] == [*NUMBERS, "6.1"]
    corrected = {number for number, *_, text in found if text.strip()}
    assert corrected >= CORRECTED | {"6.4"}


@pytest.mark.parametrize(("number", "code", "test"), [(row[0], row[2], row[3]) for row in rows()])
def test_what_the_page_names_exists(number: str, code: str, test: str) -> None:
    file, _, path = code.partition(":")
    found = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for name in path.split("."):
        found = getattr(found, name)
    place, *names = test.split("::")
    nodes: list[ast.stmt] = ast.parse((ROOT / place).read_text()).body
    for name in names:
        (node,) = [one for one in nodes if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == name]
        nodes = node.body
    assert names[-1].startswith("test_")


@pytest.mark.parametrize("kind", [Euclidean, Geometric])
def test_the_length_of_a_geodesic_is_the_integral_of_its_speed(
    kind: type[Geometry], space: WeightSpace, theta: Tensor
) -> None:
    geometry = kind(space)
    x = geometry.encode(theta)
    x0, x1 = x[:3], x[3:6]
    grid = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    speeds = []
    for t in grid:
        at = t.expand(3)
        u = geometry.velocity(geometry.interpolate(x0, x1, at), x1, at)
        speeds.append(geometry.inner(x0, u, u).sqrt())
    length = torch.stack(speeds).mean(0)
    assert torch.allclose(length, geometry.distance(x0, x1), rtol=1e-6)
    assert not torch.allclose(length.square(), length, rtol=0.1)


def test_the_integral_of_the_divergence_is_the_log_determinant(generator: torch.Generator) -> None:
    space = WeightSpace.from_description(
        {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [2, 1, 2]}, "output_activation": "softmax"}
    )
    geometry = Euclidean(space)
    mix = torch.randn(space.dim, space.dim, generator=generator, dtype=torch.float64) / 2
    times = torch.linspace(0, 1, 41, dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x @ mix) + t[:, None] * x

    def flow(x: Tensor) -> Tensor:
        return integrate(velocity, geometry, RK4(), x[None], times)[0][0]

    x0 = torch.randn(2, space.dim, generator=generator, dtype=torch.float64)
    exact = torch.stack([torch.linalg.slogdet(torch.func.jacrev(flow)(x)).logabsdet for x in x0])
    assert exact.abs().min() > 0.1
    prior, likelihood = GaussianPrior(1.0), Likelihood(ExactTrace(), Sampler(RK4(), 40))
    x1 = torch.stack([flow(x) for x in x0])
    found = likelihood.log_prob(velocity, geometry, prior, x1, [generator, generator])
    assert torch.allclose(found.value, prior.log_prob(x0, geometry) - exact, atol=1e-5)
