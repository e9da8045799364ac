"""The neuron transformer: symmetry, what it sees, widths, and its formula written out with loops."""

from __future__ import annotations

import math

import pytest
import torch
from graph_spaces import convolutional, joined, positions, residual
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.fields import NeuronTransformer
from wsflow.fields.neuron_transformer import Layer
from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.symmetry import random_permutations

SMALL = {"width": 12, "depth": 2, "heads": 3}
SPACES = {
    "perceptron": WeightSpace.from_module(mlp([5, 4, 3, 2])),
    "no_bias": WeightSpace.from_module(mlp([5, 4, 3, 2], bias=False)),
    "one_hidden": WeightSpace.from_module(mlp([5, 6, 2])),
    "linear": WeightSpace.from_module(nn.Linear(5, 2)),
    "residual": residual(),
    "cnn": convolutional(),
    "batch_norm": convolutional(batch_norm=True, pool=True),
    "joined": joined(),
    "positions": positions(),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def randomise(module: nn.Module) -> nn.Module:
    """Random values in every parameter, since heads that start at zero would hide mistakes; float64."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=1 / math.sqrt(p.shape[-1]) if p.ndim > 1 else 0.5)
    return module


def make(space: WeightSpace, extra: int = 0, **kwargs: object) -> NeuronTransformer:
    field = randomise(NeuronTransformer(space, extra, **{**SMALL, **kwargs}))
    assert isinstance(field, NeuronTransformer)
    return field


def points(space: WeightSpace, n: int = 3, extra: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(n, space.dim + extra, dtype=torch.float64), torch.rand(n, dtype=torch.float64)


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3 * b.abs().max())


@every_space
@pytest.mark.parametrize("extra", [0, 2])
def test_hidden_permutations_of_the_input_permute_the_output(space: WeightSpace, extra: int) -> None:
    field, (x, t) = make(space, extra), points(space, 3, extra)
    perms = random_permutations(space, 3)

    def moved(y: Tensor) -> Tensor:
        return torch.cat([space.permute(y[:, : space.dim], perms), y[:, space.dim :]], dim=1)

    out = field(x, t)
    torch.testing.assert_close(field(moved(x), t), moved(out), rtol=1e-11, atol=1e-11 * out.abs().max().item())
    assert not space.hidden or differ(moved(out), out)


@every_space
def test_embeddings_of_hidden_neurons_break_the_symmetry(space: WeightSpace) -> None:
    field, (x, t) = make(space, neuron_embedding=True), points(space)
    perms = [torch.arange(group.size).roll(1) for group in space.hidden]
    assert not space.hidden or differ(field(space.permute(x, perms), t), space.permute(field(x, t), perms))


@every_space
def test_every_output_depends_on_every_tensor_and_extra_coordinate_and_time(space: WeightSpace) -> None:
    field, (x, t) = make(space, 1), points(space, 1, 1)
    pieces = [tensor.slice for tensor in space.tensors] + [slice(space.dim, space.dim + 1)]
    jacobian = torch.autograd.functional.jacobian(lambda x: field(x, t)[0], x)[:, 0]
    for row in pieces:
        for column in pieces:
            assert jacobian[row, column].abs().max() > 1e-6
        assert differ(field(x, t)[0, row], field(x, t + 0.3)[0, row])


@every_space
def test_networks_do_not_see_each_other_and_batches_have_any_size(space: WeightSpace) -> None:
    field, (x, t) = make(space), points(space, 5)
    together = field(x, t)
    parts = [field(*part) for part in zip(x.split(2), t.split(2), strict=True)]
    torch.testing.assert_close(torch.cat(parts), together, rtol=1e-11, atol=1e-11)
    assert field(x[:0], t[:0]).shape == (0, space.dim)


@every_space
@pytest.mark.parametrize("kwargs", [{}, {"extra": 1, "condition": 2}], ids=["plain", "extra-condition"])
def test_every_parameter_has_a_gradient(space: WeightSpace, kwargs: dict[str, int]) -> None:
    """As data-parallel training needs: a gradient from the first step on, and none that stays zero."""
    torch.manual_seed(1)
    extra = kwargs.get("extra", 0)
    field, (x, t) = NeuronTransformer(space, **{**SMALL, **kwargs}).double(), points(space, 4, extra)
    condition = torch.randn(4, 2).double() if field.condition is not None else None
    assert torch.equal(field(x, t, condition), torch.zeros_like(x))
    (field(x, t, condition) - x).square().mean().backward()
    assert [name for name, p in field.named_parameters() if p.grad is None] == []
    torch.optim.SGD(randomise(field).parameters(), lr=1e-3).step()
    field.zero_grad()
    (field(x, t, condition) - x).square().mean().backward()
    left = [name for name, p in field.named_parameters() if not p.grad.abs().max() > 1e-10]
    # Nothing reads the last states of outputs that have no bias.
    assert all(name.startswith("layers.1.inward") for name in left)
    assert not left or not any(v.group == space.groups[-1].name for v in space.vectors)


@every_space
def test_recomputing_layers_changes_no_gradient(space: WeightSpace) -> None:
    field, (x, t) = make(space), points(space)
    gradients = []
    for again in (False, True):
        field.recompute = again
        field.zero_grad()
        field(x, t).square().sum().backward()
        gradients.append([p.grad.clone() for p in field.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_acts_in_training_alone() -> None:
    field, (x, t) = make(SPACES["perceptron"], dropout=0.5), points(SPACES["perceptron"])
    assert differ(field(x, t), field(x, t))
    field.eval()
    assert torch.equal(field(x, t), field(x, t))


WIDER = (
    (SPACES["perceptron"], WeightSpace.from_module(mlp([5, 7, 9, 2]))),
    (SPACES["one_hidden"], WeightSpace.from_module(mlp([5, 11, 2]))),
    (residual(), residual(stream=3, middle=7)),
    (convolutional(), convolutional(channels=[6, 7])),
    (positions(), positions(hidden=7)),
)


@pytest.mark.parametrize(("old", "new"), WIDER, ids=["deep", "one_hidden", "residual", "cnn", "positions"])
def test_a_bound_field_shares_parameters_and_keeps_the_symmetry(old: WeightSpace, new: WeightSpace) -> None:
    field, (x, t) = make(old), points(new)
    perms, bound = random_permutations(new, 3), field.bind(new)
    torch.testing.assert_close(bound(new.permute(x, perms), t), new.permute(bound(x, t), perms))
    assert [id(p) for p in bound.parameters()] == [id(p) for p in field.parameters()]
    y, s = points(old)
    assert field(y, s).shape == y.shape


def test_refusals() -> None:
    with pytest.raises(ValueError, match="width 12 is not divisible by heads 5"):
        NeuronTransformer(residual(), width=12, heads=5)
    with pytest.raises(ValueError, match="one embedding per input and per output neuron"):
        make(SPACES["perceptron"]).bind(WeightSpace.from_module(mlp([6, 4, 3, 2])))
    with pytest.raises(ValueError, match="weights per edge"):
        make(residual()).bind(residual(kernel=5))
    with pytest.raises(ValueError, match="tied to its widths"):
        make(residual(), neuron_embedding=True).bind(residual(stream=6))
    x, t = points(residual())
    with pytest.raises(ValueError, match="needs a condition for every state"):
        make(residual(), condition=2)(x, t)


@torch.no_grad()
def test_a_layer_is_the_formula() -> None:
    """Two blocks of three and two numbers an edge, between four, three and two tokens."""
    width, heads, depths, spans = 6, 3, [3, 2], [(slice(4, 7), slice(0, 4)), (slice(7, 9), slice(4, 7))]
    layer = randomise(Layer(width, heads, 2, depths, 0.0))
    tokens, context = torch.randn(2, 9, width).double(), torch.randn(2, width).double()
    weights = [torch.randn(2, 3, 4, 3).double(), torch.randn(2, 2, 3, 2).double()]
    found = layer(tokens, context, weights, spans)
    for b in range(2):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = layer.modulation(context[b]).chunk(6)
        seen = [shift + (1 + scale) * F.layer_norm(n, n.shape) for n in tokens[b]]
        query, key, value = (layer.attend(torch.stack(seen)).chunk(3, dim=1)[i] for i in range(3))
        total = torch.zeros(9, width).double()
        for head in range(heads):
            own = slice(2 * head, 2 * head + 2)
            total[:, own] = (query[:, own] @ key[:, own].T / 2**0.5).softmax(dim=1) @ value[:, own]
        for weight, (target, source), into, out_of in zip(weights, spans, layer.inward, layer.outward, strict=True):
            _, out, size, depth = weight.shape
            for i in range(out):
                for j in range(size):
                    for k in range(depth):
                        w, at = weight[b, i, j, k], slice(k * width, (k + 1) * width)
                        receiver, sender = target.start + i, source.start + j
                        total[receiver] += w * into(seen[sender])[at] / math.sqrt(size * depth)
                        total[sender] += w * out_of(seen[receiver])[at] / math.sqrt(out * depth)
        for i, n in enumerate(tokens[b]):
            n = n + (1 + gate) * layer.out(total[i])
            n = n + (1 + mlp_gate) * layer.mlp(mlp_shift + (1 + mlp_scale) * F.layer_norm(n, n.shape))
            torch.testing.assert_close(found[b, i], n, rtol=1e-11, atol=1e-11)
