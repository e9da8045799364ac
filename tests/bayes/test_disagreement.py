"""Pairs of members: divergences of probabilities and overlaps of errors."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from wsflow.bayes import ScoreError, disagreement, error_overlap, jensen_shannon
from wsflow.tasks import BreastCancer, Diabetes


def test_extremes_of_the_divergence():
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert float(jensen_shannon(p, p)) == 0
    one, other = torch.eye(3, dtype=torch.float64)[:2]
    assert float(jensen_shannon(one, other)) == pytest.approx(log(2))
    q = torch.tensor([0.0, 0.9, 0.1], dtype=torch.float64)
    assert float(jensen_shannon(p, q)) == pytest.approx(jensenshannon(p.numpy(), q.numpy()) ** 2)
    assert float(jensen_shannon(p, q)) == float(jensen_shannon(q, p))


@pytest.mark.parametrize("memory", [3000, 2**28], ids=["piece by piece", "at once"])
def test_all_pairs_against_a_loop(memory, monkeypatch):
    task = BreastCancer(widths=[30, 4, 2])
    monkeypatch.setattr(task, "memory", memory, raising=False)
    theta = torch.randn(5, task.space.dim)
    found = disagreement(task, theta, "val")
    logits, targets = task.logits(theta, "val").double(), task.data("val")[1]
    p, wrong = logits.softmax(-1), logits.argmax(-1) != targets
    for i in range(5):
        for j in range(5):
            wanted = jensenshannon(p[i].numpy(), p[j].numpy(), axis=-1) ** 2
            assert float(found.divergence[i, j]) == pytest.approx(wanted.mean(), abs=1e-6)
            both, either = (wrong[i] & wrong[j]).sum(), (wrong[i] | wrong[j]).sum()
            assert float(found.overlap[i, j]) == pytest.approx(float(both / either))
    pairs = found.divergence[*torch.triu_indices(5, 5, 1)]
    assert found.summary()["diversity"] == pytest.approx(float(pairs.mean()))


def test_copies_do_not_disagree():
    task = BreastCancer(widths=[30, 4, 2])
    theta = torch.randn(1, task.space.dim).expand(3, -1)
    assert disagreement(task, theta, "val").summary() == {"diversity": 0, "error_overlap": 1}


def test_overlaps_by_hand():
    wrong = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    found = error_overlap(wrong)
    assert found[0, 1] == pytest.approx(1 / 3)
    assert found[0, 2] == found[0, 3] == 0
    assert (found.diagonal() == 1).all()
    assert found[3, 4] == 1


def test_values_of_regressions_differ_by_their_distance():
    task = Diabetes()
    theta = torch.randn(3, task.space.dim) / 3
    found = disagreement(task, theta, "val")
    values = task.logits(theta, "val").double()
    assert float(found.divergence[0, 2]) == pytest.approx(sqrt((values[0] - values[2]).square().mean()), rel=1e-6)
    assert found.overlap is None
    assert list(found.summary()) == ["diversity"]


def test_one_member_is_refused():
    task = BreastCancer(widths=[30, 4, 2])
    with pytest.raises(ScoreError, match="at least 2"):
        disagreement(task, torch.randn(1, task.space.dim), "val")
