"""``wsflow evaluate``: how good, new and diverse networks are, beside real runs and baselines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from wsflow.api import load
from wsflow.commands.run import read_timing, record_timing, run_folder
from wsflow.description import build
from wsflow.flow import Sampler, Solver
from wsflow.geometry import Euclidean, Geometry
from wsflow.metrics import (
    AverageBaseline,
    Baseline,
    DisplacementBaseline,
    EqualCostBaseline,
    Evaluation,
    GaussianBaseline,
    NoiseBaseline,
    Report,
    RetrievalBaseline,
    render,
    render_text,
)
from wsflow.weightspace import WeightSpace
from wsflow.zoo import Collector, Zoo, ZooDataModule, ZooError
from wsflow.zoo.train import DataOrder, steps_per_epoch, train_runs

TABLE_WIDTH = 150


class Networks(NamedTuple):
    """The networks to evaluate, and what is known of their origin.

    Attributes:
        theta: (n, D).
        space: Their weight space.
        geometry: Of the flow that generated them.
        data: How the data module of its training was made; None where that is not known.
        seconds: What one network cost; None where that is not known.
        folder: Where their report and timing lie.
    """

    theta: Tensor
    space: WeightSpace
    geometry: Geometry
    data: Mapping[str, Any] | None
    seconds: float | None
    folder: Path


def evaluate(
    samples: str | None = None,
    ckpt_path: str | None = None,
    zoo: str | None = None,
    split: Literal["val", "test"] = "val",
    n: int = 200,
    out: str | None = None,
    figures: str | None = None,
    seed: int = 0,
    steps: int = 16,
    solver: Solver | None = None,
    noise: float = 0.0,
    split_seed: int | None = None,
    fractions: Sequence[float] | None = None,
    baselines: bool = True,
) -> None:
    """Evaluate generated networks, or the runs of a zoo, against training and held-out runs.

    Args:
        samples: Folder of generated networks, or a zoo.
        ckpt_path: Instead of samples: a checkpoint, from which networks are generated.
        zoo: The zoo that the flow was trained on; by default the one that the samples or the checkpoint name.
        split: Whose runs and data the networks are held against.
        n: How many networks are evaluated, the first ones.
        out: JSON file to write; ``report.json`` beside the samples, or in the checkpoint's run, by default.
        figures: Folder for figures; ``figures`` beside the report by default.
        seed: Of the samples drawn from a checkpoint, and of the baselines.
        steps: Solver steps, with a checkpoint.
        solver: Euler by default, with a checkpoint.
        noise: Noise before every step, with a checkpoint.
        split_seed: Of the split of the zoo's runs; as in training by default.
        fractions: Of runs in train, validation and test; as in training by default.
        baselines: Whether baselines are evaluated too.

    Raises:
        ValueError: where the networks, the zoo or the settings do not fit.
    """
    if (samples is None) == (ckpt_path is None):
        raise ValueError("give either --samples, a folder of networks, or --ckpt_path, a checkpoint to sample from")
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    begin = time.perf_counter()
    if ckpt_path is not None:
        networks = _generated(ckpt_path, n, seed, Sampler(solver, steps, noise))
    else:
        networks = _stored(Path(samples or ""), n)
    data = _data(networks, zoo, split_seed, fractions)
    report = _report(networks, data, split, baselines, seed)
    file = Path(out) if out is not None else networks.folder / "report.json"
    _figures(report, Path(figures) if figures is not None else file.parent / "figures")
    record_timing(networks.folder, evaluate=time.perf_counter() - begin)
    values = report.values | {f"timing.{name}": value for name, value in read_timing(networks.folder).items()}
    origin = {"samples": samples, "ckpt_path": ckpt_path, "zoo": data.path, "split": split, "n": len(networks.theta)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"origin": origin, **values}, indent=2) + "\n")
    console = Console()
    if console.width < TABLE_WIDTH:
        print(render_text(values, TABLE_WIDTH))
    else:
        console.print(render(values))
    print(f"report in {file}")


def _generated(ckpt_path: str, n: int, seed: int, sampler: Sampler) -> Networks:
    flow, begin = load(ckpt_path), time.perf_counter()
    theta = flow.sample(n, seed, sampler)
    seconds = (time.perf_counter() - begin) / n
    return Networks(theta, flow.weight_space, flow.module.geometry, flow.data, seconds, run_folder(ckpt_path))


def _stored(path: Path, n: int) -> Networks:
    zoo = Zoo.open(path)
    manifest = zoo.manifest
    geometry = rebuild_geometry(manifest.get("geometry"), zoo.space)
    data, seconds = manifest.get("data"), manifest.get("seconds_per_network")
    rows = zoo.rows(zoo.final().sort().values[:n])
    return Networks(rows, zoo.space, geometry, data, seconds, path.resolve().parent)


def rebuild_geometry(description: Mapping[str, Any] | None, space: WeightSpace) -> Geometry:
    """The geometry of a checkpoint's description, Euclidean where there is none.

    Raises:
        ValueError: where the class cannot be imported, or is no geometry.
    """
    if description is None:
        return Euclidean(space)
    module, _, name = description["class_path"].rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"geometry {description['class_path']} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Geometry)):
        raise ValueError(f"{description['class_path']} is no geometry")
    return kind(space, **(description.get("init_args") or {}))


def _data(
    networks: Networks, zoo: str | None, split_seed: int | None, fractions: Sequence[float] | None
) -> ZooDataModule:
    """The data module of training, or a plain one on the given zoo."""
    if networks.data is not None:
        data = build(networks.data)
        if not isinstance(data, ZooDataModule):
            raise ValueError("the flow was trained on data of another data module; give its zoo by --zoo")
        if zoo is not None:
            data.path, data.collector = zoo, None
    elif zoo is not None:
        task = Zoo.open(zoo).task
        if task is None:
            raise ZooError(f"{zoo} names no task, so its networks cannot be evaluated")
        data = ZooDataModule(task, zoo)
    else:
        raise ValueError("nothing says which zoo the networks belong to; give it by --zoo")
    data.split_seed = data.split_seed if split_seed is None else split_seed
    data.fractions = data.fractions if fractions is None else fractions
    if data.task.space != networks.space:
        raise ValueError(f"the networks are of another weight space than the zoo {data.path}")
    return data


def _report(networks: Networks, data: ZooDataModule, split: str, baselines: bool, seed: int) -> Report:
    train, heldout = data.networks("train"), data.networks(split)
    fresh = _fresh(data, len(networks.theta), split, seed)
    rivals: list[Baseline] = []
    if baselines and data.task.has_data:
        rivals = [GaussianBaseline(), NoiseBaseline(), AverageBaseline()]
        if train.start is not None and fresh is not None:
            rivals.append(DisplacementBaseline())
        if fresh is not None and networks.seconds is not None:
            rivals.append(equal_cost(data, networks.seconds))
        rivals.append(RetrievalBaseline())
    evaluation = Evaluation(
        data.task,
        train.x1,
        heldout.x1,
        split,
        geometry=networks.geometry,
        starts=train.start,
        fresh=fresh,
        baselines=rivals,
        seed=seed,
    )
    return evaluation(networks.theta)


def _fresh(data: ZooDataModule, n: int, split: str, seed: int) -> Tensor | None:
    """Starts of no training run: new ones where their law is known, else those of the split not compared with."""
    if data.collector is not None:
        generator = torch.Generator().manual_seed(seed)
        return data.collector.initializer.sample(data.task.space, n, generator)
    return data.networks("test" if split == "val" else "val").start


def equal_cost(data: ZooDataModule, seconds: float) -> Baseline:
    """Training stopped when it has cost as many seconds per network as sampling did."""
    collector = data.collector or Collector()

    def train(starts: Tensor, budget: float) -> Tensor:
        count = len(data.task.data("train")[0])
        each = steps_per_epoch(data.task, collector.batch_size)

        def descend(epochs: int, step: int) -> Tensor:
            order = DataOrder(count, collector.seed + 1, range(len(starts)))
            trained = train_runs(
                data.task, starts, order, collector.optimizer, epochs, collector.batch_size, [step], collector.device
            )
            return trained.theta[:, 0]

        descend(1, 1)
        begin = time.perf_counter()
        descend(1, each)
        step = int(budget * len(starts) / ((time.perf_counter() - begin) / each))
        step = min(step, each * collector.epochs)
        return descend(-(-step // each), step) if step else starts

    return EqualCostBaseline(train, seconds)


def _figures(report: Report, folder: Path) -> None:
    from wsflow.callbacks.figures import save_all  # matplotlib takes its time to import

    for path in save_all(report, folder):
        print(f"figure {path}")
