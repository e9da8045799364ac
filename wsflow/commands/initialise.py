"""``wsflow initialise``: generated networks as starts of training, beside random starts and trained networks.

Each seed takes networks of its own from every kind of start, and an order of the data.  ``initialisation.json`` holds,
for each kind, the median step at which its networks reach the level, by seed, and the curves: means over a seed's
networks, then mean and standard deviation over seeds.  At step 0 the networks are scored as they come, which is their
evaluation on the task they were not made for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from wsflow.commands.equal_cost import recorded_collector
from wsflow.commands.run import shown
from wsflow.description import build, plain
from wsflow.files import write_whole
from wsflow.flow import sample_generator
from wsflow.tasks import BaseTask, ClassificationTask
from wsflow.uses import Curves, learning_curves, markdown, median, shuffled, summary
from wsflow.weightspace import Initializer, NetworkInitializer
from wsflow.zoo import Adam, RunOptimizer, Zoo, ZooDataModule
from wsflow.zoo.write import MANIFEST

STARTS = 3
"""What a seed is used for here; collectors and evaluation use 0 to 2."""


class Plan(NamedTuple):
    """How every kind of start is trained and scored; see :func:`initialise`."""

    task: BaseTask
    optimizer: RunOptimizer
    steps: int
    every: int
    batch_size: int
    split: str
    level: float


def initialise(
    samples: str,
    task: BaseTask,
    n: int = 20,
    seeds: int = 5,
    steps: int = 300,
    every: int = 5,
    batch_size: int = 250,
    optimizer: RunOptimizer | None = None,
    initializer: Initializer | None = None,
    level: float = 0.8,
    split: Literal["val", "test"] = "val",
    out: str | None = None,
) -> None:
    """Train generated networks, random starts and trained networks on a task, and compare how fast they learn.

    Args:
        samples: Folder of generated networks.
        task: What to train on, such as FashionMNIST; its networks must be of the samples' weight space.
        n: Networks of each kind and seed.
        seeds: How often all is repeated, with other networks and another order of the data.
        steps: Of training.
        every: Steps between scores.
        batch_size: Data points per network and step.
        optimizer: Of all trainings; Adam with a learning rate of 1e-3 by default.
        initializer: Of the random starts; by default as in the zoo that the flow was trained on, or torch's own where
            that is not known.  What was taken is printed and kept.
        level: Accuracy whose first step is asked for.
        split: Whose data scores are of; its runs are the trained networks, where the flow's zoo is at hand and has
            enough of them for every seed.
        out: Folder for the figures; ``initialisation`` beside the samples by default.

    Raises:
        ValueError: where the samples are too few or of another weight space, or the task has no accuracy.
    """
    zoo = Zoo.open(samples)
    if n < 1 or seeds < 1 or n * seeds > len(zoo.run_ids):
        raise ValueError(
            f"{seeds} seeds of {n} networks need {max(n, 1) * max(seeds, 1)} samples, {samples} has {len(zoo.run_ids)}"
        )
    if not isinstance(task, ClassificationTask):
        raise ValueError(f"steps to an accuracy need a classification task, and {task.name} is none")
    if zoo.space != task.space:
        raise ValueError(f"the networks in {samples} are not of the network of {task.name}; give the task its widths")
    plan = Plan(task, optimizer or Adam(), steps, every, batch_size, split, level)
    data = _data(zoo)
    random, source = _random(data, initializer)
    print(f"random starts: {type(random).__name__}, {source}")
    trained = _trained_rows(data, split, n, seeds)
    found: dict[str, list[Curves]] = {}
    for seed in range(seeds):
        for kind, starts in _starts(zoo, random, data, trained, n, seed):
            found.setdefault(kind, []).append(_trained(plan, starts, seed))
            print(f"seed {seed}, {kind}: {_steps_in_words(median(found[kind][-1], level), steps)}", flush=True)
    folder = Path(out) if out is not None else Path(samples).resolve().parent / "initialisation"
    result = {
        "origin": {
            **_origin(plan, samples, n, seeds),
            "initializer": plain(random),
            "initializer_source": source,
        },
        "kinds": {kind: summary(curves, level) for kind, curves in found.items()},
    }
    from wsflow.uses.figures import save_learning_curves  # matplotlib takes its time to import

    folder.mkdir(parents=True, exist_ok=True)
    save_learning_curves(result, folder)
    write_whole(folder / "initialisation.json", json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    print(f"curves in {shown(folder)}")


def _starts(
    zoo: Zoo, random: Initializer, data: ZooDataModule | None, trained: Tensor | None, n: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Kinds of starts, (n, D) each."""
    mine = slice(seed * n, (seed + 1) * n)
    rows = zoo.rows(zoo.final().sort().values[mine])
    generator = sample_generator(seed, 0, purpose=[STARTS])
    yield "generated", rows
    yield "random", random.sample(zoo.space, n, generator)
    yield "generated, shuffled", shuffled(zoo.space, rows, generator)
    if data is not None and trained is not None:
        yield f"trained on {type(data.task).__name__}", data.zoo.rows(trained[mine])


def _random(data: ZooDataModule | None, given: Initializer | None) -> tuple[Initializer, str]:
    """The law of random starts, and where it is from."""
    if given is not None:
        return given, "as given"
    if data is None:
        return NetworkInitializer(), "since the zoo that the flow was trained on is not at hand; or give --initializer"
    collector = recorded_collector(data.zoo.manifest)
    if collector is None:
        return NetworkInitializer(), f"since {data.path} does not say how its runs began; or give --initializer"
    return collector.initializer, f"as the runs of {data.path}"


def _trained_rows(data: ZooDataModule | None, split: str, n: int, seeds: int) -> Tensor | None:
    """Rows of trained networks that no flow has seen, n for every seed; None, and said, where there are too few."""
    if data is None:
        print("trained networks: none, the zoo that the flow was trained on is not at hand")
        return None
    rows = data.rows(split, final_only=True)
    if len(rows) < n * seeds:
        print(f"trained networks: none, the {split} split has {len(rows)} runs and {seeds} seeds need {n * seeds}")
        return None
    return rows


def _data(zoo: Zoo) -> ZooDataModule | None:
    """The data of the flow's training, where its zoo is at hand."""
    description = zoo.manifest.get("data")
    data = build(description) if description else None
    return data if isinstance(data, ZooDataModule) and Path(data.path, MANIFEST).exists() else None


def _trained(plan: Plan, starts: Tensor, seed: int) -> Curves:
    return learning_curves(plan.task, starts, plan.optimizer, plan.steps, plan.every, plan.batch_size, plan.split, seed)


def _origin(plan: Plan, samples: str, n: int, seeds: int) -> dict[str, Any]:
    return {
        "samples": samples,
        "task": plan.task.description,
        "optimizer": plain(plan.optimizer),
        "n": n,
        "seeds": list(range(seeds)),
        **{name: getattr(plan, name) for name in ("steps", "every", "batch_size", "split", "level")},
    }


def _steps_in_words(steps: float, most: int) -> str:
    return f"half are there after {steps:.0f} steps" if math.isfinite(steps) else f"fewer than half after {most} steps"
