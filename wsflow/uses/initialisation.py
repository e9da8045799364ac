r"""Networks as starts of training (thesis, section 7.4).

B networks :math:`\theta_b^{(0)}` are trained together, each on mini-batches of its own, and scored on a split that is
not trained on, :math:`s_b(k)` after k steps.  Scores at k = 0 are those of the networks on the task as they come.  How
fast a start is, is the first step that reaches a level,

.. math:: k_b = \min \{k : s_b(k) \ge s^*\},

infinite where no step does; the median over networks stands for a set, since it needs only half of them to arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.tasks import BaseTask
from wsflow.weightspace import WeightSpace
from wsflow.zoo.optimizer import RunOptimizer
from wsflow.zoo.train import DataOrder, steps_per_epoch, train_runs

LOSSES = ("loss", "nll", "mse")
"""Scores of which less is better."""


@dataclass(frozen=True)
class Curves:
    """Scores of B networks along their training.

    Args:
        steps: K steps, from 0 on.
        scores: By name, such as ``loss`` and ``accuracy``, (B, K).
    """

    steps: Sequence[int]
    scores: Mapping[str, Tensor]


def learning_curves(
    task: BaseTask,
    starts: Tensor,
    optimizer: RunOptimizer,
    steps: int,
    every: int = 10,
    batch_size: int = 250,
    split: str = "val",
    seed: int = 0,
) -> Curves:
    """Train networks and score them on the way.

    Args:
        task: What they are trained on.
        starts: (B, D); left as they are.
        optimizer: Of the weights.
        steps: Of training.
        every: Steps between scores; the last step is always scored.
        batch_size: Data points per network and step.
        split: Whose data scores are of.
        seed: Of the order of the data, which is another one for each network.

    Raises:
        ValueError: for fewer than one step or data point, weights of another space, and a task without data.
    """
    if min(steps, every, batch_size) < 1:
        raise ValueError(f"steps, every and batch_size must be at least 1, got {steps}, {every} and {batch_size}")
    task.space.check(starts)
    scored = sorted({*range(every, steps + 1, every), steps})
    order = DataOrder(len(task.data("train")[0]), seed, range(len(starts)))
    epochs = -(-steps // steps_per_epoch(task, batch_size))
    theta = train_runs(task, starts, order, optimizer, epochs, batch_size, scored, max_steps=steps).theta
    found = [task.evaluate(each, split) for each in (starts, *theta.unbind(1))]
    return Curves([0, *scored], {name: torch.stack([one[name] for one in found], 1) for name in found[0]})


def steps_to(curves: Curves, level: float, score: str = "accuracy") -> Tensor:
    """The first scored step at which each network reaches a level, (B,); infinite where none does.

    Losses (``loss``, ``nll``, ``mse``) reach it from above, other scores from below.

    Raises:
        ValueError: where the curves have no such score.
    """
    if score not in curves.scores:
        raise ValueError(f"the task has no score {score!r}, only {', '.join(sorted(curves.scores))}")
    values = curves.scores[score]
    reached = values <= level if score in LOSSES else values >= level
    first = torch.tensor(curves.steps, dtype=torch.float64)[reached.int().argmax(dim=1)]
    return first.masked_fill(~reached.any(dim=1), torch.inf)


def shuffled(space: WeightSpace, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Networks (B, D) with the numbers of each tensor in random order: their sizes are kept, what they compute is not.

    What such starts gain over random ones is owed to the sizes of weights alone.
    """
    parts = space.unflatten(theta)
    mixed = {name: _shuffle(value, generator) for name, value in parts.items()}
    return space.flatten(mixed)


def _shuffle(value: Tensor, generator: torch.Generator) -> Tensor:
    flat = value.flatten(1)
    return flat.gather(1, torch.rand(flat.shape, generator=generator).argsort(dim=1)).view_as(value)
