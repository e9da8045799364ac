"""The lines between networks, before and after these are aligned.

Networks can be brought near one of them, near the centre of all, or, pair by pair, one near the other; the last says
how well the two can be connected, the first two whether one arrangement serves all pairs.  Aligners that look at data
see the train split alone, whatever split the lines are judged on.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsflow.alignment import Aligner, check_same_functions
from wsflow.alignment.barrier import Barriers, Match, Paths, barriers, paths
from wsflow.tasks import BaseTask

PROBE = 16
"""Inputs on which an aligned network must compute what it computed before."""

Move = tuple[Tensor, Match | None]
"""Networks (N, D), and what brings the second of a pair near the first; None where they stay as they are."""


class Target(ABC):
    """What networks are brought near; ``name`` is what tables call it."""

    name: ClassVar[str]

    @abstractmethod
    def move(self, theta: Tensor, match: Match) -> Move:
        """Arrange networks.

        Args:
            theta: (N, D).
            match: Brings networks (P, D) near others (P, D) or near one (D,).
        """


class OneNetwork(Target):
    """All are brought near one network.

    Args:
        network: (D,).
    """

    name = "one network"

    def __init__(self, network: Tensor) -> None:
        self.network = network

    def move(self, theta: Tensor, match: Match) -> Move:
        """The aligned networks."""
        return match(theta, self.network), None


class EachOther(Target):
    """The second of each pair is brought near the first."""

    name = "each other"

    def move(self, theta: Tensor, match: Match) -> Move:
        """The networks as they are; alignment comes with the pairs."""
        return theta, match


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
            return self._judge("", "", self.theta, None, _Clock())
        clock = _Clock()
        theta, match = target.move(self.theta, partial(self._match, aligner, clock))
        return self._judge(name(aligner), target.name, theta, match, clock)

    def _judge(self, aligner: str, target: str, theta: Tensor, match: Match | None, clock: _Clock) -> Connectivity:
        found = barriers(self.evaluate, theta, self.run, match)
        seconds = clock.seconds
        first, second = theta[self.first], theta[self.second]
        second = second if match is None else match(second, first)
        return Connectivity(aligner, target, found, paths(self.evaluate, first, second, self.points), seconds)

    def _match(self, aligner: Aligner, clock: _Clock, theta: Tensor, reference: Tensor) -> Tensor:
        """Networks brought near their references; raises where that changed their functions."""
        with clock:
            perms = aligner.align(self.task.space, theta, reference, self.objective)
        moved = self.task.space.permute(theta, perms)
        check_same_functions(self.task.space, theta, moved, self.task.probe(PROBE))
        return moved


class _Clock:
    """Adds up the seconds spent inside it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begin


def name(aligner: Aligner) -> str:
    """Class of an aligner, with the arguments that are not its defaults."""
    return _short(aligner.description(), type(aligner))


def _short(description: Mapping[str, Any], kind: type | None = None) -> str:
    defaults = inspect.signature(kind).parameters if kind else {}
    given = {
        key: value
        for key, value in description.get("init_args", {}).items()
        if key not in defaults or value != defaults[key].default
    }
    text = ", ".join(f"{key}={_short(v) if isinstance(v, Mapping) else v}" for key, v in given.items())
    kind_name = description["class_path"].rpartition(".")[2]
    return f"{kind_name}({text})" if text else kind_name
