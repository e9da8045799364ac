"""Diabetes: disease progression after a year, in scikit-learn's copy (442 patients, 10 features, one target)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.regression import RegressionTask
from wsflow.tasks.splits import split_indices, standardise


class Diabetes(RegressionTask):
    """Regression from 10 features; split 80/10/10.

    Features and target are standardised with the train split's mean and standard deviation, so that an error of 1 is
    that of predicting the mean.

    Args:
        widths: Layer sizes of the base network.
        split_seed: Seed of the data split.
    """

    terms = "Efron, Hastie, Johnstone and Tibshirani (2004), as shipped with scikit-learn; they state no licence"

    def __init__(self, widths: Sequence[int] = (10, 16, 16, 1), split_seed: int = 0) -> None:
        self.widths = list(widths)
        self.split_seed = split_seed

    @property
    def network(self) -> dict[str, Any]:
        """A ReLU network with one output value."""
        args = {"widths": self.widths}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "identity"}

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """354 train, 44 validation and 44 test patients."""
        from sklearn.datasets import load_diabetes

        inputs, values = (torch.from_numpy(array) for array in load_diabetes(return_X_y=True))
        parts = split_indices(len(inputs), seed=self.split_seed)
        scaled = standardise(*(inputs[index] for index in parts))
        targets = standardise(*(values[index, None] for index in parts))
        return dict(zip(("train", "val", "test"), zip(scaled, targets, strict=True), strict=True))
