"""The Relational Transformer: symmetry, what it sees, widths, and its formula written out with loops.

Heads that start at zero would hide mistakes, so the fields here have random values in every parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from graph_spaces import convolutional, joined, positions, residual
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.fields import MLPField, RelationalTransformer
from wsflow.fields.relational_transformer import Attention, Layer
from wsflow.weightspace import Partition, WeightSpace, mlp
from wsflow.weightspace.symmetry import random_permutations

Module = TypeVar("Module", bound=nn.Module)
SMALL = {"width": 12, "edge_width": 6, "depth": 2, "heads": 3}


SPACES: dict[str, Callable[[], WeightSpace]] = {
    "30-16-16-2": lambda: WeightSpace.from_module(mlp([30, 16, 16, 2])),
    "no_bias": lambda: WeightSpace.from_module(mlp([5, 4, 3, 2], bias=False)),
    "tanh": lambda: WeightSpace.from_module(mlp([5, 4, 3, 2], activation="tanh"), output_activation="identity"),
    "one_hidden": lambda: WeightSpace.from_module(mlp([5, 6, 2])),
    "linear": lambda: WeightSpace.from_module(nn.Linear(5, 2)),
    "residual": residual,
    "cnn": convolutional,
    "batch_norm": lambda: convolutional(batch_norm=True, pool=True),
    "joined": joined,
    "positions": positions,
}
every_space = pytest.mark.parametrize("space", [make() for make in SPACES.values()], ids=SPACES.keys())
DEEP, SMALLER = ({name: SPACES[name] for name in SPACES if name != other} for other in ("linear", "30-16-16-2"))
deep_space = pytest.mark.parametrize("space", [make() for make in DEEP.values()], ids=DEEP.keys())
smaller_space = pytest.mark.parametrize("space", [make() for make in SMALLER.values()], ids=SMALLER.keys())


def randomise(module: Module) -> Module:
    """Random values in every parameter, in float64."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=1 / math.sqrt(p.shape[-1]) if p.ndim > 1 else 0.5)
    return module


def make(space: WeightSpace, extra: int = 0, **kwargs: object) -> RelationalTransformer:
    return randomise(RelationalTransformer(space, extra, **{**SMALL, **kwargs}))


def points(space: WeightSpace, n: int = 3, extra: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(n, space.dim + extra, dtype=torch.float64), torch.rand(n, dtype=torch.float64)


def swap(space: WeightSpace, x: Tensor, role: str) -> Tensor:
    """Let the first two neurons of an input or output group change places."""
    hidden = replace(space, groups=tuple(replace(g, role="hidden") for g in space.groups))
    orders = [torch.arange(g.size) for g in space.groups]
    for order, group in zip(orders, space.groups, strict=True):
        if group.role == role:
            order[:2] = torch.tensor([1, 0])
    return hidden.permute(x, orders)


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3 * b.abs().max())


class TestSymmetry:
    @every_space
    @pytest.mark.parametrize("extra", [0, 2])
    def test_hidden_permutations_of_the_input_permute_the_output(self, space: WeightSpace, extra: int) -> None:
        field, (x, t) = make(space, extra), points(space, 3, extra)
        perms = random_permutations(space, 3)

        def moved(y: Tensor) -> Tensor:
            return torch.cat([space.permute(y[:, : space.dim], perms), y[:, space.dim :]], dim=1)

        out = field(x, t)
        torch.testing.assert_close(field(moved(x), t), moved(out), rtol=1e-11, atol=1e-11 * out.abs().max().item())
        assert not space.hidden or differ(moved(out), out)

    @deep_space
    @pytest.mark.parametrize("role", ["input", "output"])
    def test_input_and_output_neurons_have_an_order(self, space: WeightSpace, role: str) -> None:
        field, (x, t) = make(space), points(space)
        moved = swap(space, x, role)
        assert differ(moved, x)
        assert differ(field(moved, t), swap(space, field(x, t), role))

    def test_inputs_are_told_apart_by_embeddings_alone(self) -> None:
        """Without what reads and writes whole vectors along the input axis, the embeddings are left."""
        space = SPACES["one_hidden"]()
        field, (x, t) = make(space), points(space)
        with torch.no_grad():
            for module in (field.read[0].row, field.write[0].row):
                module.weight.zero_()
                module.bias.zero_()
        assert differ(field(swap(space, x, "input"), t), swap(space, field(x, t), "input"))
        with torch.no_grad():
            field.node_in[0].embedding.copy_(field.node_in[0].embedding[:1].clone())
        torch.testing.assert_close(field(swap(space, x, "input"), t), swap(space, field(x, t), "input"))

    @deep_space
    def test_embeddings_of_hidden_neurons_break_the_symmetry(self, space: WeightSpace) -> None:
        field, (x, t) = make(space, neuron_embedding=True), points(space)
        perms = [torch.arange(group.size).roll(1) for group in space.hidden]
        assert differ(field(space.permute(x, perms), t), space.permute(field(x, t), perms))


