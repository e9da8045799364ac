"""What learning curves come to: means and spread over seeds, and steps to a level, as plain data and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from wsflow.uses.initialisation import Curves, steps_to


def summary(curves: list[Curves], level: float) -> dict[str, Any]:
    """What is kept of one kind of start: curves over seeds, and steps to the level (None where fewer than half arrive).

    Args:
        curves: Of every seed.
        level: Accuracy asked for.
    """
    medians = [median(one, level) for one in curves]
    reached = fmean(float(steps_to(one, level).isfinite().double().mean()) for one in curves)
    steps: dict[str, Any] = {"by_seed": [None if math.isinf(k) else k for k in medians], "reached": reached}
    if not any(map(math.isinf, medians)):
        steps |= {"mean": fmean(medians), "std": stdev(medians) if len(medians) > 1 else None}
    names = curves[0].scores
    by_seed = {name: torch.stack([one.scores[name].double().mean(0) for one in curves]) for name in names}
    return {
        "steps": list(curves[0].steps),
        "steps_to_level": steps,
        "curves": {name: _moments(value) for name, value in by_seed.items()},
    }


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A result as a table: the heading, and a row a kind of start."""
    origin = result["origin"]
    last = origin["steps"]
    lines = [["start", "accuracy at step 0", f"steps to {100 * origin['level']:g} %", f"accuracy at step {last}"]]
    for kind, values in result["kinds"].items():
        curve, steps = values["curves"]["accuracy"], values["steps_to_level"]
        known = f"{steps['mean']:.0f}{_plus_minus(steps['std'], 0)}" if "mean" in steps else f"more than {last}"
        ends = [f"{curve['mean'][k]:.3f}{_plus_minus(curve['std'][k], 3)}" for k in (0, -1)]
        lines.append([kind, ends[0], known, ends[1]])
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    head, *lines = rows(result)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def median(curves: Curves, level: float) -> float:
    """The lower median over networks, infinite where fewer than half arrive."""
    return float(steps_to(curves, level).median())


def _moments(by_seed: Tensor) -> dict[str, list[float] | list[None]]:
    spread = by_seed.std(0).tolist() if len(by_seed) > 1 else [None] * by_seed.shape[1]
    return {"mean": by_seed.mean(0).tolist(), "std": spread}


def _plus_minus(spread: float | None, digits: int) -> str:
    return "" if spread is None else f" ± {spread:.{digits}f}"
