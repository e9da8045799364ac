"""The products that attention over edges is made of, and training with less memory or fewer bits."""

from __future__ import annotations

import pytest
import torch
from graph_spaces import residual
from torch import Tensor, nn

from wsflow.fields import RelationalTransformer
from wsflow.fields.attention import products
from wsflow.weightspace import WeightSpace, mlp

SMALL = {"width": 12, "edge_width": 6, "depth": 3, "heads": 3}


def make(space: WeightSpace, recompute: bool = False) -> RelationalTransformer:
    torch.manual_seed(0)
    field = RelationalTransformer(space, recompute=recompute, **SMALL)
    for p in field.parameters():
        nn.init.normal_(p, std=0.3)
    return field


def gradients(field: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
    loss = field(x, t).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in field.parameters())]


def test_products_are_inner_products_with_every_kind_of_derivative() -> None:
    few, many = (torch.randn(3, k, 4, dtype=torch.float64, requires_grad=True) for k in (2, 5))
    torch.testing.assert_close(products(few, many), torch.einsum("nkc,nmc->nkm", few, many))
    assert torch.autograd.gradcheck(products, (few, many), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(products, (few, many))


@pytest.mark.parametrize("space", [residual(), WeightSpace.from_module(mlp([5, 4, 3, 2]))], ids=["residual", "mlp"])
def test_recomputing_layers_changes_no_gradient(space: WeightSpace) -> None:
    x, t = torch.randn(3, space.dim), torch.rand(3)
    plain, again = (gradients(make(space, recompute), x, t) for recompute in (False, True))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def test_recomputing_layers_holds_less_for_the_backward_pass() -> None:
    space = WeightSpace.from_module(mlp([5, 4, 3, 2]))
    x, t, sizes = torch.randn(3, space.dim), torch.rand(3), []
    for recompute in (False, True):
        held: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda y, held=held: held.update({y.untyped_storage().data_ptr(): y.untyped_storage().nbytes()}) or y,
            lambda y: y,
        ):
            output = make(space, recompute)(x, t)
        sizes.append(sum(held.values()))
        assert output.requires_grad
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("space", [residual(), WeightSpace.from_module(mlp([5, 4, 3, 2]))], ids=["residual", "mlp"])
def test_a_field_is_mapped_over_times_and_differentiated_in_time(space: WeightSpace) -> None:
    """Its edge states do not depend on the time at first, its node states do."""
    field, x, times = make(space).double(), torch.randn(3, space.dim).double(), torch.rand(2, 3).double()
    with torch.no_grad():
        together = torch.func.vmap(lambda t: field(x, t))(times)
        torch.testing.assert_close(together, torch.stack([field(x, t) for t in times]))
        slope = torch.func.jacfwd(lambda t: field(x, t.expand(3)))(times[0, :1])[:, :, 0]
        moved = (field(x, times[0, :1].expand(3) + 1e-6) - field(x, times[0, :1].expand(3) - 1e-6)) / 2e-6
        torch.testing.assert_close(slope, moved, rtol=1e-5, atol=1e-6)


def test_a_field_computes_in_bf16_what_it_computes_in_float32() -> None:
    space = WeightSpace.from_module(mlp([5, 4, 3, 2]))
    x, t = torch.randn(3, space.dim), torch.rand(3)
    exact = gradients(make(space), x, t)
    field = make(space)
    with torch.autocast("cpu", torch.bfloat16):
        loss = field(x, t).square().mean()
    loss.backward()
    for one, other in zip(exact, [loss.detach(), *(p.grad for p in field.parameters())], strict=True):
        assert other.dtype == torch.float32
        assert (one - other).norm() < 0.1 * one.norm() + 1e-4