class TestWhatItSees:
    @every_space
    def test_the_output_starts_at_zero(self, space: WeightSpace) -> None:
        field, (x, t) = RelationalTransformer(space, 1, **SMALL), points(space, 3, 1)
        assert torch.equal(field(x.float(), t.float()), torch.zeros(3, space.dim + 1))

    @every_space
    def test_time_changes_every_coordinate(self, space: WeightSpace) -> None:
        field, (x, _) = make(space, 1), points(space, 1, 1)
        early, late = field(x.expand(2, -1), torch.tensor([0.2, 0.6], dtype=torch.float64))
        assert (early - late).abs().min() > 1e-9
        for tensor in space.tensors:
            assert differ(early[tensor.slice], late[tensor.slice])

    @smaller_space
    def test_every_output_depends_on_every_tensor_and_extra_coordinate(self, space: WeightSpace) -> None:
        field, (x, t) = make(space, 1), points(space, 1, 1)
        pieces = [tensor.slice for tensor in space.tensors] + [slice(space.dim, space.dim + 1)]
        jacobian = torch.func.jacrev(lambda x: field(x, t)[0])(x)[:, 0]
        for row in pieces:
            for column in pieces:
                assert jacobian[row, column].abs().max() > 1e-6

    def test_the_condition_changes_every_coordinate(self) -> None:
        space = SPACES["tanh"]()
        field, (x, t) = make(space, condition=2), points(space, 1)
        one, other = field(x.expand(2, -1), t.expand(2), torch.eye(2, dtype=torch.float64))
        assert (one - other).abs().min() > 1e-9

    def test_a_condition_is_given_exactly_where_it_is_taken(self) -> None:
        space = SPACES["tanh"]()
        x, t = points(space)
        with pytest.raises(ValueError, match="needs a condition for every state"):
            make(space, condition=2)(x, t)
        with pytest.raises(ValueError, match="any other field takes none"):
            make(space)(x, t, torch.zeros(3, 2))

    @every_space
    def test_networks_do_not_see_each_other_and_batches_have_any_size(self, space: WeightSpace) -> None:
        field, (x, t) = make(space), points(space, 5)
        together = field(x, t)
        for size in (1, 2, 3):
            parts = [field(*part) for part in zip(x.split(size), t.split(size), strict=True)]
            torch.testing.assert_close(torch.cat(parts), together, rtol=1e-11, atol=1e-11)
        assert field(x[:0], t[:0]).shape == (0, space.dim)

    def test_scales_are_per_tensor_and_leave_the_symmetry(self) -> None:
        space = residual()
        field, (x, t) = make(space), points(space, 20)
        before = field(x, t)
        field.calibrate(10 * x, 3 * x)
        assert differ(field(x, t), before)
        perms = random_permutations(space, 20)
        torch.testing.assert_close(field(space.permute(x, perms), t), space.permute(field(x, t), perms))


