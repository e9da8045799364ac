"""Digits: 8x8 images of handwritten digits, bundled with scikit-learn (1,797 images, 10 classes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.classification import ClassificationTask
from wsflow.tasks.splits import split_indices, standardise


class Digits(ClassificationTask):
    """Ten digits from 8x8 images; split 80/10/10 with the classes in proportion.

    Images are (1, 8, 8), shifted and scaled by the train split's mean and standard deviation over all pixels.

    Args:
        widths: Layer sizes of the base network.
        split_seed: Seed of the data split.
    """

    terms = "Alpaydin and Kaynak (1998), UCI Machine Learning Repository; CC BY 4.0"

    def __init__(self, widths: Sequence[int] = (64, 32, 10), split_seed: int = 0) -> None:
        self.widths = list(widths)
        self.split_seed = split_seed

    @property
    def network(self) -> dict[str, Any]:
        """A ReLU network with logits for ten classes."""
        args = {"widths": self.widths}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "softmax"}

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """1,437 train, 180 validation and 180 test images."""
        from sklearn.datasets import load_digits

        images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        images = images.view(-1, 1, 8, 8)
        parts = split_indices(len(images), seed=self.split_seed, labels=labels)
        scaled = standardise(*(images[index] for index in parts), axes=(0, 1, 2, 3))
        targets = [labels[index].long() for index in parts]
        return dict(zip(("train", "val", "test"), zip(scaled, targets, strict=True), strict=True))
