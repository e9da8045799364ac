"""Networks of torch-geometric, and our own, as fields: symmetry, sparsity, training, checkpoints, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from graph_spaces import joined, residual
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric import nn as tg

from wsflow.description import build, plain
from wsflow.fields import Endpoint, MessagePassingField
from wsflow.fields.message_passing import edges_of
from wsflow.flow import GaussianPrior, Sampler
from wsflow.geometry import Geometric
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import Partition, WeightSpace, ZooBatch, mlp

Factory = Callable[[int], nn.Module]
EDGES = 6


class Triplets(nn.Module):
    """Sums over edges, with new edge states, that read the context of each graph and which graph a node is in."""

    def __init__(self, width: int, edge_width: int = EDGES) -> None:
        super().__init__()
        self.edge, self.node = nn.Linear(2 * width + edge_width, 7), nn.Linear(width + 7, width)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, batch_size: int, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert len(context) == batch_size
        source, target = edge_index
        edges = torch.tanh(self.edge(torch.cat([x[source], x[target], edge_attr], dim=1)))
        pooled = x.new_zeros(len(x), 7).index_add(0, target, edges)
        return self.node(torch.cat([x * context[batch], pooled], dim=1)), edges


def gine(width: int) -> nn.Module:
    return tg.GINEConv(tg.MLP([width, 8, 5], norm=None), edge_dim=EDGES)


def aggregated(width: int) -> nn.Module:
    """torch-geometric's own principal neighbourhood aggregation."""
    several = {"aggregators": ["mean", "max", "std"], "scalers": ["identity", "amplification"]}
    return tg.PNA(width, 8, 2, **several, deg=torch.tensor([0, 4, 4]), edge_dim=EDGES)


def chain(width: int) -> nn.Module:
    names = "x, edge_index, edge_attr"
    convolution = tg.GATv2Conv(width, 8, edge_dim=EDGES)
    return tg.Sequential(names, [(convolution, f"{names} -> x"), nn.ReLU(), nn.LayerNorm(8)])