class TestTraining:
    @every_space
    @pytest.mark.parametrize(
        "kwargs",
        [{}, {"extra": 1, "condition": 2}, {"neuron_embedding": True}, {"depth": 1}],
        ids=["plain", "extra-condition", "neuron_embedding", "one_layer"],
    )
    def test_every_parameter_has_a_gradient(self, space: WeightSpace, kwargs: dict[str, int]) -> None:
        """As data-parallel training needs: a gradient from the first step on, and none that stays zero."""
        torch.manual_seed(1)
        extra = kwargs.get("extra", 0)
        field, (x, t) = RelationalTransformer(space, **{**SMALL, **kwargs}).double(), points(space, 4, extra)
        condition = torch.randn(4, 2).double() if field.condition is not None else None
        (field(x, t, condition) - x).square().mean().backward()
        assert [name for name, p in field.named_parameters() if p.grad is None] == []
        torch.optim.SGD(randomise(field).parameters(), lr=1e-3).step()
        field.zero_grad()
        (field(x, t, condition) - x).square().mean().backward()
        assert [name for name, p in field.named_parameters() if not p.grad.abs().max() > 1e-10] == []

    def test_sizes_and_parameters_do_not_depend_on_hidden_widths(self) -> None:
        sizes = [
            {name: p.shape for name, p in RelationalTransformer(residual(*widths), **SMALL).named_parameters()}
            for widths in ((5, 4), (8, 3))
        ]
        assert sizes[0] == sizes[1]

    def test_kernels_are_read_and_written_in_full(self) -> None:
        """Of every edge, each position of its kernel changes the output in a way of its own, and is written freely."""
        space = convolutional()
        field, (x, t) = make(space, edge_width=9), points(space, 1)
        jacobian = torch.func.jacrev(lambda x: field(x, t)[0])(x)[:, 0]
        for block in space.blocks:
            edge = block.view(torch.arange(space.dim))[0, 0]
            assert torch.linalg.matrix_rank(jacobian[:, edge], rtol=1e-8) == block.depth
            assert torch.linalg.matrix_rank(jacobian[edge], rtol=1e-8) == block.depth

    def test_grouped_convolutions_are_refused(self) -> None:
        network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten())
        network.append(nn.Linear(4, 2))
        space = WeightSpace.from_module(network, torch.randn(2, 2, 1, 1))
        with pytest.raises(ValueError, match=r"tensor '2.weight' is a grouped convolution of 2 parts"):
            make(space)
        assert MLPField(space, width=4)(*(p.float() for p in points(space))).shape == (3, space.dim)

    def test_partitioned_groups_are_refused(self) -> None:
        space = residual(stream=6)
        groups = (space.groups[0], replace(space.groups[1], partition=Partition(3)), *space.groups[2:])
        with pytest.raises(ValueError, match=r"the 6 neurons of tensor 'stem.weight' fall into 3 parts"):
            make(replace(space, groups=groups))

    def test_heads_divide_the_width(self) -> None:
        with pytest.raises(ValueError, match="width 12 is not divisible by heads 5"):
            RelationalTransformer(residual(), width=12, heads=5)


class TestBinding:
    WIDER = (
        (SPACES["30-16-16-2"](), WeightSpace.from_module(mlp([30, 7, 20, 2]))),
        (SPACES["one_hidden"](), WeightSpace.from_module(mlp([5, 11, 2]))),
        (residual(), residual(stream=3, middle=7)),
        (convolutional(), convolutional(channels=[6, 7])),
        (positions(), positions(hidden=7)),
    )

    @pytest.mark.parametrize(("old", "new"), WIDER, ids=["deep", "one_hidden", "residual", "cnn", "positions"])
    def test_a_bound_field_shares_parameters_and_keeps_the_symmetry(self, old: WeightSpace, new: WeightSpace) -> None:
        field, (x, t) = make(old), points(new)
        perms, bound = random_permutations(new, 3), field.bind(new)
        torch.testing.assert_close(bound(new.permute(x, perms), t), new.permute(bound(x, t), perms))
        assert [id(p) for p in bound.parameters()] == [id(p) for p in field.parameters()]
        before, (y, s) = bound(x, t), points(old)
        field(y, s).sum().backward()
        with torch.no_grad():
            for p in field.parameters():
                p.sub_(1e-2 * p.grad)
        assert differ(bound(x, t), before)
        assert field(y, s).shape == y.shape

    @pytest.mark.parametrize("widths", [[6, 4, 3, 2], [5, 4, 3, 4]], ids=["inputs", "outputs"])
    def test_other_ends_are_refused(self, widths: list[int]) -> None:
        field = make(WeightSpace.from_module(mlp([5, 4, 3, 2])))
        with pytest.raises(ValueError, match="one embedding per input and per output neuron"):
            field.bind(WeightSpace.from_module(mlp(widths)))

    def test_other_kernels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="weights per edge"):
            make(residual()).bind(residual(kernel=5))

    def test_another_depth_is_refused(self) -> None:
        with pytest.raises(ValueError, match="each tensor of one space must correspond"):
            make(WeightSpace.from_module(mlp([5, 4, 3, 2]))).bind(WeightSpace.from_module(mlp([5, 4, 2])))

    def test_embeddings_of_hidden_neurons_tie_it_to_its_widths(self) -> None:
        with pytest.raises(ValueError, match="tied to its widths"):
            make(residual(), neuron_embedding=True).bind(residual(stream=6))


# The module docstring's formula, one edge at a time.

Edge = tuple[tuple[int, int], tuple[int, int], Tensor]
"""A receiving neuron (group, index), a sending neuron, and the state of the edge between them."""


