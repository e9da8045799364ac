"""``wsflow bayes``: predictions averaged over generated networks, beside real ones.

The file that it writes holds, for each set of networks, scores by size of the ensembles (mean, standard deviation and
every ensemble's own), means over pairs of networks, and the reliability diagram of the largest ensemble.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from wsflow.bayes import (
    ImportanceWeights,
    OtherTask,
    OutlierSource,
    SizeScores,
    by_size,
    disagreement,
    mixing,
    predictive,
    reliability,
)
from wsflow.bayes.table import render
from wsflow.commands.evaluate import Networks, data_module, stored_networks
from wsflow.commands.posterior_weights import posterior_weights
from wsflow.description import plain
from wsflow.files import write_whole
from wsflow.flow import Trace
from wsflow.tasks import BaseTask, ClassificationTask
from wsflow.zoo import ZooDataModule

BEST, HELDOUT = "best training run", "held-out runs"

PAIRS = 50
"""Networks whose pairs are compared."""


class Judged(NamedTuple):
    """What was measured of one set of networks.

    Attributes:
        theta: (n, D).
        weights: Of the networks; None where all count alike.
        sizes: Scores of ensembles by their size.
        pairs: Means over pairs of networks.
        diagram: Reliability of the largest ensemble; None for regressions.
    """

    theta: Tensor
    weights: ImportanceWeights | None
    sizes: dict[int, SizeScores]
    pairs: dict[str, float]
    diagram: dict[str, Any] | None


def bayes(
    samples: Sequence[str],
    zoo: str | None = None,
    heldout: bool = False,
    split: Literal["val", "test"] = "val",
    sizes: str = "1,5,10,50",
    ood: OutlierSource | BaseTask | None = None,
    importance: float | None = None,
    trace: Trace | None = None,
    calibrate: bool = False,
    n: int = 400,
    seed: int = 0,
    out: str | None = None,
) -> None:
    """Average the predictions of generated networks, and score ensembles of several sizes.

    Args:
        samples: Folders of generated networks, or zoos, of one weight space.
        zoo: The zoo that tells the task and the runs; by default the one that the samples name.
        heldout: Whether the held-out runs of the zoo (a deep ensemble) and its best single training run are judged too.
        split: Whose data, and whose runs are held out.
        sizes: How many networks are averaged, such as 1,5,10,50; sizes that there are too few networks for are left
            out.
        ood: Where inputs come from that are not the task's: Noise, ShuffledFeatures, or another task, such as
            FashionMNIST.
        importance: Also weigh generated networks by p(D_train | theta)^T p0(theta) / q(theta) with this T, as samples
            of the posterior tempered by it; for flows on Euclidean with a Gaussian prior.
        trace: How the divergence in q is found: Hutchinson with 25 probes by default, whose standard error is printed
            and warned of where it makes the weights noise; ExactTrace has none and costs one pass per weight.
        calibrate: Also score each average with a temperature of its own, fitted on validation data; with test data.
        n: Networks of each set at most, the first ones.
        seed: Of the draw of ensembles and of noise.
        out: JSON file to write; ``bayes.json`` beside the first samples by default.

    Raises:
        ValueError: where the networks, the zoo or the settings do not fit.
    """
    numbers = _numbers(sizes)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if trace is not None and importance is None:
        raise ValueError(f"the trace {type(trace).__name__} is for importance weights: give --importance too, or none")
    stored = {_label(path, samples): stored_networks(Path(path), n) for path in samples}
    if not stored:
        raise ValueError("give folders of generated networks by --samples")
    first = next(iter(stored.values()))
    data = data_module(first, zoo, None, None)
    sets = _sets(stored, data, split if heldout else None, n)
    outliers = OtherTask(ood) if isinstance(ood, BaseTask) else ood
    weights: dict[str, ImportanceWeights] = {}
    if importance is not None:
        for path in samples:
            name = f"{_label(path, samples)}, weighted"
            sets[name] = stored[_label(path, samples)].theta
            weights[name] = posterior_weights(path, sets[name], data.task, importance, seed, trace)
    judged = {
        name: _judge(data.task, theta, split, numbers, outliers, weights.get(name), seed, calibrate)
        for name, theta in sets.items()
    }
    pairs = {name: one.pairs for name, one in judged.items() if one.pairs}
    print(render({name: one.sizes for name, one in judged.items()}, pairs), end="")
    for name, one in judged.items():
        missing = [str(size) for size in numbers if size > len(one.theta)]
        if missing and name != BEST:
            print(f"{name}: {len(one.theta)} networks, too few for ensembles of {', '.join(missing)}")
        if one.weights is not None:
            print(f"{name}: {one.weights}")
    file = Path(out) if out is not None else first.folder / "bayes.json"
    origin = {"samples": list(samples), "zoo": data.path, "split": split, "seed": seed, "n": n}
    origin |= {"ood": outliers.name if outliers is not None else None, "importance": importance, "trace": plain(trace)}
    values = {name: _plain(one) for name, one in judged.items()}
    write_whole(file, json.dumps({"origin": origin, "networks": values}, indent=2) + "\n")
    print(f"scores in {file}")


def _sets(stored: Mapping[str, Networks], data: ZooDataModule, heldout: str | None, n: int) -> dict[str, Tensor]:
    """All sets of networks, (n, D) each; held-out runs as they were trained."""
    sets = {}
    for name, networks in stored.items():
        if networks.space != data.task.space:
            raise ValueError(f"the networks of {name} are of another weight space than the zoo {data.path}")
        sets[name] = networks.theta
    if heldout is not None:
        sets[HELDOUT] = data.zoo.rows(data.rows(heldout, final_only=True)[:n])
        sets[BEST] = _best(data)
    return sets


def _best(data: ZooDataModule) -> Tensor:
    """The training run (1, D) whose loss on validation data is least, as recorded when it was trained, if it was."""
    rows, known = data.rows("train", final_only=True), data.zoo.metrics.get("val.loss")
    loss = known[rows] if known is not None else data.task.evaluate(data.zoo.rows(rows), "val")["loss"]
    return data.zoo.rows(rows[loss.argmin().cpu()][None])


def _judge(
    task: BaseTask,
    theta: Tensor,
    split: str,
    sizes: Sequence[int],
    outliers: OutlierSource | None,
    weights: ImportanceWeights | None,
    seed: int,
    calibrate: bool,
) -> Judged:
    possible = [size for size in sizes if size <= len(theta)] or [1]
    logs = None if weights is None else weights.log_weights
    found = by_size(task, theta, split, possible, outliers, logs, seed=seed, calibrate=calibrate)
    pairs = disagreement(task, theta[:PAIRS], split).summary() if len(theta) > 1 and weights is None else {}
    diagram = _diagram(task, theta, split, max(possible), logs) if isinstance(task, ClassificationTask) else None
    return Judged(theta, weights, found, pairs, diagram)


def _diagram(task: BaseTask, theta: Tensor, split: str, size: int, log_weights: Tensor | None) -> dict[str, Any]:
    """Reliability of the first networks."""
    rows = mixing(size, log_weights=None if log_weights is None else log_weights[:size])
    diagram = reliability(predictive(task, theta[:size], split, weights=rows))
    parts = {"confidence": diagram.confidence[0], "accuracy": diagram.accuracy[0], "count": diagram.count[0]}
    return {"size": size, "edges": diagram.edges.tolist()} | {k: _numbers_or_null(v) for k, v in parts.items()}


def _plain(one: Judged) -> dict[str, Any]:
    """As JSON has it."""
    sizes = {
        str(size): {
            "ensembles": scores.count,
            "disjoint": scores.disjoint,
            "mean": scores.mean,
            "std": scores.std,
            "each": {name: value.tolist() for name, value in scores.each.items()},
        }
        for size, scores in one.sizes.items()
    }
    values = {"count": len(one.theta), "sizes": sizes, "pairs": one.pairs, "reliability": one.diagram}
    if one.weights is None:
        return values
    told = one.weights
    return values | {
        "effective": told.effective,
        "weights": told.log_weights.exp().tolist(),
        "standard_error": told.standard_error,
    }


def _numbers_or_null(values: Tensor) -> list[float | None]:
    return [None if missing else value for value, missing in zip(values.tolist(), values.isnan().tolist(), strict=True)]


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"sizes must be positive numbers such as 1,5,10,50, got {text!r}")
    return [int(part) for part in parts]


def _label(path: str, every: Sequence[str]) -> str:
    """The name of a folder or, where it is just ``samples``, of what it lies in; the path where that is not unique."""

    def short(one: str) -> str:
        folder = Path(one).resolve()
        return folder.parent.name if folder.name == "samples" else folder.name

    return short(path) if [short(one) for one in every].count(short(path)) == 1 else path
