"""The lines between networks, before and after these are aligned.

Networks can be brought near one of them, near the centre of all, or, pair by pair, one near the other; the last says
how well the two can be connected, the first two whether one arrangement serves all pairs.  Aligners that look at data
see the train split alone, whatever split the lines are judged on.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from wsflow.alignment import Aligner, RebasinObjective, ZooCenter, check_same_functions
from wsflow.alignment.barrier import Barriers, Match, Paths, barriers, paths
from wsflow.tasks import BaseTask
from wsflow.weightspace import Objective

PROBE = 16
"""Inputs on which an aligned network must compute what it computed before."""

PARTS = (Aligner, RebasinObjective)
"""What has a name of its own in the name of an aligner."""


class Matcher:
    """Brings networks near others without changing their functions, and adds up what that takes.

    Args:
        task: The task.
        aligner: How.
        objective: For aligners that look at a loss.

    Attributes:
        seconds: Spent in the aligner so far.
    """

    def __init__(self, task: BaseTask, aligner: Aligner, objective: Objective) -> None:
        self.task, self.aligner, self.objective = task, aligner, objective
        self.seconds = 0.0

    def __call__(self, theta: Tensor, reference: Tensor) -> Tensor:
        """Networks (P, D) brought near others (P, D), one by one, or all near one (D,).

        Raises:
            ValueError: where an aligned network computes another function.
        """
        return self._moved(theta, lambda: self.aligner.align(self.task.space, theta, reference, self.objective))

    def to_center(self, theta: Tensor) -> Tensor:
        """Networks (N, D) brought near their own centre.

        Raises:
            ValueError: where an aligned network computes another function.
        """
        center = self.aligner if isinstance(self.aligner, ZooCenter) else ZooCenter(self.aligner)
        space, objective = self.task.space, self.objective
        return self._moved(theta, lambda: center.align_to_center(space, theta, objective=objective).perms)

    def _moved(self, theta: Tensor, align: Callable[[], list[Tensor]]) -> Tensor:
        begin = time.perf_counter()
        perms = align()
        self.seconds += time.perf_counter() - begin
        moved = self.task.space.permute(theta, perms)
        check_same_functions(self.task.space, theta, moved, self.task.probe(PROBE))
        return moved


class Target(ABC):
    """What networks are brought near; ``name`` is what tables call it."""

    name: ClassVar[str]

    @abstractmethod
    def move(self, theta: Tensor, matcher: Matcher) -> tuple[Tensor, Match | None]:
        """Arrange networks (N, D).

        Returns:
            The networks, and what brings the second of a pair near the first; None where they stay as they are.
        """


class OneNetwork(Target):
    """All are brought near one network.

    Args:
        network: (D,).
    """

    name = "one network"

    def __init__(self, network: Tensor) -> None:
        self.network = network

    def move(self, theta: Tensor, matcher: Matcher) -> tuple[Tensor, Match | None]:
        """The aligned networks."""
        return matcher(theta, self.network), None


class Center(Target):
    """All are brought near their own centre."""

    name = "the centre"

    def move(self, theta: Tensor, matcher: Matcher) -> tuple[Tensor, Match | None]:
        """The aligned networks."""
        return matcher.to_center(theta), None


class EachOther(Target):
    """The second of each pair is brought near the first."""

    name = "each other"

    def move(self, theta: Tensor, matcher: Matcher) -> tuple[Tensor, Match | None]:
        """The networks as they are; alignment comes with the pairs."""
        return theta, matcher


@dataclass(frozen=True, eq=False)
class Connectivity:
    """What the lines between networks are like.

    Attributes:
        aligner: The aligner's class with the arguments that are not its defaults; empty for networks as they are.
        target: What they were aligned to.
        barriers: Midpoints of all pairs.
        paths: Lines between some pairs.
        seconds: What aligning took.
    """

    aligner: str
    target: str
    barriers: Barriers
    paths: Paths
    seconds: float

    @property
    def label(self) -> str:
        """A name for tables and figures."""
        return f"{self.aligner}, to {self.target}" if self.aligner else "as trained"


class Lines:
    """The lines between N networks of a task.

    Args:
        task: The task.
        theta: (N, D).
        run: (N,), the run of each network.
        split: Of the data that lines are judged on.
        pairs: How many pairs, drawn from those of different runs, are judged along their whole line.
        points: How many points of a line.
        batch_size: Train data points that an aligner's objective sees at a time; all by default.
        seed: Of the pairs.

    Raises:
        ValueError: for no pairs, or a batch larger than the train split.
    """

    def __init__(
        self,
        task: BaseTask,
        theta: Tensor,
        run: Tensor,
        split: str = "test",
        pairs: int = 200,
        points: int = 11,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        self.task, self.theta, self.run, self.points = task, theta, run, points
        self.evaluate = partial(task.evaluate, split=split)
        self.objective = task.objective("train", batch_size)
        between = (run[:, None] != run).triu().nonzero()
        order = torch.randperm(len(between), generator=torch.Generator().manual_seed(seed))
        self.first, self.second = between[order[:pairs].sort().values].T

    def measure(self, aligner: Aligner | None = None, target: Target | None = None) -> Connectivity:
        """Judge the lines, after the networks were brought near the target, or as they are."""
        if aligner is None or target is None:
            return Connectivity("", "", *self._judge(self.theta, None), 0.0)
        matcher = Matcher(self.task, aligner, self.objective)
        theta, match = target.move(self.theta, matcher)
        found = self._judge(theta, match)
        return Connectivity(name(aligner), target.name, *found, matcher.seconds)

    def _judge(self, theta: Tensor, match: Match | None) -> tuple[Barriers, Paths]:
        found = barriers(self.evaluate, theta, self.run, match)
        first, second = theta[self.first], theta[self.second]
        second = second if match is None else match(second, first)
        return found, paths(self.evaluate, first, second, self.points)


def name(thing: object) -> str:
    """Class of an aligner, or of what an aligner is made of, with the arguments that it does not choose by itself."""
    kind = type(thing)
    parameters = inspect.signature(kind).parameters
    shown = {key: getattr(thing, key) for key, found in parameters.items() if found.default is found.empty}
    for place, key in enumerate(parameters):
        value = getattr(thing, key)
        if (place == 0 and isinstance(value, PARTS)) or _text(getattr(kind(**shown), key)) != _text(value):
            shown[key] = value
    words = [
        _text(v) if isinstance(v, PARTS) and not i else f"{k}={_text(v)}" for i, (k, v) in enumerate(shown.items())
    ]
    return f"{kind.__name__}({', '.join(words)})" if words else kind.__name__


def _text(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} numbers"
    return name(value) if isinstance(value, PARTS) else str(value)