def messages(attention: Attention, nodes: list[Tensor], edges: list[Edge]) -> dict[tuple[int, int], Tensor]:
    """m_i of every neuron that receives."""
    d, d_e, heads = attention.out.in_features, edges[0][2].shape[0], attention.heads
    d_h = d // heads
    result = {}
    for receiver in sorted({receiver for receiver, _, _ in edges}):
        query, a = attention.receive(nodes[receiver[0]][receiver[1]]).split([d, heads * d_e])
        pooled = torch.zeros(d, dtype=torch.float64)
        for head in range(heads):
            mine, its = slice(head * d_h, (head + 1) * d_h), slice(head * d_e, (head + 1) * d_e)
            scores, values = [], []
            for i, j, edge in edges:
                if i == receiver:
                    key, value, c = attention.send(nodes[j[0]][j[1]]).split([d, d, heads * d_e])
                    scores.append(query[mine] @ key[mine] / d_h**0.5 + (a[its] + c[its]) @ edge / d_e**0.5)
                    values.append(value[mine] + edge @ attention.edge_values[head])
            weights = torch.stack(scores).softmax(dim=0)
            pooled[mine] = sum(w * v for w, v in zip(weights, values, strict=True))
        result[receiver] = attention.out(pooled)
    return result


def reference(
    layer: Layer, nodes: list[Tensor], edges: list[Tensor], joins: tuple[tuple[int, int], ...], context: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """A layer on one network: nodes (n, d) by group and edges (out, in, d_e) by block."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = layer.modulation(F.silu(context)).chunk(6)
    norm = layer.edge_norm
    seen = [shift + (1 + scale) * F.layer_norm(n, n.shape[-1:]) for n in nodes]
    forward: list[Edge] = []
    for block, (target, source) in zip(edges, joins, strict=True):
        for i in range(block.shape[0]):
            for j in range(block.shape[1]):
                normed = F.layer_norm(block[i, j], block.shape[-1:], norm.weight, norm.bias)
                forward.append(((target, i), (source, j), normed))
    into = messages(layer.inward, seen, forward)
    out_of = messages(layer.outward, seen, [(j, i, edge) for i, j, edge in forward])
    new_nodes = []
    for group, states in enumerate(nodes):
        rows = []
        for i, n in enumerate(states):
            total = into.get((group, i), 0) + out_of.get((group, i), 0)
            n = n + (1 + gate) * total
            n = n + (1 + mlp_gate) * layer.mlp(mlp_shift + (1 + mlp_scale) * F.layer_norm(n, n.shape))
            rows.append(n)
        new_nodes.append(torch.stack(rows))
    new_edges = [block.clone() for block in edges]
    at = [(block, i, j) for block, e in enumerate(edges) for i in range(e.shape[0]) for j in range(e.shape[1])]
    for (block, i, j), (to, of, edge) in zip(at, forward, strict=True):
        target, source = new_nodes[to[0]][to[1]], new_nodes[of[0]][of[1]]
        inner = layer.edge_self(edge) + target @ layer.edge_target.weight.T + source @ layer.edge_source.weight.T
        new_edges[block][i, j] = edges[block][i, j] + layer.edge_mlp(inner)
    return new_nodes, new_edges


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    "space", [residual(stream=3, middle=2), WeightSpace.from_module(mlp([3, 4, 2]))], ids=["residual", "one_hidden"]
)
@torch.no_grad()
def test_a_layer_is_the_formula(space: WeightSpace, heads: int) -> None:
    width, edge_width, batch = 6, 4, 2
    layer = randomise(Layer(width, edge_width, heads))
    nodes = [torch.randn(batch, group.size, width).double() for group in space.groups]
    edges = [torch.randn(batch, block.out, block.in_, edge_width).double() for block in space.blocks]
    context = torch.randn(batch, width).double()
    together = torch.cat([node.transpose(0, 1) for node in nodes])
    sizes = [group.size for group in space.groups]
    states, new_edges = layer(together, edges, sizes, space.joins, context)
    new_nodes = states.transpose(0, 1).split(sizes, dim=1)
    for b in range(batch):
        expected = reference(layer, [n[b] for n in nodes], [e[b] for e in edges], space.joins, context[b])
        for ours, slow in zip((new_nodes, new_edges), expected, strict=True):
            for one, other in zip(ours, slow, strict=True):
                torch.testing.assert_close(one[b], other, rtol=1e-11, atol=1e-11)
