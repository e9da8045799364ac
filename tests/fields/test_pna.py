"""Principal neighbourhood aggregation: symmetry, widths, training, and its formulas written out one edge at a time."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from conftest import describe
from graph_fields import (
    SPACES,
    WIDER,
    check_binding,
    check_equivariance,
    check_every_tensor_is_read,
    check_gradients,
    check_one_by_one,
    check_time_and_extra_coordinates_are_read,
    differ,
    points,
    randomise,
)
from graph_spaces import residual
from torch import Tensor
from torch.nn import functional as F
from trained_runs import train

from wsflow.fields import PNAField
from wsflow.fields.message_passing import edges_of
from wsflow.fields.pna import degrees
from wsflow.fields.pna_network import PNALayer
from wsflow.flow import TrajectoryCoupling
from wsflow.geometry import Geometric
from wsflow.module import FlowMatchingModule
from wsflow.tasks import BreastCancer
from wsflow.weightspace import GaussianInitializer, WeightSpace, ZooBatch, mlp

SMALL = {"width": 8, "edge_width": 5, "message_width": 4, "depth": 2}
every_space = pytest.mark.parametrize("name", SPACES)


def make(space: WeightSpace, extra: int = 0, **kwargs: object) -> PNAField:
    return PNAField(space, extra, **{**SMALL, **kwargs})


@every_space
@pytest.mark.parametrize("extra", [0, 2])
def test_hidden_permutations_of_the_input_permute_the_output(name: str, extra: int) -> None:
    check_equivariance(randomise(make(SPACES[name](), extra)))


@every_space
def test_networks_do_not_see_each_other(name: str) -> None:
    check_one_by_one(randomise(make(SPACES[name](), 1)))


def test_with_a_geometry_that_has_a_coordinate_of_its_own() -> None:
    module = FlowMatchingModule(describe([5, 4, 3, 2]), geometry=Geometric, field=partial(PNAField, **SMALL))
    assert module.field.extra == 1
    check_equivariance(randomise(module.field))


def test_embeddings_of_hidden_neurons_break_the_symmetry() -> None:
    field = randomise(make(SPACES["mlp"](), neuron_embedding=True))
    (x, t), perms = points(field), [torch.arange(g.size).roll(1) for g in field.space.hidden]
    assert differ(field(field.space.permute(x, perms), t), field.space.permute(field(x, t), perms))


@every_space
def test_the_output_starts_at_zero(name: str) -> None:
    field = make(SPACES[name](), 1)
    x, t = points(field)
    assert torch.equal(field(x.float(), t.float()), torch.zeros(3, field.dim))


@every_space
def test_every_tensor_reads_every_tensor_time_and_extra_coordinates(name: str) -> None:
    field = randomise(make(SPACES[name](), 1))
    check_every_tensor_is_read(field)
    check_time_and_extra_coordinates_are_read(field)


@pytest.mark.parametrize("name", ["mlp", "residual", "batch_norm", "joined"])
@pytest.mark.parametrize(
    "kwargs", [{}, {"extra": 1, "condition": 2}, {"neuron_embedding": True}], ids=["plain", "extra-condition", "neuron"]
)
def test_every_parameter_has_a_gradient(name: str, kwargs: dict[str, int]) -> None:
    condition = torch.randn(4, 2).double() if "condition" in kwargs else None
    check_gradients(make(SPACES[name](), **kwargs), condition)


@pytest.mark.parametrize("name", WIDER)
def test_other_widths(name: str) -> None:
    check_binding(randomise(make(SPACES[name]())), WIDER[name]())


def test_scalers_keep_the_degrees_that_they_were_made_for() -> None:
    """On other widths they scale by other degrees, relative to those of the first space."""
    old, new = WeightSpace.from_module(mlp([6, 5, 4, 2])), WeightSpace.from_module(mlp([6, 3, 9, 2]))
    field = make(old)
    scaler = field.network.network.layers[0].inward.aggr_module
    mean = (5 * math.log(7) + 4 * math.log(6) + 2 * math.log(5)) / 11
    assert scaler.avg_deg_log.item() == pytest.approx(mean)
    assert field.bind(new).network.network.layers[0].inward.aggr_module.avg_deg_log.item() == pytest.approx(mean)
    outward = field.network.network.layers[0].outward.aggr_module.avg_deg_log.item()
    assert outward == pytest.approx((6 * math.log(6) + 5 * math.log(5) + 4 * math.log(3)) / 15)


def test_conditions_are_given_exactly_where_they_are_taken() -> None:
    field = make(SPACES["mlp"](), condition=2)
    x, t = points(field)
    with pytest.raises(ValueError, match="needs a condition for every state"):
        field(x.float(), t.float())


def aggregated(messages: list[Tensor], delta: float) -> Tensor:
    """(12 d_m,) of the messages to one neuron."""
    if not messages:
        return torch.zeros(12 * SMALL["message_width"], dtype=torch.float64)
    m, s = torch.stack(messages), math.log(len(messages) + 1) / delta
    variance = m.var(dim=0, unbiased=False)
    found = torch.cat([m.mean(0), m.amin(0), m.amax(0), variance.sqrt() * (variance > 1e-5)])
    return torch.cat([found, s * found, found / s])


def test_a_layer_is_its_formula() -> None:
    """On a space with two blocks into one group, of one network, with loops over its edges."""
    space = residual()
    source, target = edges_of(space).tolist()
    inward, outward = degrees(torch.tensor(target)), degrees(torch.tensor(source))
    layer = randomise(PNALayer(SMALL["width"], SMALL["edge_width"], SMALL["message_width"], inward, outward))
    count, width = sum(group.size for group in space.groups), SMALL["width"]
    n, context = torch.randn(count, width, dtype=torch.float64), torch.randn(1, width, dtype=torch.float64)
    e = torch.randn(len(source), SMALL["edge_width"], dtype=torch.float64)
    new_n, new_e = layer(n, edges_of(space), e, context)

    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = layer.modulation(F.silu(context))[0].chunk(6)
    seen = (1 + scale) * F.layer_norm(n, (width,)) + shift
    update = layer.edge_update
    edges = [
        edge + update.mlp(update.edge(update.norm(edge)) + update.target(seen[i]) + update.source(seen[j]))
        for edge, i, j in zip(e, target, source, strict=True)
    ]
    torch.testing.assert_close(new_e, torch.stack(edges))

    for i in range(count):
        update = torch.zeros(width, dtype=torch.float64)
        for part, receivers, senders in ((layer.inward, target, source), (layer.outward, source, target)):
            logs = [math.log(receivers.count(k) + 1) for k in set(receivers)]
            messages = []
            for edge, receiver, sender in zip(edges, receivers, senders, strict=True):
                if receiver == i:
                    gamma, beta = part.film(layer.edge_norm(edge)).chunk(2)
                    messages.append((1 + gamma) * (part.target(seen[i]) + part.source(seen[sender])) + beta)
            update = update + part.out(aggregated(messages, sum(logs) / len(logs)))
        state = n[i] + (1 + gate) * update
        state = state + (1 + mlp_gate) * layer.mlp((1 + mlp_scale) * F.layer_norm(state, (width,)) + mlp_shift)
        torch.testing.assert_close(new_n[i], state, rtol=1e-6, atol=1e-6)


def test_it_learns_where_training_takes_networks() -> None:
    """On runs of their own, far below the loss of no motion at all."""
    task, generator = BreastCancer(), torch.Generator().manual_seed(0)
    start = GaussianInitializer().sample(task.space, 72, generator)
    runs = ZooBatch(train(task, start, epochs=10, lr=5e-3), start, torch.arange(72))
    field = partial(PNAField, width=16, edge_width=8, message_width=8, depth=2)
    module = FlowMatchingModule(dict(task.space.description), field=field, coupling=TrajectoryCoupling())
    heldout = runs.rows(slice(48, None))
    module.calibrate(runs.rows(slice(48)))
    optimizer = torch.optim.Adam(module.field.parameters(), lr=5e-3)

    def loss() -> float:
        with torch.no_grad():
            return module.loss(heldout, torch.Generator().manual_seed(1)).mean().item()

    before = loss()
    for _ in range(40):
        optimizer.zero_grad()
        module.loss(runs.rows(torch.randperm(48, generator=generator)[:8]), generator).mean().backward()
        optimizer.step()
    assert loss() < 0.75 * before
