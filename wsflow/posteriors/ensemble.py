"""Trained networks themselves: deep ensembles (Lakshminarayanan et al. 2017) and the networks of a zoo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from wsflow.posteriors.base import Draws, PosteriorMethod
from wsflow.posteriors.recipe import Recipe
from wsflow.tasks.base import BaseTask
from wsflow.zoo.datamodule import ZooDataModule
from wsflow.zoo.write import MANIFEST


class DeepEnsemble(PosteriorMethod):
    """Networks trained independently, from other starts and in other data orders; one of them is the single network.

    Args:
        recipe: How they are trained.
    """

    one_by_one: ClassVar[bool] = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Train n networks; every epoch of each is one gradient evaluation."""
        began = time.process_time()
        theta = self.recipe.train(task, n, seed)
        return Draws(theta, seconds=time.process_time() - began, gradient_evaluations=float(n * self.recipe.epochs))


class ZooEnsemble(PosteriorMethod):
    """Final networks of a zoo's runs that no flow has seen: a deep ensemble that is trained already.

    Seed s takes the runs s n, ..., s n + n - 1 of the split, so that seeds share none.

    Args:
        data: The zoo and its split by run.
        split: ``val`` or ``test``.
    """

    one_by_one: ClassVar[bool] = True

    def __init__(self, data: ZooDataModule, split: str = "test") -> None:
        self.data, self.split = data, split

    def reads(self, seed: int) -> list[Path]:
        """The zoo's manifest, which knows its files by their checksums."""
        return [Path(self.data.path) / MANIFEST]

    def fit(self, task: BaseTask, n: int, seed: int) -> Draws:
        """Read n networks; their training is counted in gradient evaluations, its seconds are not known.

        Raises:
            ValueError: where the split has too few runs.
        """
        began = time.process_time()
        rows = self.data.rows(self.split, final_only=True)
        if (seed + 1) * n > len(rows):
            raise ValueError(
                f"the {self.split} split of {self.data.path} has {len(rows)} runs; {n} networks of seed {seed} need "
                f"{(seed + 1) * n}"
            )
        theta = self.data.zoo.rows(rows[seed * n : (seed + 1) * n])
        evaluations = float(n * trained_epochs(self.data))
        return Draws(theta, seconds=time.process_time() - began, gradient_evaluations=evaluations)


def trained_epochs(data: ZooDataModule) -> float:
    """Epochs that a run of a zoo trained for, 0 where its manifest does not say."""
    collector = data.zoo.manifest.get("collector") or {}
    return float(collector.get("init_args", {}).get("epochs", 0))