NETWORKS: dict[str, Factory] = {
    "GAT": partial(tg.GAT, hidden_channels=8, num_layers=2, edge_dim=EDGES, norm="LayerNorm"),
    "GATv2-graph_norm": partial(tg.GAT, hidden_channels=8, num_layers=2, edge_dim=EDGES, v2=True, norm="GraphNorm"),
    "TransformerConv": partial(tg.TransformerConv, out_channels=4, heads=2, edge_dim=EDGES, bias=False),
    "lazy": lambda width: tg.GATv2Conv(-1, 8, edge_dim=EDGES),
    "GINE": gine,
    "PNA": aggregated,
    "Sequential": chain,
    "edge-states": Triplets,
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
every_space = pytest.mark.parametrize("name", SPACES)


def make(space: WeightSpace, network: Factory = NETWORKS["GAT"], extra: int = 0, **kwargs: object):
    sizes = {"width": 8, "edge_width": EDGES}
    return MessagePassingField(space, extra, network=network, **{**sizes, **kwargs})


class TestSymmetry:
    @every_network
    @pytest.mark.parametrize("name", ["mlp", "residual"])
    def test_hidden_permutations_of_the_input_permute_the_output(self, network: Factory, name: str) -> None:
        check_equivariance(randomise(make(SPACES[name](), network, extra=2)))

    @every_space
    @pytest.mark.parametrize("network", [NETWORKS["GAT"], Triplets], ids=["GAT", "edge-states"])
    def test_on_every_space(self, network: Factory, name: str) -> None:
        field = randomise(make(SPACES[name](), network))
        check_equivariance(field)
        check_one_by_one(field)

    @every_network
    def test_networks_do_not_see_each_other(self, network: Factory) -> None:
        check_one_by_one(randomise(make(SPACES["mlp"](), network, extra=1)))

    def test_embeddings_of_hidden_neurons_break_the_symmetry(self) -> None:
        field = randomise(make(SPACES["mlp"](), neuron_embedding=True))
        (x, t), perms = points(field), [torch.arange(g.size).roll(1) for g in field.space.hidden]
        assert differ(field(field.space.permute(x, perms), t), field.space.permute(field(x, t), perms))

    def test_with_a_geometry_that_has_a_coordinate_of_its_own(self) -> None:
        module = FlowMatchingModule(
            describe([5, 4, 3, 2]),
            geometry=Geometric,
            field=partial(MessagePassingField, network=Triplets, edge_width=EDGES),
        )
        assert module.field.extra == 1
        check_equivariance(randomise(module.field))


class TestWhatItSees:
    @every_space
    def test_the_output_starts_at_zero(self, name: str) -> None:
        field = make(SPACES[name](), extra=1)
        x, t = points(field)
        assert torch.equal(field(x.float(), t.float()), torch.zeros(3, field.dim))

    @every_network
    def test_time_and_extra_coordinates(self, network: Factory) -> None:
        check_time_and_extra_coordinates_are_read(randomise(make(SPACES["mlp"](), network, extra=1)))

    @pytest.mark.parametrize("name", ["GAT", "GATv2-graph_norm", "PNA"])
    def test_every_tensor_within_reach_of_two_layers(self, name: str) -> None:
        check_every_tensor_is_read(randomise(make(SPACES["mlp"](), NETWORKS[name])))

    def test_the_condition(self) -> None:
        field = randomise(make(SPACES["mlp"](), condition=2))
        x, t = points(field, 1)
        one, other = field(x.expand(2, -1), t.expand(2), torch.eye(2, dtype=torch.float64))
        assert differ(one, other)
        with pytest.raises(ValueError, match="needs a condition for every state"):
            field(x, t)

    @pytest.mark.parametrize("space", [residual(), joined()], ids=["residual", "joined"])
    def test_edges_join_the_neurons_of_their_weights(self, space: WeightSpace) -> None:
        """As many as edges of the base network, in the order of the blocks; nothing for neurons that are not joined."""
        names = [(group.name, i) for group in space.groups for i in range(group.size)]
        expected = [
            ((block.source, j), (block.target, i))
            for block in space.blocks
            for i in range(block.out)
            for j in range(block.in_)
        ]
        assert [(names[source], names[target]) for source, target in edges_of(space).T.tolist()] == expected

    def test_no_edge_is_formed_that_the_network_does_not_have(self) -> None:
        space, seen = WeightSpace.from_module(mlp([784, 10, 10]), check=False), []
        for reverse in (False, True):
            field = make(space, Triplets, reverse=reverse)
            field.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
            field(torch.randn(2, space.dim), torch.rand(2))
            edges = 7940 * (1 + reverse)
            assert seen[-1].shape == (2, 2 * edges)
            assert torch.equal(seen[-1][:, edges:], seen[-1][:, :edges] + 804)

    def test_scales_leave_the_symmetry(self) -> None:
        field = randomise(make(residual()))
        x, t = points(field, 20)
        before = field(x, t)
        field.calibrate(10 * x, 3 * x)
        assert differ(field(x, t), before)
        check_equivariance(field)


class TestTraining:
    @every_network
    @pytest.mark.parametrize("kwargs", [{}, {"extra": 1, "condition": 2}], ids=["plain", "extra-condition"])
    def test_every_parameter_has_a_gradient(self, network: Factory, kwargs: dict[str, int]) -> None:
        condition = torch.randn(4, 2).double() if "condition" in kwargs else None
        check_gradients(make(residual(), network, **kwargs), condition)

    @pytest.mark.parametrize("name", ["GAT", "edge-states"])
    def test_the_loss_falls(self, name: str) -> None:
        """Towards the endpoints of a law whose mean is 1 and whose standard deviation is a tenth."""
        torch.manual_seed(0)
        field = partial(MessagePassingField, network=NETWORKS[name], width=8, edge_width=EDGES)
        module = FlowMatchingModule(describe([5, 4, 3, 2]), field=field, parametrization=Endpoint())
        batch = ZooBatch(1 + 0.1 * torch.randn(32, module.space.dim), None, torch.arange(32))
        module.calibrate(batch)
        optimizer, generator = torch.optim.Adam(module.field.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = module.loss(batch, generator).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
)
def test_a_flow_made_in_python_is_rebuilt_from_its_checkpoint(tmp_path) -> None:
    network = partial(tg.GAT, hidden_channels=8, num_layers=2, edge_dim=EDGES)
    field = partial(MessagePassingField, network=network, width=8, edge_width=EDGES)
    module = FlowMatchingModule(describe([5, 4, 3, 2]), field=field, prior=GaussianPrior(0.5))
    randomise(module.field).float()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet)
    batch = ZooBatch(torch.randn(4, module.space.dim), None, torch.arange(4))
    loader = DataLoader(range(4), batch_size=4, collate_fn=lambda _: batch)
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(tmp_path / "flow.ckpt")
    loaded = FlowMatchingModule.load_from_checkpoint(tmp_path / "flow.ckpt", weights_only=True)
    sampler = Sampler(steps=2)
    assert torch.equal(loaded.sample(range(3), 0, sampler), module.sample(range(3), 0, sampler))


