"""Log-densities against closed forms: Gaussians, linear flows, the dipole on spheres, and total mass 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsflow.fields import (
    Endpoint,
    GaussianField,
    GradientInformed,
    MLPField,
    NeuronTransformer,
    PNAField,
    RelationalTransformer,
    follow,
)
from wsflow.fields import Velocity as VelocityHead
from wsflow.flow import (
    RK4,
    Churn,
    DormandPrince,
    ExactTrace,
    GaussianPrior,
    GaussianProbes,
    Hutchinson,
    LatentNormal,
    Likelihood,
    NetworkPrior,
    NoDensityError,
    Prior,
    Probes,
    ProjectedNormal,
    RademacherProbes,
    Sampler,
    StartsPrior,
    StateGuidance,
    sample_generators,
)
from wsflow.flow.divergence import diverging
from wsflow.flow.prior import log_area
from wsflow.geometry import Euclidean, Geometric, Geometry, Normalized, PrincipalComponents
from wsflow.weightspace import Objective, WeightSpace, mlp

PROBES = {"gaussian": GaussianProbes(), "rademacher": RademacherProbes()}


TRACES = {
    "exact": ExactTrace(10**5),
    "rademacher": Hutchinson(64, pairs=10**5),
    "gaussian": Hutchinson(64, GaussianProbes(), 10**5),
}


def euclidean(*widths: int) -> Euclidean:
    return Euclidean(WeightSpace.from_module(mlp(list(widths), bias=len(widths) > 2), output_activation="identity"))


def sphere_and_line(size: int) -> Geometric:
    """S^(size - 1) in the first coordinates, and a line."""
    return Geometric(WeightSpace.from_module(mlp([size, 1, 1], bias=False), output_activation="identity"))


def density(likelihood: Likelihood, velocity, geometry: Geometry, x: Tensor, prior: Prior, singular: bool = False):
    return likelihood.log_prob(velocity, geometry, prior, x, sample_generators(0, range(len(x))), singular)


def normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).sum(1)


@pytest.mark.parametrize("widths", [(10, 1), (30, 16, 16, 2)], ids=["D=10", "D=802"])
def test_gaussian_to_gaussian(widths: tuple[int, ...], generator: torch.Generator):
    geometry, prior = euclidean(*widths), GaussianPrior(0.7)
    velocity = follow(GaussianField(geometry.space, std0=0.7, mean1=2.0, std1=0.25), VelocityHead(), geometry)
    x = 2 + 0.25 * torch.randn(2, geometry.dim, generator=generator)
    for solver, steps in ((RK4(), 20), (DormandPrince(1e-4, 1e-4), 1)):
        found = density(Likelihood(ExactTrace(2000), Sampler(solver, steps)), velocity, geometry, x, prior)
        assert (found.value - normal(x, 2.0, 0.25)).abs().max() / geometry.dim < 1e-4
        assert torch.equal(found.standard_error, torch.zeros(2))
    assert f"flat weight space of {geometry.dim} dimensions" in found.measure


def test_endpoint_fields_give_the_law_a_little_before_the_end(generator: torch.Generator):
    geometry = euclidean(10, 1)
    field = GaussianField(geometry.space, std0=0.7, mean1=2.0, std1=0.25, endpoint=True)
    x = 2 + 0.25 * torch.randn(3, 10, generator=generator, dtype=torch.float64)
    likelihood = Likelihood(ExactTrace(), delta=0.05)
    found = density(likelihood, follow(field, Endpoint(), geometry), geometry, x, GaussianPrior(0.7), True)
    exact = normal(x, 0.95 * 2, math.hypot(0.95 * 0.25, 0.05 * 0.7))
    assert (found.value - exact).abs().max() / 10 < 1e-4
    assert "t = 0.95" in found.measure


@pytest.mark.parametrize("probes", PROBES.values(), ids=PROBES.keys())
def test_hutchinson_is_unbiased_with_known_errors_that_fall_as_the_root_of_probes(
    probes: Probes, generator: torch.Generator
):
    geometry, n, counts = euclidean(10, 1), 150, [4, 16, 64, 256]
    matrix = torch.randn(10, 10, generator=generator, dtype=torch.float64) / 5
    x = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    start = x @ torch.linalg.matrix_exp(-matrix).T
    exact = normal(start, 0.0, 1.0) - matrix.trace()
    errors = []
    for count in counts:
        likelihood = Likelihood(Hutchinson(count, probes, 10**5), Sampler(RK4(), 6))
        found = density(likelihood, lambda x, t: x @ matrix.T, geometry, x, GaussianPrior(1.0))
        error = found.value - exact
        errors.append(error.square().mean().sqrt())
        symmetric = (matrix + matrix.T) / 2
        off = symmetric.square().sum() - (symmetric.diagonal().square().sum() if probes is PROBES["rademacher"] else 0)
        assert errors[-1] == pytest.approx(float((2 * off / count).sqrt()), rel=0.2)
        if count >= 16:
            assert (error.abs() < 3 * found.standard_error).double().mean() > 0.97
            assert (error / found.standard_error).square().mean() == pytest.approx(1, abs=0.35)
        assert abs(error.mean()) < 4 * errors[-1] / n**0.5
    logs = torch.stack(errors).log() - torch.tensor(counts).log().mul(-0.5)
    assert logs.max() - logs.min() < 0.25


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES.keys())
@pytest.mark.parametrize("size", [3, 12], ids=["S^2", "S^11"])
def test_the_dipole_on_a_sphere(size: int, trace: ExactTrace | Hutchinson, generator: torch.Generator):
    """v = a - <a, x> x, whose divergence is -(n - 1) <a, x>; the line keeps the prior's law."""
    geometry = sphere_and_line(size)
    x = geometry.project(torch.randn(20, size + 1, generator=generator, dtype=torch.float64))
    pole = torch.cat([torch.randn(size, generator=generator, dtype=torch.float64), torch.zeros(1)])

    def dipole(x: Tensor, t: Tensor) -> Tensor:
        return geometry.tangent(x, pole.expand_as(x))

    s, z = pole.norm(), x @ pole / pole.norm()
    exact = normal(x[:, size:], 0.0, 0.5) - log_area(size) - (size - 1) * (s.cosh() - z * s.sinh()).log()
    found = density(Likelihood(trace, Sampler(RK4(), 20)), dipole, geometry, x, ProjectedNormal(0.5))
    error = (found.value - exact).abs()
    assert (error < 2e-4 + 4 * found.standard_error).all()
    assert f"1 spheres and 1 lines, {size} dimensions" in found.measure


