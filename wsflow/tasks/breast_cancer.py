"""Breast cancer: UCI 17, Wisconsin diagnostic, in scikit-learn's copy (569 points, 30 features, 2 classes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.classification import ClassificationTask
from wsflow.tasks.splits import split_indices, standardise


class BreastCancer(ClassificationTask):
    """Malignant or benign, from 30 features of a digitised image; split 80/10/10 with both classes in proportion.

    Features are standardised with the train split's mean and standard deviation.

    Args:
        widths: Layer sizes of the base network; the thesis's by default.
        split_seed: Seed of the data split.
    """

    terms = "Wolberg, Mangasarian, Street and Street (1995), UCI Machine Learning Repository; CC BY 4.0"

    def __init__(self, widths: Sequence[int] = (30, 16, 16, 2), split_seed: int = 0) -> None:
        self.widths = list(widths)
        self.split_seed = split_seed

    @property
    def network(self) -> dict[str, Any]:
        """A ReLU network with logits for two classes."""
        args = {"widths": self.widths}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "softmax"}

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """455 train, 57 validation and 57 test points."""
        from sklearn.datasets import load_breast_cancer

        inputs, labels = (torch.from_numpy(array) for array in load_breast_cancer(return_X_y=True))
        parts = split_indices(len(inputs), seed=self.split_seed, labels=labels)
        scaled = standardise(*(inputs[index] for index in parts))
        targets = [labels[index].long() for index in parts]
        return dict(zip(("train", "val", "test"), zip(scaled, targets, strict=True), strict=True))
