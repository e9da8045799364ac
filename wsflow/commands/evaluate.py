"""``wsflow evaluate``: how good, new and diverse networks are, beside real runs and baselines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from torch import Tensor

from wsflow.api import load
from wsflow.callbacks import device_name
from wsflow.commands.equal_cost import equal_cost, fresh_starts, recorded_collector
from wsflow.commands.predict import sampling_prior
from wsflow.commands.run import read_timing, record_timing, run_folder
from wsflow.description import build, named
from wsflow.files import write_whole
from wsflow.flow import Sampler, Solver
from wsflow.geometry import Euclidean, Geometry
from wsflow.metrics import (
    AverageBaseline,
    Baseline,
    DisplacementBaseline,
    Evaluation,
    GaussianBaseline,
    NoiseBaseline,
    Report,
    RetrievalBaseline,
    render,
    render_text,
)
from wsflow.weightspace import WeightSpace
from wsflow.zoo import Zoo, ZooDataModule

TABLE_WIDTH = 120


class Networks(NamedTuple):
    """The networks to evaluate, and what is known of their origin.

    Attributes:
        theta: (n, D).
        space: Their weight space.
        geometry: Of the flow that generated them.
        data: How the data module of its training was made; None where that is not known.
        seconds: What one network cost; None where that is not known.
        device: What these are seconds of; None where that is not known.
        folder: Where their report and timing lie.
    """

    theta: Tensor
    space: WeightSpace
    geometry: Geometry
    data: Mapping[str, Any] | None
    seconds: float | None
    device: str | None
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
    starts: str | None = None,
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
        starts: A zoo of runs to start from, with a checkpoint whose prior is StartsPrior, as for predict.
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
    sampling = {"steps": steps != Sampler().steps, "solver": solver, "noise": noise, "starts": starts}
    if samples is not None and (named := [name for name, given in sampling.items() if given]):
        raise ValueError(
            f"{', '.join(named)}: the networks in {samples} are there, and this is how a checkpoint is sampled: "
            "give it to predict, or --ckpt_path instead of --samples"
        )
    begin = time.perf_counter()
    if ckpt_path is not None:
        networks = _generated(ckpt_path, n, seed, Sampler(solver, steps, noise), starts)
    else:
        networks = stored_networks(Path(samples or ""), n)
    data = data_module(networks, zoo, split_seed, fractions)
    report = _report(networks, data, split, baselines, seed)
    file = Path(out) if out is not None else networks.folder / "report.json"
    pictures = Path(figures) if figures is not None else file.parent / "figures"
    drawn = _figures(report, pictures)
    record_timing(networks.folder, evaluate=time.perf_counter() - begin)
    values = report.values | {f"timing.{name}": value for name, value in read_timing(networks.folder).items()}
    origin = {"samples": samples, "ckpt_path": ckpt_path, "zoo": data.path, "split": split, "n": len(networks.theta)}
    cost = _cost(networks, data)
    write_whole(file, json.dumps({"origin": origin, **values, **cost}, indent=2) + "\n")
    console = Console()
    if console.width < TABLE_WIDTH:
        print(render_text(values, TABLE_WIDTH))
    else:
        console.print(render(values))
    if networks.seconds is not None:
        print(_cost_in_words(cost, "baselines.equal_cost.accuracy" in values or "baselines.equal_cost.mse" in values))
    print(f"report in {file}" + (f", figures in {pictures}" if drawn else ""))


def _generated(ckpt_path: str, n: int, seed: int, sampler: Sampler, starts: str | None) -> Networks:
    flow = load(ckpt_path)
    prior, begin = sampling_prior(flow, starts), time.perf_counter()
    theta = flow.sample(n, seed, sampler, prior=prior)
    seconds = (time.perf_counter() - begin) / n
    device, folder = device_name(flow.module.device), run_folder(ckpt_path)
    return Networks(theta, flow.weight_space, flow.module.geometry, flow.data, seconds, device, folder)


def stored_networks(path: Path, n: int) -> Networks:
    """The first n generated networks of a folder, or final snapshots of a zoo."""
    zoo = Zoo.open(path)
    manifest = zoo.manifest
    geometry = rebuild_geometry(manifest.get("geometry"), zoo.space)
    data, seconds, device = (manifest.get(name) for name in ("data", "seconds_per_network", "device"))
    rows = zoo.rows(zoo.final().sort().values[:n])
    return Networks(rows, zoo.space, geometry, data, seconds, device, path.resolve().parent)


def rebuild_geometry(description: Mapping[str, Any] | None, space: WeightSpace) -> Geometry:
    """The geometry of a checkpoint's description, Euclidean where there is none.

    Raises:
        ValueError: where the class cannot be imported, or is no geometry.
    """
    if description is None:
        return Euclidean(space)
    kind = named(description["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, Geometry)):
        raise ValueError(f"{description['class_path']} is no geometry")
    return kind(space, **(description.get("init_args") or {}))


def data_module(
    networks: Networks, zoo: str | None, split_seed: int | None, fractions: Sequence[float] | None
) -> ZooDataModule:
    """The data module of training, or a plain one on the given zoo; its collector is the one that made the zoo.

    Raises:
        ValueError: where nothing says which zoo it is, or it is of another weight space.
    """
    if networks.data is not None:
        data = build(networks.data)
        if not isinstance(data, ZooDataModule):
            raise ValueError("the flow was trained on data of another data module; give its zoo by --zoo")
        data.labels = None  # what the flow was told of networks is not looked at here
        if zoo is not None:
            data.train_runs = data.train_runs if Path(zoo).resolve() == Path(data.path).resolve() else None
            data.path, data.collector = zoo, None
    elif zoo is not None:
        data = ZooDataModule(path=zoo)
    else:
        raise ValueError("nothing says which zoo the networks belong to; give it by --zoo")
    if data.collector is None:
        data.collector = recorded_collector(Zoo.open(data.path).manifest)
    data.split_seed = data.split_seed if split_seed is None else split_seed
    data.fractions = data.fractions if fractions is None else fractions
    if data.task.space != networks.space:
        raise ValueError(f"the networks are of another weight space than the zoo {data.path}")
    return data


def _report(networks: Networks, data: ZooDataModule, split: str, baselines: bool, seed: int) -> Report:
    train, heldout = data.networks("train"), data.networks(split)
    compared = baselines and data.task.has_data
    fresh = None
    if compared and data.collector is not None:
        fresh = fresh_starts(data.collector, data.task, len(networks.theta), seed)
    evaluation = Evaluation(
        data.task,
        train.x1,
        heldout.x1,
        split,
        geometry=networks.geometry,
        starts=train.start,
        fresh=fresh,
        baselines=_baselines(networks, data, train.start is not None) if compared else [],
        seed=seed,
    )
    report = evaluation(networks.theta)
    report.values.update(evaluation.beside(report))
    return report


def _baselines(networks: Networks, data: ZooDataModule, has_start: bool) -> list[Baseline]:
    """Those that there is enough for; says which are left out and why."""
    rivals: list[Baseline] = [GaussianBaseline(), NoiseBaseline(), AverageBaseline()]
    if data.collector is None:
        print(f"no displacement and equal_cost baselines: {data.path} does not record how its runs were trained")
        return [*rivals, RetrievalBaseline()]
    if has_start:
        rivals.append(DisplacementBaseline())
    if networks.seconds is not None:
        rivals.append(equal_cost(data.task, data.collector, networks.seconds))
    return [*rivals, RetrievalBaseline()]


def _cost(networks: Networks, data: ZooDataModule) -> dict[str, Any]:
    """What one network cost, and on what; equal cost trains on the collector's device."""
    if networks.seconds is None:
        return {}
    cost: dict[str, Any] = {"timing.seconds_per_network": networks.seconds, "timing.device.sampling": networks.device}
    if data.collector is not None:
        cost["timing.device.training"] = device_name(data.collector.device)
    return cost


def _cost_in_words(cost: Mapping[str, Any], compared: bool) -> str:
    seconds, sampling = cost["timing.seconds_per_network"], cost["timing.device.sampling"] or "an unknown device"
    text = f"one network took {1e3 * seconds:.3g} ms to generate ({sampling})"
    if not compared:
        return text
    training = cost["timing.device.training"]
    other = "" if training == sampling else ", another device"
    return f"{text}; equal_cost trains as long ({training}{other})"


def _figures(report: Report, folder: Path) -> bool:
    """Draw what there is; whether there was anything."""
    from wsflow.callbacks.figures import save_all  # matplotlib takes its time to import

    return bool(save_all(report, folder))