def test_arguments_that_a_class_takes_as_keywords_are_described_apart() -> None:
    described = plain(partial(tg.GAT, hidden_channels=8, num_layers=2, edge_dim=3))
    path = "torch_geometric.nn.models.basic_gnn.GAT"
    args = {"hidden_channels": 8, "num_layers": 2}
    assert described == {"class_path": path, "init_args": args, "dict_kwargs": {"edge_dim": 3}}
    assert build(described, 4).convs[0].edge_dim == 3


@pytest.mark.parametrize("name", WIDER)
@pytest.mark.parametrize("network", [NETWORKS["GAT"], Triplets], ids=["GAT", "edge-states"])
def test_other_widths(network: Factory, name: str) -> None:
    check_binding(randomise(make(SPACES[name](), network)), WIDER[name]())


class TestRefusals:
    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (partial(tg.GAT, hidden_channels=8, num_layers=2), "GAT does not read edge_attr.* edge_dim=6"),
            (partial(tg.GCN, hidden_channels=8, num_layers=2), "GCN does not read edge_attr"),
            (partial(tg.GCNConv, out_channels=8), "GCNConv cannot run .* unexpected keyword argument 'edge_attr'"),
            (partial(tg.GATConv, out_channels=8, edge_dim=5), "GATConv cannot run .* edges of width 6: .*shapes"),
            (partial(tg.GAT, hidden_channels=8, num_layers=2, edge_dim=EDGES, norm="BatchNorm"), "change each other"),
            (lambda width: Constant(lambda x, e: x * e.mean()), "change each other"),
            (lambda width: Constant(lambda x, e: x.mean(0)), "must give node states, one row for each of 10 nodes"),
            (lambda width: Constant(lambda x, e: (x, e[1:])), "edge states, one row for each of 40 edges"),
            (lambda width: Constant(lambda x, e: (x, e, x)), "cannot run .* too many values"),
            (lambda width: Ordered(), "depends on the order of nodes or edges"),
        ],
    )
    def test_networks_that_are_no_field(self, network: Factory, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            make(SPACES["mlp"](), network)
        assert "\n" not in str(caught.value)

    def test_grouped_convolutions_and_partitions(self) -> None:
        network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten())
        space = WeightSpace.from_module(network.append(nn.Linear(4, 2)), torch.randn(2, 2, 1, 1))
        with pytest.raises(ValueError, match=r"tensor '2.weight' is a grouped convolution of 2 parts"):
            make(space)
        space = residual(stream=6)
        groups = (space.groups[0], replace(space.groups[1], partition=Partition(3)), *space.groups[2:])
        with pytest.raises(ValueError, match=r"the 6 neurons of tensor 'stem.weight' fall into 3 parts"):
            make(replace(space, groups=groups))

    def test_spaces_that_it_cannot_be_bound_to(self) -> None:
        with pytest.raises(ValueError, match="one embedding per input and per output neuron"):
            make(SPACES["mlp"]()).bind(WeightSpace.from_module(mlp([7, 5, 4, 2])))
        with pytest.raises(ValueError, match="weights per edge"):
            make(residual()).bind(residual(kernel=5))
        with pytest.raises(ValueError, match="tied to its widths"):
            make(residual(), neuron_embedding=True).bind(residual(stream=6))


class Constant(nn.Module):
    """A function of node states and edge features, of nothing else."""

    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> object:
        return self.function(x, edge_attr)


class Ordered(nn.Module):
    """Adds to each node the features of its last edge."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        result = x.clone()
        for (_, target), edge in zip(edge_index.T.tolist(), edge_attr, strict=True):
            result[target] = x[target] + edge[0]
        return result
