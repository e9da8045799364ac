"""The base task's loss of the predicted endpoint: its value, its gradient, and what it needs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from planted_task import Small
from planted_task import networks as batch_of
from torch import Tensor

from wsflow.fields import Endpoint, MLPField, Velocity
from wsflow.flow import GeodesicPath
from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.losses import FunctionalTerm
from wsflow.module import FlowMatchingModule
from wsflow.tasks import Gaussians

GEOMETRIES = {"euclidean": Euclidean, "normalized": Normalized, "geometric": Geometric}
FIELD = partial(MLPField, width=8, depth=1)
PARAMETRIZATIONS = {"endpoint": Endpoint(), "projected": Endpoint(project=True), "velocity": Velocity()}


def module_of(term: FunctionalTerm | None, **arguments) -> FlowMatchingModule:
    module = FlowMatchingModule(dict(Small.network), field=FIELD, functional=term, **arguments)
    generator = torch.Generator().manual_seed(2)
    for parameter in module.field.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def gradient(loss: Tensor, module: FlowMatchingModule) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(module.field.parameters()))])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
def test_the_endpoint_of_the_right_output_is_the_network(parametrization, geometry, space, theta):
    """On a geodesic the velocity to x1, kept to, arrives there; so does the predicted step."""
    geometry = geometry(space)
    x0, x1 = geometry.encode(theta), geometry.encode(theta.flip(0) + 0.3)
    t = torch.linspace(0, 0.9, 7).double()
    sample = GeodesicPath(0.1).sample(x0, x1, t, geometry, generator())
    end = parametrization.endpoint(parametrization.target(geometry, sample), geometry, sample.x_t, t)
    torch.testing.assert_close(end, x1, atol=1e-7, rtol=0)
    other = parametrization.endpoint(torch.randn_like(x0), geometry, sample.x_t, t)
    torch.testing.assert_close(geometry.exp(x0, geometry.log(x0, other)), other, atol=1e-7, rtol=0)
    assert (other - x1).abs().max() > 0.1


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_the_term_adds_the_gradient_of_the_task_loss(geometry, shared):
    """The gradient of training less that of plain training is the one written out network by network."""
    task, term = Small(), FunctionalTerm(weight=0.7, batch_size=16, power=2.0, after=0.2, shared=shared)
    term.attach(task)
    module, plain = module_of(term, geometry=geometry), module_of(None, geometry=geometry)
    networks = batch_of(module.space)
    loss, parts = module.training_loss(networks, generator())
    bare, bare_parts = plain.training_loss(networks, generator())
    assert parts["flow_loss"] == bare_parts["flow_loss"] == bare
    added = gradient(loss, module) - gradient(bare, plain)

    source = generator()
    sample = module.draw(networks, source)
    inputs, targets = task.data("train")
    if shared:
        rows = torch.randperm(40, generator=source)[:16].expand(6, -1)
    else:
        rows = torch.randint(40, (6, 16), generator=source)
    ends = sample.x_t + (1 - sample.t)[:, None] * module.field(sample.x_t, sample.t)
    if geometry is Geometric:
        step = module.geometry.tangent(sample.x_t, module.field(sample.x_t, sample.t))
        ends = module.geometry.exp(sample.x_t, (1 - sample.t)[:, None] * step)
    total = torch.tensor(0.0)
    for end, t, row in zip(module.geometry.decode(module.geometry.project(ends)), sample.t, rows, strict=True):
        logits = module.space.forward(end[None], inputs[row])[0]
        if t >= 0.2:
            total = total + t**2 * torch.nn.functional.cross_entropy(logits, targets[row])
    torch.testing.assert_close(parts["functional_loss"], total.detach() / 6)
    torch.testing.assert_close(added, 0.7 * gradient(total / 6, module), atol=1e-6, rtol=1e-4)
    assert added.abs().max() > 1e-4


def test_the_validation_loss_is_the_plain_one():
    term = FunctionalTerm(weight=10.0, batch_size=8)
    module, plain = module_of(term), module_of(None)
    networks = batch_of(module.space)
    assert torch.equal(module.loss(networks, generator()), plain.loss(networks, generator()))


def test_the_weight_of_a_time():
    t = torch.tensor([0.0, 0.2, 0.5, 1.0])
    torch.testing.assert_close(FunctionalTerm(power=2, after=0.3).time_weight(t), torch.tensor([0, 0, 0.25, 1.0]))
    torch.testing.assert_close(FunctionalTerm(power=0).time_weight(t), torch.ones(4))


@pytest.mark.parametrize(
    ("task", "words"),
    [(None, "there is none"), (Gaussians(), "task gaussians has no data"), (Small(), "batch_size 128 does not fit")],
    ids=["no-task", "no-data", "few-data"],
)
def test_what_a_term_needs_is_said(task, words):
    with pytest.raises(ValueError, match=words):
        FunctionalTerm().attach(task)
    with pytest.raises(ValueError, match="there is none"):
        module_of(FunctionalTerm()).training_loss(batch_of(module_of(None).space), generator())


@pytest.mark.parametrize(
    "arguments", [{"weight": -1.0}, {"power": -1.0}, {"batch_size": 0}, {"after": 1.0}], ids=lambda a: next(iter(a))
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FunctionalTerm(**arguments)


def test_the_scale_is_that_of_the_outputs():
    """A form without the last layer's scale has the loss of the whole network once the scale is given back."""
    task = Small()
    space = task.space
    theta = torch.randn(1, space.dim, generator=generator()).double()
    form = Geometric(space, keep_scale=False)
    labels = form.decode(form.encode(theta))
    inputs, targets = (part.double() if part.is_floating_point() else part for part in task.data("train"))
    whole, part = space.forward(theta, inputs), space.forward(labels, inputs)
    scale = float((whole * part).sum() / part.square().sum())
    term = FunctionalTerm(batch_size=None, scale=scale)
    term.attach(task)
    torch.testing.assert_close(term(labels, torch.ones(1)), task.loss(whole, targets))
    with pytest.raises(ValueError, match="scale must be positive"):
        FunctionalTerm(scale=0)
