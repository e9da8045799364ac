r"""Learning rate schedules that know the length of training.

A schedule is built from the optimizer and the number of optimizer steps of the whole training.  It is a function of
the step alone, so that a resumed training follows the same curve.
"""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    r"""Linear warm-up, then half a cosine down to a fraction of the learning rate.

    At step s of S with W = ``warmup`` S: :math:`(s + 1) / W` before W, then
    :math:`f + (1 - f) (1 + \cos(\pi (s - W) / (S - W))) / 2`.

    Args:
        optimizer: Its learning rates are the highest ones.
        total_steps: S.
        warmup: Fraction of the steps that warm up, in [0, 1).
        final: f, the fraction of the learning rate that is left at the end.

    Raises:
        ValueError: for fractions out of range.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.02, final: float = 0.0) -> None:
        if not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise ValueError(f"warmup must lie in [0, 1) and final in [0, 1]; got {warmup} and {final}")
        rise = int(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            done = min(1.0, (step - rise) / max(1, total_steps - rise))
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)


class Constant(LambdaLR):
    """The same learning rate throughout.

    Args:
        optimizer: Its learning rates are kept.
        total_steps: Of no effect.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int) -> None:
        super().__init__(optimizer, lambda _: 1.0)


def planned_steps(trainer: Trainer) -> int:
    """The optimizer steps of a whole training.

    Raises:
        ValueError: for a training without a planned end.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError(
            "the schedule of the learning rate must know how long the training is: give trainer.max_steps or "
            "trainer.max_epochs; trainer.max_time may end it before"
        )
    return int(steps)
