"""What generating networks costs in gradients."""

from __future__ import annotations

from functools import partial

from planted_task import Small

from wsflow.fields import GradientInformed, NeuronTransformer
from wsflow.posteriors.generated import part_seen


def test_gradients_that_a_field_takes_are_counted() -> None:
    task, tokens = Small(), partial(NeuronTransformer, width=8, depth=1, heads=2)
    informed = GradientInformed(task.space, field=tokens, points=5)
    informed.attach(task)
    assert part_seen(informed, task) == 5 / len(task.data("train")[0])
    assert part_seen(tokens(task.space), task) == 0
