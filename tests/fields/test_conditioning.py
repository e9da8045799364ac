"""Labels as a field reads them, requests, and guidance without a classifier."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from wsflow.fields import (
    Conditioning,
    GaussianField,
    MLPField,
    NeuronTransformer,
    Range,
    Request,
    SelfConditioned,
    Velocity,
    conditional,
    follow_request,
)
from wsflow.geometry import Euclidean
from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.randomness import RowGenerator

LABELS = [{"name": "loss", "log": True}, {"name": "epoch"}]


@pytest.fixture
def flat() -> Euclidean:
    """A plane R^2."""
    return Euclidean(WeightSpace.from_module(mlp([2, 1], bias=False), output_activation="identity"))


@pytest.fixture
def told() -> Conditioning:
    """Losses from 0.01 to 1, epochs from 1 to 50."""
    conditioning = Conditioning(LABELS, dropout=0.2)
    conditioning.fit(torch.stack([torch.logspace(-2, 0, 50), torch.arange(1.0, 51)], dim=1))
    return conditioning


def rows(indices: range) -> RowGenerator:
    return RowGenerator.make(0, indices, (), ())


def test_labels_are_normalised_on_their_scale_with_the_statistics_of_training(told: Conditioning):
    z = told.normalise(torch.tensor([[0.1, 25.5], [1.0, 50.0], [0.01, 1.0]]))
    torch.testing.assert_close(z[0], torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(z[1], -z[2], atol=1e-5, rtol=0)
    kept = Conditioning(LABELS)
    kept.load_state_dict(told.state_dict())
    assert torch.equal(kept.normalise(torch.ones(1, 2)), told.normalise(torch.ones(1, 2)))
    assert kept.fitted


def test_what_is_not_known_is_zeros_and_a_flag(told: Conditioning):
    out = told(torch.tensor([[0.1, torch.nan], [torch.nan, 3.0]])).view(2, 2, -1)
    assert out.shape[2] * 2 == told.size
    for known, unknown in ((out[0, 0], out[0, 1]), (out[1, 1], out[1, 0])):
        assert known[-1] == 0
        assert unknown[-1] == 1
        assert not unknown[:-1].any()


def test_training_drops_all_labels_or_single_ones_row_by_row(told: Conditioning):
    label = torch.ones(4000, 2)
    dropped = told.drop(label, rows(range(4000))).isnan()
    assert dropped.all(1).float().mean() == pytest.approx(0.2 + 0.8 * 0.04, abs=0.02)
    assert dropped[:, 0].float().mean() == pytest.approx(1 - 0.8**2, abs=0.02)
    assert torch.equal(dropped[7:9], told.drop(label[:2], rows(range(7, 9))).isnan())
    one = Conditioning(LABELS[:1], dropout=0.2)
    assert one.drop(label[:, :1], rows(range(4000))).isnan().float().mean() == pytest.approx(0.2, abs=0.02)


def test_requests_depend_on_the_sample_alone(told: Conditioning):
    values = told.requested(Request({"loss": [0.1, 0.2, 0.3]}), range(2, 6))
    torch.testing.assert_close(values[:, 0], torch.tensor([0.3, 0.1, 0.2, 0.3]))
    assert values[:, 1].isnan().all()
    assert told.requested(None, range(3)).isnan().all()
    both = Request({"loss": Range(0.01, 1.0), "epoch": Range(0.0, 10.0)})
    spread = told.requested(both, range(200))
    assert torch.equal(spread[50:60], told.requested(both, range(50, 60)))
    u = torch.stack([spread[:, 0].log10() / 2 + 1, spread[:, 1] / 10], dim=1)  # the loss is spread by its logarithm
    counts = (u * 4).long().mul(torch.tensor([4, 1])).sum(1).bincount(minlength=16)
    assert counts.min() >= 9  # of 12.5 in each of 16 cells
    assert counts.max() <= 17


def test_requests_that_make_no_sense_are_refused_and_guesses_are_named(told: Conditioning):
    with pytest.raises(ValueError, match="knows no label accuracy; its labels are loss, epoch"):
        told.requested(Request({"accuracy": [1.0]}), range(1))
    with pytest.raises(ValueError, match="positive ones for a logarithm"):
        told.requested(Request({"loss": [0.0]}), range(1))
    for values in ([0.1, torch.nan], [0.1, torch.inf], [], Range(0.1, torch.inf), Range(0.1, torch.nan)):
        with pytest.raises(ValueError, match="give finite numbers"):
            told.requested(Request({"loss": values}), range(1))
    with pytest.warns(UserWarning, match=r"loss=2 is outside of what the flow was trained on, 0.01 to 1"):
        told.warn(Request({"loss": [2.0], "epoch": [3.0]}))
    with pytest.warns(UserWarning, match=r"epoch=0 to 60 is outside"):
        told.warn(Request({"epoch": Range(0.0, 60.0)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told.warn(Request({"loss": [0.01, 1.0], "epoch": Range(1.0, 50.0)}))
    always = Conditioning(LABELS, dropout=0)
    with pytest.raises(ValueError, match="epoch cannot be left open"):
        always.requested(Request({"loss": [0.1]}), range(1))
    with pytest.raises(ValueError, match="the weight must be 1"):
        always.requested(Request({"loss": [0.1], "epoch": [1.0]}, weight=2.0), range(1))


@pytest.mark.parametrize("log", [False, True], ids=["plain", "log"])
def test_a_label_that_all_networks_share_keeps_a_scale_of_one(log: bool):
    """Its logarithms differ from their mean by rounding, which is no scale."""
    told, shared = Conditioning([{"name": "epoch", "log": log}]), torch.full((7, 1), 0.1)
    told.fit(shared)
    assert told.std.item() == 1
    torch.testing.assert_close(told.normalise(shared), torch.zeros(7, 1), atol=1e-6, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told.warn(Request({"epoch": [0.1]}))  # which float32 rounds up


def test_labels_without_a_logarithm_or_a_value_are_refused():
    with pytest.raises(ValueError, match="label 'loss' is not positive"):
        Conditioning(LABELS[:1]).fit(torch.tensor([[0.1], [0.0]]))
    with pytest.raises(ValueError, match="'loss' is known of none"):
        Conditioning(LABELS[:1]).fit(torch.tensor([[torch.nan]]))
    with pytest.raises(ValueError, match="different names"):
        Conditioning([LABELS[0], LABELS[0]])
    for values, labels, told in (
        (None, None, "no labels"),
        (torch.ones(3, 2), None, "2 labels"),
        (torch.ones(3, 1), [{"name": "accuracy"}], "accuracy"),
    ):
        with pytest.raises(ValueError, match=f"is told of loss, and the data gives {told}"):
            Conditioning(LABELS[:1]).fit(values, labels)


def test_a_trained_field_goes_on_to_read_labels_as_it_did(told: Conditioning):
    before = {name: value.clone() for name, value in told.state_dict().items()}
    told.fit(torch.tensor([[0.001, 10.0], [2.0, 20.0]]))
    assert torch.equal(told.mean, before["mean"])
    assert torch.equal(told.std, before["std"])
    assert told.low[0] == pytest.approx(0.001)
    assert told.high[0] == pytest.approx(2.0)
    assert torch.equal(told.low[1:], before["low"][1:])


class Sharp(MLPField):
    """A field whose output is one number everywhere, 1 where it knows the first label and 0 where not."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        known = 1 - condition.view(len(x), 2, -1)[:, 0, -1:]
        return known.expand_as(x).clone()


