"""Temperatures of averaged predictions."""

from __future__ import annotations

import pytest
import torch

from wsflow.bayes import (
    ClassPredictive,
    ScoreError,
    ValuePredictive,
    by_size,
    inverse_temperature,
    nll,
    predictive,
    tempered,
)
from wsflow.tasks import BreastCancer


def drawn(powers, points=20_000):
    """Ensembles whose probabilities are powers of the law that drew the labels."""
    generator = torch.Generator().manual_seed(0)
    truth = (1.5 * torch.randn(points, 4, generator=generator, dtype=torch.float64)).log_softmax(-1)
    y = torch.multinomial(truth.exp(), 1, generator=generator).squeeze(1)
    p = (torch.tensor(powers, dtype=torch.float64)[:, None, None] * truth).softmax(-1)
    log_target = p.gather(-1, y.expand(p.shape[:2])[..., None]).squeeze(-1).log()
    return ClassPredictive(p, torch.special.entr(p).sum(-1) - 0.1, log_target, y)


def test_a_known_temperature_is_found():
    found = inverse_temperature(drawn([0.5, 1.0, 4.0]))
    assert found.tolist() == pytest.approx([2.0, 1.0, 0.25], rel=0.03)


def test_no_other_temperature_is_better():
    given = drawn([0.5, 2.0], points=300)
    best = inverse_temperature(given)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (nll(tempered(given, best)) < nll(tempered(given, factor * best))).all()
    assert (nll(tempered(given, best)) < nll(given)).all()


def test_labels_and_disagreement_stay():
    given = drawn([0.5], points=50)
    found = tempered(given, torch.tensor([3.0]))
    assert torch.equal(found.label, given.label)
    torch.testing.assert_close(found.mutual_information, given.mutual_information)
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(1, 50, dtype=torch.float64))
    same = tempered(given, torch.ones(1))
    torch.testing.assert_close(same.probabilities, given.probabilities)
    torch.testing.assert_close(same.log_target, given.log_target)


def test_predictions_that_are_all_right_are_sharpened_to_the_end():
    p = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]], dtype=torch.float64)
    given = ClassPredictive(p, torch.zeros(1, 2), p.amax(-1).log(), torch.tensor([0, 1]))
    assert float(inverse_temperature(given)) == pytest.approx(torch.e**4, rel=1e-3)


def test_what_has_no_probabilities_is_refused():
    values = ValuePredictive(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.ones(1))
    with pytest.raises(ScoreError, match="class probabilities"):
        inverse_temperature(values)
    with pytest.raises(ScoreError, match="class probabilities"):
        tempered(values, torch.ones(1))
    with pytest.raises(ScoreError, match="targets"):
        inverse_temperature(ClassPredictive(torch.ones(1, 2, 1), torch.zeros(1, 2)))


def test_ensembles_are_calibrated_on_validation_data_alone():
    task = BreastCancer(widths=[30, 4, 2])
    theta = torch.randn(6, task.space.dim) / 5
    found = by_size(task, theta, "test", (3, 6), calibrate=True)[6]
    beta = inverse_temperature(predictive(task, theta, "val"))
    wanted = nll(tempered(predictive(task, theta, "test"), beta))
    assert found.mean["nll.calibrated"] == pytest.approx(float(wanted), rel=1e-6)
    assert found.mean["nll.calibrated"] != pytest.approx(found.mean["nll"])
    with pytest.raises(ValueError, match="need another split"):
        by_size(task, theta, "val", (3,), calibrate=True)
