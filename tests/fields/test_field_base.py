"""What every field inherits: preconditioning and binding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wsflow.fields import VectorField, check_same_ends
from wsflow.fields.base import RMS_FLOOR
from wsflow.memory import peak_bytes
from wsflow.weightspace import WeightSpace, mlp


class ToyField(VectorField):
    """A gain on every coordinate, with an index buffer that follows from the space."""

    def __init__(self, space: WeightSpace, extra: int = 0) -> None:
        super().__init__(space, extra)
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("count", torch.tensor(space.dim), persistent=False)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self._scaled_out(self.gain * self._scaled_in(x))

    def _bind(self, space: WeightSpace) -> None:
        check_same_ends(self.space, space)
        self.count = torch.tensor(space.dim)


@pytest.fixture
def wider() -> WeightSpace:
    return WeightSpace.from_module(mlp([5, 7, 6, 2]))


def scales(space: WeightSpace, extra: int) -> Tensor:
    """A scale for every tensor, spread over its coordinates."""
    parts = [torch.full((tensor.numel,), 3.0**i) for i, tensor in enumerate(space.tensors)]
    return torch.cat([*parts, torch.full((extra,), 0.5)])


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_calibration_finds_the_size_of_every_tensor(extra: int, space: WeightSpace, generator: torch.Generator):
    field, scale = ToyField(space, extra), scales(space, extra) / 10
    z = torch.randn(400, field.dim, generator=generator)
    field.calibrate(scale * z, 3 * scale * z)
    expected = torch.cat([*(scale[t.slice][:1] for t in space.tensors), scale[space.dim : space.dim + 1]])
    assert torch.allclose(field.input_scale, expected, rtol=0.15)
    assert torch.allclose(field.output_scale, 3 * field.input_scale)
    inside = field._scaled_in(scale * z)
    for tensor in space.tensors:
        assert inside[:, tensor.slice].square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)
    assert torch.allclose(field(scale * z, torch.zeros(400)), 6 * scale * z, rtol=1e-4)


def test_calibration_keeps_to_the_memory_of_its_states(space: WeightSpace):
    x = torch.randn(1024, space.dim)
    taken = peak_bytes(lambda: ToyField(space).calibrate(x, x), torch.device("cpu"))
    assert 0 < taken < x.numel() * x.element_size()


def test_uncalibrated_fields_scale_nothing(space: WeightSpace):
    x = torch.randn(3, space.dim)
    assert torch.equal(ToyField(space)._scaled_in(x), x)
    assert torch.equal(ToyField(space)._scaled_out(x), x)


def test_zero_tensors_have_a_floor(space: WeightSpace):
    field, x = ToyField(space), torch.ones(4, space.dim)
    x[:, space.tensors[1].slice] = 0
    field.calibrate(x, torch.zeros_like(x))
    assert field.input_scale[1] == pytest.approx(RMS_FLOOR, rel=0.2)
    assert torch.equal(field.output_scale, torch.ones_like(field.output_scale))
    assert field(x, torch.zeros(4)).isfinite().all()


@pytest.mark.parametrize("bad", ["none", "nan", "width"])
def test_calibration_refuses(bad: str, space: WeightSpace):
    x = {"none": torch.ones(0, space.dim), "nan": torch.full((2, space.dim), torch.nan), "width": torch.ones(2, 3)}
    with pytest.raises(ValueError, match="shape"):
        ToyField(space).calibrate(x[bad], x[bad])


def test_scales_are_saved_and_indices_are_not(space: WeightSpace):
    field, x = ToyField(space, 1), torch.randn(9, space.dim + 1)
    field.calibrate(x, 5 * x)
    assert set(field.state_dict()) == {"gain", "input_scale", "output_scale"}
    other = ToyField(space, 1)
    other.load_state_dict(field.state_dict())
    assert torch.equal(other(x, x[:, 0]), field(x, x[:, 0]))


def test_states_of_another_size_are_refused(space: WeightSpace):
    with pytest.raises(ValueError, match=f"takes \\(B, {space.dim + 1}\\)"):
        ToyField(space, 1)(torch.zeros(2, space.dim), torch.zeros(2))
    with pytest.raises(ValueError, match="must not be negative"):
        ToyField(space, -1)


def test_bound_fields_share_parameters_and_not_structure(space: WeightSpace, wider: WeightSpace):
    field = ToyField(space, 1)
    field.calibrate(*(torch.randn(2, 9, space.dim + 1)))
    bound = field.bind(wider)
    assert bound.gain is field.gain
    assert (bound.dim, bound.count) == (wider.dim + 1, wider.dim)
    assert (field.dim, field.count) == (space.dim + 1, space.dim)
    assert torch.equal(bound.output_scale, field.output_scale)
    x = torch.randn(3, wider.dim + 1)
    before = bound(x, x[:, 0])
    with torch.no_grad():
        field.gain.mul_(2)
    assert torch.allclose(bound(x, x[:, 0]), 2 * before)
    again = bound.bind(space)
    y = torch.randn(3, space.dim + 1)
    assert torch.equal(again(y, y[:, 0]), field(y, y[:, 0]))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (mlp([5, 4, 3, 3, 2]), "6 tensors cannot be bound to one of 8"),
        (mlp([5, 4, 3, 2], bias=False), "6 tensors cannot be bound to one of 3"),
        (mlp([6, 4, 3, 2]), "one embedding per input"),
        (mlp([5, 4, 3, 4]), "one embedding per input"),
    ],
    ids=["deeper", "no bias", "inputs", "outputs"],
)
def test_other_architectures_are_refused(network: nn.Module, message: str, space: WeightSpace):
    with pytest.raises(ValueError, match=message):
        ToyField(space).bind(WeightSpace.from_module(network))