def test_the_weight_extrapolates_from_the_unconditional_velocity(told: Conditioning, flat: Euclidean):
    field, x, t = Sharp(flat.space, condition=told.size), torch.zeros(3, 2), torch.zeros(3)
    parts = (field, Velocity(), flat, told)
    for weight, expected in ((0.0, 0.0), (1.0, 1.0), (2.5, 2.5)):
        v = follow_request(*parts, Request({"loss": [0.1]}, weight), [0, 1, 2])(x, t)
        torch.testing.assert_close(v, torch.full_like(x, expected))
    assert [Request({}, weight).evaluations for weight in (0.0, 1.0, 2.5)] == [2, 1, 2]
    torch.testing.assert_close(follow_request(*parts, None, [0, 1, 2])(x, t), torch.zeros_like(x))
    with pytest.raises(ValueError, match="trained without labels"):
        follow_request(field, Velocity(), flat, None, Request({"loss": [0.1]}), [0])


@pytest.mark.parametrize("make", [NeuronTransformer, MLPField, SelfConditioned], ids=lambda kind: kind.__name__)
def test_fields_read_what_they_are_told(make, space, told: Conditioning):
    field = conditional(make, space, 0, told)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x, t = torch.randn(2, space.dim, generator=generator), torch.full((2,), 0.5)
    labels = [torch.tensor([[loss, torch.nan]]).expand(2, 2) for loss in (0.02, 0.5, torch.nan)]
    a, b, c = (field(x, t, told(label)) for label in labels)
    assert not torch.allclose(a, b, rtol=1e-3)
    assert not torch.allclose(a, c, rtol=1e-3)


def test_a_field_that_takes_no_condition_is_named(space, told: Conditioning):
    with pytest.raises(ValueError, match="argument 'condition'"):
        conditional(GaussianField, space, 0, told)
    assert conditional(GaussianField, space, 0, None).dim == space.dim


def test_values_are_numbers_sequences_or_tensors(told: Conditioning):
    for given in (0.25, torch.tensor(0.25), [0.25], torch.tensor([0.25, 0.25])):
        asked = told.requested(Request({"loss": given}), range(2))
        torch.testing.assert_close(asked[:, told.names.index("loss")], torch.full((2,), 0.25))
