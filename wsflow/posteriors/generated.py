"""Networks that a trained flow generates, as one method among the others."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from wsflow.fields import GradientInformed, VectorField
from wsflow.flow import Sampler
from wsflow.posteriors.base import Draws, PosteriorMethod
from wsflow.tasks.base import BaseTask


class FlowEnsemble(PosteriorMethod):
    """Samples of a trained flow.

    Args:
        checkpoint: Its file.
        sampler: How the flow is solved; 16 Euler steps by default.
        first: Index of the first sample: samples of other indices are other networks.

    ``{seed}`` in the checkpoint's path stands for the seed where a training was made for each seed.
    """

    one_by_one: ClassVar[bool] = True

    def __init__(self, checkpoint: str, sampler: Sampler | None = None, first: int = 0) -> None:
        self.checkpoint, self.sampler, self.first = checkpoint, sampler, first

    def reads(self, seed: int) -> list[Path]:
        """The checkpoint."""
        return [Path(self.checkpoint.format(seed=seed))]

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Generate n networks; seconds are those of sampling, and so are gradients, of fields that take some.

        ``notes`` hold what was paid for once, as far as the checkpoint and its folder say: seconds of the flow's
        training, the networks that it was trained on and the gradient evaluations that trained these.

        Raises:
            ValueError: where the flow generates other networks than the task's.
        """
        from wsflow.api import load  # it imports Lightning, which the other methods do without

        flow = load(self.checkpoint.format(seed=seed))
        if flow.weight_space != task.space:
            raise ValueError(f"{self.checkpoint} generates networks of another architecture than task {task.name}")
        sampler = self.sampler or Sampler()
        began = time.process_time()
        theta = flow.sample(n, seed, sampler, first=self.first)
        seconds = time.process_time() - began
        gradients = n * sampler.evaluations * part_seen(flow.module.field, task)
        notes = {**self._fit_seconds(seed), **_zoo(flow.data)}
        return Draws(theta, seconds=seconds, gradient_evaluations=gradients, notes=notes)

    def _fit_seconds(self, seed: int) -> dict[str, float]:
        file = Path(self.checkpoint.format(seed=seed)).parent.parent / "timing.json"
        times = json.loads(file.read_text()) if file.is_file() else {}
        return {f"flow.{name}_seconds": float(times[name]) for name in ("fit", "fit_before") if name in times}


def part_seen(field: VectorField, task: BaseTask) -> float:
    """The part of the train split that one evaluation of the field takes a gradient on."""
    if not isinstance(field, GradientInformed):
        return 0.0
    count = len(task.data("train")[0])
    return min(field.points, count) / count


def _zoo(data: Mapping[str, Any] | None) -> dict[str, float]:
    """Train networks of the data module that a checkpoint describes, and what they took."""
    args = (data or {}).get("init_args", {})
    collector = (args.get("collector") or {}).get("init_args", {})
    if not {"runs", "epochs"} <= set(collector):
        return {}
    runs = float(args.get("train_runs") or round(collector["runs"] * args["fractions"][0]))
    return {"zoo.networks": runs, "zoo.gradient_evaluations": runs * collector["epochs"]}
