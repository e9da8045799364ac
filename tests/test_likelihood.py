"""Log-densities under a flow in Python and on the command line."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import describe

from wsflow.api import Flow
from wsflow.fields import Endpoint, MLPField, Request, SelfConditioned
from wsflow.flow import (
    RK4,
    DormandPrince,
    ExactTrace,
    GaussianPrior,
    Heun,
    Hutchinson,
    NoDensityError,
    ProjectedNormal,
    Sampler,
)
from wsflow.geometry import Geometric
from wsflow.memory import peak_bytes
from wsflow.module import FlowMatchingModule

SPACE = describe([4, 3, 2])
FIELD = partial(MLPField, width=16, depth=2)


def flow(field=FIELD, **parts) -> Flow:
    module = FlowMatchingModule(SPACE, field=field, **parts)
    for parameter in module.field.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return Flow(module, {})


@pytest.mark.parametrize(
    "parts",
    [{"prior": GaussianPrior(0.5)}, {"prior": ProjectedNormal(0.5), "geometry": Geometric}],
    ids=["flat", "spheres"],
)
def test_samples_with_their_log_densities(parts):
    made = flow(**parts)
    sampler = Sampler(RK4(), 16)
    theta, density = made.sample(5, seed=2, sampler=sampler, with_log_prob=True, trace=ExactTrace())
    torch.testing.assert_close(theta, made.sample(5, seed=2, sampler=sampler), rtol=1e-4, atol=1e-5)
    again = made.log_prob(theta, ExactTrace(), sampler)
    torch.testing.assert_close(density.value, again.value, rtol=1e-4, atol=2e-3)
    assert density.evaluations == again.evaluations == 64
    assert not density.value.requires_grad


def test_batches_change_nothing():
    made = flow(prior=GaussianPrior(0.5))
    whole = made.sample(5, 3, with_log_prob=True, sampler=Sampler(Heun(), 3), batch_size=5)
    parts = [made.sample(n, 3, Sampler(Heun(), 3), 2, first, with_log_prob=True) for first, n in ((0, 3), (3, 2))]
    torch.testing.assert_close(torch.cat([theta for theta, _ in parts]), whole[0])
    torch.testing.assert_close(torch.cat([density.value for _, density in parts]), whole[1].value)
    ones = made.log_prob(whole[0], sampler=Sampler(Heun(), 3), batch_size=1)
    torch.testing.assert_close(ones.value, made.log_prob(whole[0], sampler=Sampler(Heun(), 3)).value)
    other = made.log_prob(whole[0], sampler=Sampler(Heun(), 3), seed=1)
    assert not torch.allclose(other.value, ones.value)
    assert (other.value - ones.value).abs().max() < 6 * (other.standard_error + ones.standard_error).max()


def test_a_memory_limit_is_kept():
    made, theta = flow(FIELD, prior=GaussianPrior(0.5)), torch.randn(64, 23)
    settings = {"trace": Hutchinson(25), "sampler": Sampler(RK4(), 1)}

    def peak(**limits: object) -> int:
        return peak_bytes(lambda: made.log_prob(theta, **settings, **limits), torch.device("cpu"))

    assert peak(batch_size=64) > 1.5 * 2**17
    assert peak(memory="128KiB") < 1.25 * 2**17
    with pytest.raises(ValueError, match="one network takes about"):
        made.log_prob(theta, **settings, memory="1kB")


def test_what_has_no_density_is_refused():
    with pytest.raises(NoDensityError, match="self-conditioned"):
        flow(partial(SelfConditioned, field=FIELD)).log_prob(torch.randn(2, 23))
    with pytest.raises(NoDensityError, match="noise"):
        flow().sample(2, sampler=Sampler(noise=0.1), with_log_prob=True)
    with pytest.raises(NoDensityError, match="not Gaussian"):
        flow(geometry=Geometric).log_prob(torch.randn(2, 23))
    with pytest.raises(ValueError, match="no networks"):
        flow().log_prob(torch.randn(0, 23))


def test_an_end_is_chosen_for_fields_that_predict_endpoints_alone():
    theta, sampler = torch.randn(2, 23), Sampler(Heun(), 4)
    with pytest.raises(ValueError, match=r"delta of 0\.05 changes nothing for Velocity fields"):
        flow(prior=GaussianPrior(0.5)).log_prob(theta, sampler=sampler, delta=0.05)
    made = flow(prior=GaussianPrior(0.5), parametrization=Endpoint())
    default, chosen = (made.log_prob(theta, sampler=sampler, delta=delta) for delta in (None, 0.01))
    assert torch.equal(default.value, chosen.value)
    assert not torch.allclose(made.log_prob(theta, sampler=sampler, delta=0.05).value, chosen.value)


def test_networks_take_the_number_type_of_the_flow():
    made, theta = flow(prior=GaussianPrior(0.5)), torch.randn(2, 23)
    expected = made.log_prob(theta).value
    assert torch.equal(made.log_prob(theta.double()).value, expected)
    made.module.double()
    torch.testing.assert_close(made.log_prob(theta).value, expected.double(), rtol=1e-4, atol=1e-4)
    assert made.log_prob(theta).value.dtype == torch.float64


@pytest.mark.parametrize("shape", [(23,), (2, 22), (2, 1, 23)], ids=str)
def test_what_is_no_matrix_of_networks_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"weights \(n, 23\)"):
        flow(prior=GaussianPrior(0.5)).log_prob(torch.randn(shape))


def test_densities_are_those_of_what_was_asked_for():
    made = flow(prior=GaussianPrior(0.5), labels=[{"name": "loss"}], label_dropout=0.2)
    made.module.conditioning.fit(torch.linspace(0, 1, 20)[:, None])
    settings, low = {"sampler": Sampler(RK4(), 8), "trace": ExactTrace()}, Request({"loss": [0.0]}, weight=1.5)
    theta, density = made.sample(3, with_log_prob=True, request=low, **settings)
    again, others = made.log_prob(theta, request=low, **settings), made.log_prob(theta, **settings)
    torch.testing.assert_close(density.value, again.value, rtol=1e-4, atol=5e-3)
    assert (again.value - others.value).abs().min() > 0.02
    assert again.evaluations == density.evaluations == 2 * others.evaluations == 64


def test_a_field_with_memory_needs_steps_that_are_not_tried_again():
    made = flow(partial(SelfConditioned, field=FIELD))
    with pytest.raises(ValueError, match="self-conditioned"):
        made.sample(2, sampler=Sampler(DormandPrince()))
    assert flow().sample(2, sampler=Sampler(DormandPrince(1e-2, 1e-2))).isfinite().all()


def test_divergences_that_are_not_finite_are_named():
    made = flow(prior=GaussianPrior(0.5))
    theta = torch.randn(3, 23)
    theta[1] = 1e30
    with pytest.raises(ValueError, match="network 1 is not finite"):
        made.log_prob(theta)