def test_total_mass_is_one(generator: torch.Generator):
    """Quadrature over S^1 x R, of a flow whose velocity bends and turns."""
    geometry = sphere_and_line(2)
    field = moved(MLPField(geometry.space, 0, 16, 2), 0.3)
    angle = torch.arange(32) * (2 * math.pi / 32)
    line = torch.linspace(-8, 8, 65)
    grid = torch.cartesian_prod(angle, line)
    x = torch.stack([grid[:, 0].cos(), grid[:, 0].sin(), grid[:, 1]], dim=1)
    velocity = follow(field, VelocityHead(), geometry)
    found = density(Likelihood(ExactTrace(pairs=10**5), Sampler(RK4(), 24)), velocity, geometry, x, ProjectedNormal())
    mass = found.value.exp().sum() * (2 * math.pi / 32) * 0.25
    assert float(mass) == pytest.approx(1, abs=2e-3)
    still = density(Likelihood(ExactTrace(pairs=10**5)), lambda x, t: 0 * x, geometry, x[:5], ProjectedNormal())
    assert not torch.allclose(found.value[:5], still.value, atol=0.1)


@pytest.mark.parametrize("kind", [Euclidean, Geometric])
@pytest.mark.parametrize("head", [VelocityHead(), Endpoint()], ids=["velocity", "endpoint"])
def test_the_density_of_a_sample_is_the_one_it_came_with(
    kind: type[Geometry], head: VelocityHead | Endpoint, space: WeightSpace
):
    geometry, prior = kind(space), ProjectedNormal(0.5)
    velocity = follow(moved(MLPField(space, geometry.dim - space.dim, 16, 2)), head, geometry)
    generators = [sample_generators(3, range(4), [1]) for _ in range(2)]
    x0 = prior.sample(4, geometry, torch.Generator().manual_seed(0))
    likelihood = Likelihood(Hutchinson(8), Sampler(RK4(), 24), delta=0.2)
    x, forward = likelihood.sample(velocity, geometry, prior, x0, generators[0], head.singular_end)
    back = likelihood.log_prob(velocity, geometry, prior, x, generators[1], head.singular_end)
    assert torch.allclose(geometry.project(x), x, atol=1e-6)
    assert (forward.value - prior.log_prob(x0, geometry)).abs().min() > 0.05
    assert torch.allclose(forward.value, back.value, atol=0.02)
    assert torch.allclose(forward.standard_error, back.standard_error, rtol=1e-2)
    assert forward.measure == back.measure
    assert forward.evaluations == back.evaluations == 96


