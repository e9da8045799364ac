"""What a conditional flow is told of each network of a zoo: one number for each label.

Labels are plain numbers; :class:`wsflow.fields.Conditioning` normalises them.  Those of test data are refused, because
a flow that has been told of them has seen the test data.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.base import SPLITS, BaseTask
from wsflow.zoo.shards import ZooError
from wsflow.zoo.store import Zoo


class Label(ABC):
    """A number for each network.

    Args:
        name: What requests call it.
        log: Whether its logarithm is what counts; for positive numbers of several orders of magnitude.
    """

    def __init__(self, name: str, log: bool = False) -> None:
        self.name, self.log = name, log

    @abstractmethod
    def values(self, zoo: Zoo, task: BaseTask) -> Tensor:
        """(N,), of every snapshot of a zoo; NaN where it is not known.

        Raises:
            ZooError: where the zoo does not hold what is needed.
        """

    @property
    def description(self) -> dict[str, Any]:
        """What a flow keeps of it."""
        return {"name": self.name, "log": self.log}


class MetricLabel(Label):
    """How good a network is: a metric that the zoo records, or one of the train split, computed.

    Args:
        metric: Such as ``val.loss`` or ``train.accuracy``, or any that an imported zoo records.
        name: What requests call it; what follows the dot by default.
        log: Whether its logarithm is what counts.

    Raises:
        ValueError: for a metric of the test split.
    """

    def __init__(self, metric: str = "val.loss", name: str | None = None, log: bool = False) -> None:
        split, _, short = metric.partition(".")
        if split == "test":
            raise ValueError(f"{metric} would tell the flow of the test data; choose one of the val or train split")
        super().__init__(name or short or metric, log)
        self.metric = metric

    def values(self, zoo: Zoo, task: BaseTask) -> Tensor:
        """(N,)."""
        if self.metric in zoo.metrics:
            return zoo.metrics[self.metric].float()
        split, _, short = self.metric.partition(".")
        known = split in SPLITS and bool(short) and task.has_data
        found = task.evaluate(zoo.rows(torch.arange(len(zoo))), split) if known else {}
        if short not in found:
            scores = ", ".join(sorted(found)) or "nothing of that name; its scores are named as val.loss"
            there = ", ".join(sorted(name for name in zoo.metrics if not name.startswith("test."))) or "none"
            raise ZooError(
                f"{zoo.path} records no metric {self.metric} ({there}), and task {task.name} gives only {scores}"
            )
        return found[short].float()


class StepLabel(Label):
    """How long a network was trained: optimiser steps, or epochs.

    Args:
        epochs: Whether to count epochs instead of steps.
        name: What requests call it; ``step`` or ``epoch`` by default.
        log: Whether its logarithm is what counts.
    """

    def __init__(self, epochs: bool = False, name: str | None = None, log: bool = False) -> None:
        super().__init__(name or ("epoch" if epochs else "step"), log)
        self.epochs = epochs

    def values(self, zoo: Zoo, task: BaseTask) -> Tensor:
        """(N,)."""
        if not self.epochs:
            return zoo.step.float()
        size = ((zoo.collected_by or {}).get("init_args") or {}).get("batch_size")
        if size is None:
            raise ZooError(f"{zoo.path} does not record its batch size, so its steps are no epochs; count steps")
        return zoo.step / -(-len(task.data("train")[0]) // int(size))


class RunLabel(Label):
    """Anything else that is known of each run, such as the data set or the learning rate it was trained with.

    Args:
        file: JSON of ``{"run": number}``; runs that it leaves out have no label.
        name: What requests call it.
        log: Whether its logarithm is what counts.
    """

    def __init__(self, file: str, name: str, log: bool = False) -> None:
        super().__init__(name, log)
        self.file = file

    def values(self, zoo: Zoo, task: BaseTask) -> Tensor:
        """(N,)."""
        table = {int(run): float(value) for run, value in json.loads(Path(self.file).read_text()).items()}
        return torch.tensor([table.get(run, torch.nan) for run in zoo.run.tolist()])
