"""The base task's loss along the flow's own way: the states it is taken at, its gradient, and what it does."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from planted_task import Small, networks
from torch.nn import functional as F

from wsflow.fields import Endpoint, MLPField, RelationalTransformer, SelfConditioned, Velocity
from wsflow.flow import GaussianPrior, PowerGrid, Sampler, TrajectoryCoupling
from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.losses import RolloutTerm
from wsflow.module import FlowMatchingModule

GEOMETRIES = {"euclidean": Euclidean, "normalized": Normalized, "geometric": Geometric}
LABELS = [{"name": "loss", "kind": "number"}]


def module_of(term, std=0.3, **arguments):
    field = arguments.pop("field", partial(MLPField, width=8, depth=1))
    module = FlowMatchingModule(dict(Small.network), field=field, functional=term, **arguments)
    generator = torch.Generator().manual_seed(2)
    for parameter in module.field.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return module


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def gradient(loss, module):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(module.field.parameters()))])


@pytest.mark.parametrize(("steps", "after"), [(20, 0.55), (25, 0.56), (35, 0.2), (16, 0.2), (64, 0.5)])
def test_a_state_at_the_very_time_counts(steps, after):
    late = RolloutTerm(steps=steps, after=after).late
    assert late[0] == pytest.approx(-(-round(steps * after, 6) // 1) / steps)
    assert len(late) == steps - round(late[0] * steps)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("parametrization", [Velocity(), Endpoint()], ids=["velocity", "endpoint"])
def test_the_endpoint_of_the_last_state_is_the_sample(geometry, parametrization):
    """States are the sampler's own, and the last step from them ends where sampling does."""
    term = RolloutTerm(steps=5, grid=PowerGrid(2.0), after=0.1, every=1)
    module = module_of(term, geometry=geometry, parametrization=parametrization)
    x0 = module.prior.sample(4, module.geometry, generator())
    x, t, _ = term.states(module.velocity, module.geometry, x0)
    times = [(k / 5) ** 2 for k in (2, 3, 4)]
    assert t.tolist() == pytest.approx([time for time in times for _ in range(4)])
    for state, time, end in zip(x.split(4), times, [*times[1:], 1.0], strict=True):
        moved = module.velocity(state, torch.full((4,), time))
        state = module.geometry.exp(state, (end - time) * moved)
        if end < 1:
            torch.testing.assert_close(state, x[[i for i in range(12) if abs(float(t[i]) - end) < 1e-6]])
    sampler = Sampler(steps=5, power=2.0)
    expected = sampler(module.velocity, module.geometry, x0, singular_end=parametrization.singular_end)
    output = module.field(x[-4:], t[-4:])
    end = parametrization.endpoint(output, module.geometry, x[-4:], t[-4:])
    torch.testing.assert_close(module.geometry.finish(end), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labels"])
def test_the_term_adds_the_gradient_at_the_states_that_the_flow_reaches(labels):
    """The gradient of training less that of plain training is the one written out state by state."""
    task = Small()
    term = RolloutTerm(weight=0.7, batch_size=None, steps=4, every=3, after=0.4, power=2.0, scale=1.7)
    term.attach(task)
    arguments = {"coupling": TrajectoryCoupling(), "labels": labels, "label_dropout": 0.0}
    module, plain = module_of(term, **arguments), module_of(None, **arguments)
    batch = networks(module.space, 7)
    if labels:
        batch = batch._replace(label=torch.linspace(0, 1, 7)[:, None])
        for one in (module, plain):
            one.conditioning.fit(batch.label)
    loss, parts = module.training_loss(batch, generator())
    bare, bare_parts = plain.training_loss(batch, generator())
    assert parts["flow_loss"] == bare_parts["flow_loss"] == bare
    added = gradient(loss, module) - gradient(bare, plain)

    source = generator()
    module.draw(batch, source)
    told = None if labels is None else module.conditioning(module.conditioning.drop(batch.label, source))
    starts = module.prior.sample(7, module.geometry, source)
    inputs, targets = task.data("train")
    total, count = torch.tensor(0.0), 0
    for row in (0, 3, 6):
        x = starts[row : row + 1]
        label = None if told is None else told[row : row + 1]
        for t, end in pairwise([0.0, 0.25, 0.5, 0.75, 1.0]):
            v = module.velocity(x, torch.tensor([t]), label)
            if t >= 0.4:
                logits = 1.7 * module.space.forward(x.detach() + (1 - t) * v, inputs)[0]
                total = total + t**2 * F.cross_entropy(logits, targets)
                count += 1
            x = (x + (end - t) * v).detach()
    torch.testing.assert_close(parts["functional_loss"], total.detach() / count)
    torch.testing.assert_close(added, 0.7 * gradient(total / count, module), atol=1e-6, rtol=1e-4)
    assert count == 6
    assert added.abs().max() > 1e-4


def test_starts_are_new_at_every_step_and_not_those_of_the_runs():
    term = RolloutTerm(batch_size=None, steps=2, every=1, after=0.0)
    term.attach(Small())
    seen = []
    module = module_of(term, coupling=TrajectoryCoupling(), prior=GaussianPrior(0.2))
    states = term.states
    term.states = lambda velocity, geometry, x0, told: seen.append(x0) or states(velocity, geometry, x0, told)
    batch, source = networks(module.space), generator()
    for _ in range(2):
        module.training_loss(batch, source)
    assert all((x0[:, None] - batch.start).norm(dim=2).min() > 0.5 for x0 in seen)
    assert (seen[0] - seen[1]).norm(dim=1).min() > 0.5
    assert torch.cat(seen).std() == pytest.approx(0.2, rel=0.1)


def test_the_term_lowers_the_loss_of_samples():
    """What samples score after equal trainings with and without the term, of networks that solve nothing."""
    task = Small()

    def score(term):
        module = module_of(term, std=0.1)
        batch, source = networks(module.space, 16), generator()
        optimizer = torch.optim.Adam(module.field.parameters(), lr=1e-2)
        for _ in range(100):
            loss, _ = module.training_loss(batch, source)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(task.evaluate(module.sample(range(50), sampler=Sampler(steps=4)), "train")["loss"].mean())

    term = RolloutTerm(weight=1.0, batch_size=None, steps=4, every=1, after=0.5)
    term.attach(task)
    with_term, without = score(term), score(None)
    assert with_term < 0.7 * without, (with_term, without)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "every must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"weight": -1.0}, "weight"),
        ({"steps": 2, "after": 0.6}, "the last step begins at 0.5, before after = 0.6"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        RolloutTerm(**arguments)


def test_a_field_with_memory_is_refused():
    field = partial(SelfConditioned, field=partial(RelationalTransformer, width=8, edge_width=4, depth=1))
    with pytest.raises(ValueError, match="follows a flow of states alone"):
        FlowMatchingModule(dict(Small.network), field=field, functional=RolloutTerm())


def test_processes_follow_the_networks_that_one_process_would(monkeypatch):
    term, geometry = RolloutTerm(batch_size=None, steps=1, every=4, after=0.0), Euclidean(Small().space)
    x0 = torch.randn(16, geometry.dim, generator=generator())

    def followed(x):
        return term.states(lambda x, t, told: torch.zeros_like(x), geometry, x)[0]

    alone = followed(x0)
    assert len(followed(x0[:6])) == 2
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert torch.equal(torch.cat([followed(part) for part in x0.split(8)]), alone)
    with pytest.raises(ValueError, match="every = 4 does not divide the 6 networks of a batch that each of 2"):
        followed(x0[:6])


def test_networks_of_a_rollout_share_their_data():
    with pytest.raises(ValueError, match="see the same data points"):
        RolloutTerm(shared=False)