def moved(field, size: float = 0.1):
    """A field with parameters away from where they start, since its last layers start at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in field.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return field.eval()


def informed(space: WeightSpace, extra: int) -> GradientInformed:
    """A field that takes a gradient of its own, with six data points."""
    field = GradientInformed(space, extra, lambda space, extra: MLPField(space, extra, 16, 2))
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    field.inputs, field.targets = data, torch.arange(6) % 2
    return field


FIELDS = {
    "informed": informed,
    "mlp": lambda space, extra: MLPField(space, extra, 16, 2),
    "relational": lambda space, extra: RelationalTransformer(space, extra, 16, 8, 2, 2),
    "neurons": lambda space, extra: NeuronTransformer(space, extra, 16, 2, 2),
    "pna": lambda space, extra: PNAField(space, extra, width=16, edge_width=8, message_width=8, depth=2),
}


def jacobian_of(function, x: Tensor) -> Tensor:
    """(dim, dim), row by row."""
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0][0] for value in function(x)[0]]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [Euclidean, Geometric])
@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS.keys())
def test_divergences_of_fields_are_traces_of_their_jacobians(make, kind: type[Geometry]):
    """Against one backward pass per coordinate and network; on spheres over tangent vectors alone."""
    space = WeightSpace.from_module(mlp([3, 2, 2]))
    geometry = kind(space)
    velocity = follow(moved(make(space, geometry.dim - space.dim)).double(), VelocityHead(), geometry)
    x = geometry.encode(torch.randn(2, space.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    exact = ExactTrace(pairs=7)
    v, rate = diverging(velocity, geometry, exact, exact.directions(x, []))(x, t)
    assert torch.allclose(v, velocity(x, t))
    for i in range(2):
        jacobian = jacobian_of(lambda y, i=i: velocity(geometry.project(y), t[i : i + 1]), x[i : i + 1])
        basis = geometry.tangent(x[i].expand(geometry.dim, -1), torch.eye(geometry.dim, dtype=torch.float64))
        left, values, _ = torch.linalg.svd(basis)
        tangent = left[:, values > 0.5]
        assert float((tangent.T @ jacobian @ tangent).trace()) == pytest.approx(-float(rate[i]), abs=1e-8)
    assert abs(rate).min() > 1e-3


def test_many_products_at_once_change_nothing(space: WeightSpace):
    geometry = Euclidean(space)
    velocity = follow(moved(MLPField(space, 0, 16, 2)), VelocityHead(), geometry)
    x = torch.randn(3, space.dim)
    for make in (ExactTrace, lambda pairs: Hutchinson(9, pairs=pairs)):
        results = [
            density(Likelihood(make(pairs), Sampler(RK4(), 2)), velocity, geometry, x, GaussianPrior())
            for pairs in (1, 10, 1000)
        ]
        assert torch.allclose(results[0].value, results[1].value, atol=1e-4)
        assert torch.allclose(results[0].value, results[2].value, atol=1e-4)


def test_projected_normal_states():
    geometry, prior = sphere_and_line(4), ProjectedNormal(0.5)
    x = prior.sample(4000, geometry, torch.Generator().manual_seed(0))
    assert torch.allclose(geometry.project(x), x, atol=1e-6)
    assert torch.allclose(x[:, :4].T @ x[:, :4] / 4000, torch.eye(4) / 4, atol=0.02)
    assert x[:, 4].std() == pytest.approx(0.5, rel=0.05)
    assert math.exp(log_area(4)) == pytest.approx(2 * math.pi**2)
    assert torch.allclose(prior.log_prob(x, geometry), normal(x[:, 4:], 0.0, 0.5) - log_area(4))


def test_projected_normal_scales_of_a_last_layer(space: WeightSpace):
    geometry, prior = Geometric(space), ProjectedNormal(0.1, scale=3.0)
    x = prior.sample(500, geometry, torch.Generator().manual_seed(0))
    assert x[:, -1].mean() == pytest.approx(math.log(3), abs=0.02)
    assert prior.log_prob(x, geometry).isfinite().all()
    lines = geometry.form.product.split(x)[1] - torch.tensor([0.0] * (geometry.form.product.rest - 1) + [math.log(3)])
    spheres = sum(count * log_area(size) for count, size in geometry.form.product.shapes)
    assert torch.allclose(prior.log_prob(x, geometry), normal(lines, 0.0, 0.1) - spheres, atol=1e-3)
    flat = Euclidean(space)
    assert torch.allclose(prior.log_prob(x[:, :-1], flat), GaussianPrior(0.1).log_prob(x[:, :-1], flat))


class Norm(Objective):
    def __call__(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return theta.square().sum(1)


@pytest.mark.parametrize(
    ("kind", "prior", "reason"),
    [
        (Normalized, ProjectedNormal(), "projected at the end"),
        (PrincipalComponents, LatentNormal(), "subspace of volume zero"),
        (Geometric, GaussianPrior(), "not Gaussian"),
        (Euclidean, NetworkPrior(), "program that draws"),
        (Euclidean, StartsPrior(torch.zeros(2, 2)), "no density"),
    ],
    ids=["normalized", "latent", "encoded gaussian", "initialiser", "starts"],
)
def test_what_has_no_density_is_refused_before_anything_is_computed(
    kind: type[Geometry], prior: Prior, reason: str, space: WeightSpace
):
    geometry = kind(space)

    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(NoDensityError, match=reason) as error:
        density(Likelihood(), never, geometry, torch.zeros(1, geometry.dim), prior)
    assert "\n" not in str(error.value)
    with pytest.raises(NoDensityError, match=reason):
        Likelihood().sample(never, geometry, prior, torch.zeros(1, geometry.dim), sample_generators(0, [0]))


def test_samplers_without_a_density_are_refused():
    for sampler in (Sampler(noise=0.1), Sampler(noise=Churn())):
        with pytest.raises(NoDensityError, match="noise"):
            Likelihood(sampler=sampler)
    with pytest.raises(NoDensityError, match="guidance"):
        Likelihood(sampler=Sampler(guidance=StateGuidance(Norm())))


def test_settings_are_checked():
    for make in (lambda: Hutchinson(1), lambda: ExactTrace(0), lambda: Likelihood(delta=0), lambda: ProjectedNormal(0)):
        with pytest.raises(ValueError, match="must"):
            make()
