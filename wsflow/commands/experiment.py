"""``wsflow experiment``: what one file says, for every seed: fit, predict, evaluate, and the figures kept.

Each stage is a command line of wsflow, so that what is recorded can be run by hand.  A case trains in
``runs/experiments/CASE/seed_S``; ``experiment.json`` there says which stages are done and with which settings.  A stage
that is done is skipped, an interrupted training goes on from its last checkpoint, and a training of other settings, or
begun with other weights, is refused.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from wsflow.commands.experiment_file import Case, Experiment, cases, read_experiment
from wsflow.commands.results import differing, merge, read_results
from wsflow.commands.run import read_timing, shown
from wsflow.commands.table import draw, tables
from wsflow.files import write_whole
from wsflow.zoo import file_hash
from wsflow.zoo.shards import read_json

RECORD = "experiment.json"
STEPS, NETWORKS, CHECKPOINT = 16, 400, "last"

WHOLE = ["--shard", "0/1"]
"""For commands that would take a part of the work in a job array, whose tasks may run an experiment each."""


class Stage(NamedTuple):
    """One command of a case.

    Attributes:
        name: Under which it is recorded.
        arguments: What follows ``wsflow``.
        settings: What its outcome depends on.
    """

    name: str
    arguments: list[str]
    settings: Mapping[str, Any]


def experiment(
    files: Sequence[str],
    run: Callable[[list[str]], None],
    check: Callable[[list[str]], None],
    seeds: Sequence[int] | None = None,
    points: Sequence[str] | None = None,
    split: Literal["val", "test"] | None = None,
    results: str = "docs/results.json",
    folder: str = "runs/experiments",
    fit_only: bool = False,
) -> None:
    """Run experiments and keep their figures.

    Args:
        files: Experiment files.
        run: Runs a command, given what follows ``wsflow``.
        check: Refuses a command that cannot be parsed, given the same; asked for all commands before the first is run.
        seeds: Of trainings and samples; the file's own by default.
        points: Only these points, by name; all by default.
        split: Instead of the file's.  Figures of validation runs are shown and not kept.
        results: JSON file that the figures are merged into.
        folder: Where the cases train.
        fit_only: Whether to stop after the trainings.

    Raises:
        ValueError: where a file, a config, a point or the finished training to begin with is missing, a command
            cannot be parsed, the results are damaged, or a run folder holds a training of other settings.
    """
    plans = [(read_experiment(file), Path(file), _chosen(file, points)) for file in files]
    if not fit_only:
        read_results(results)  # a file that cannot be read is told of before hours of training
    _check(plans, check, fit_only)
    for plan, file, chosen in plans:
        judged = split or plan.split
        for seed in plan.seeds if seeds is None else seeds:
            for case in chosen:
                place = Path(folder, case.trained, f"seed_{seed}")
                if (before := case.point.weights_of) and not _finished(weights := _weights(case, place)):
                    raise ValueError(
                        f"{case.key} begins with the weights of {before}: run that first; there is no finished "
                        f"training that left {weights}"
                    )
                done = _run_stages(stages(case, place, seed, judged, plan.baselines, fit_only), place, run)
                if fit_only:
                    continue
                report = _report(case, place, judged)
                if judged != "test":
                    _show(case, seed, report)
                    continue
                merge(results, case.key, seed, report, _origin(case, file, done), case.point.published)
                print(f"{case.key}, seed {seed}: figures in {results}")
    if not fit_only and all((split or plan.split) == "test" for plan, *_ in plans):
        print(tables(files, results))
        draw(files, results)


def stages(
    case: Case, place: Path, seed: int, split: str, baselines: bool = True, fit_only: bool = False
) -> Iterator[Stage]:
    """The commands of one seed of a case, in order.

    Args:
        case: What to do.
        place: The training's folder.
        seed: Of the training and the samples.
        split: Whose runs and data networks are held against.
        baselines: Whether baselines are evaluated too.
        fit_only: Whether the training is all.
    """
    point = case.point
    configs = [part for path in case.configs for part in ("-c", str(path))]
    options = [f"--{name}={_text(value)}" for name, value in point.overrides.items()]
    begun: dict[str, str] = {}
    if point.weights_of:
        weights = _weights(case, place)
        options += [f"--weights={weights}"]
        begun = {"weights": file_hash(weights)} if weights.is_file() else {}
    training = ["fit", *configs, *options, "--seed_everything", str(seed), "--trainer.default_root_dir", str(place)]
    yield Stage("fit", training, {"options": [*options, str(seed)], **begun, **_contents(case.configs)})
    if fit_only:
        return
    checkpoint, target = place / "checkpoints" / f"{point.checkpoint or CHECKPOINT}.ckpt", _target(case, place, split)
    if point.transfer is not None:
        options = [f"--{name}={_text(value)}" for name, value in point.transfer_overrides.items()]
        others = [part for path in case.transfer_configs for part in ("-c", str(path))]
        collected = ["collect", *others, *options, "--data.path", point.transfer]
        yield Stage(f"{target.name}/collect", collected, {"options": collected, **_contents(case.transfer_configs)})
        moved = target / "checkpoints" / "last.ckpt"
        carried = ["transfer", "--ckpt_path", str(checkpoint), "--zoo", point.transfer, "--out", str(moved)]
        yield Stage(f"{target.name}/transfer", carried, {"options": carried})
        checkpoint = moved
    n, samples = str(point.n or NETWORKS), target / "samples"
    drawn = ["predict", "--ckpt_path", str(checkpoint), "--n", n, "--seed", str(seed), "--out", str(samples)]
    drawn += ["--steps", str(point.steps or STEPS), "--overwrite"]
    drawn += ["--solver", point.solver] if point.solver else []
    drawn += ["--noise", str(point.noise)] if point.noise else []
    drawn += ["--power", str(point.power)] if point.power else []
    yield Stage(f"{target.name}/predict", drawn, {"options": drawn})
    judged = ["evaluate", "--samples", str(samples), "--split", split, "--n", n, "--seed", str(seed)]
    judged += [] if baselines else ["--baselines", "false"]
    yield Stage(f"{target.name}/evaluate", judged, {"options": judged})


def _chosen(file: str, points: Sequence[str] | None) -> list[Case]:
    found = cases(file)
    known = list(dict.fromkeys(case.name for case in found))
    missing = [name for name in points or [] if name not in known]
    if missing:
        raise ValueError(f"{file} has no point {', '.join(missing)}; points are {', '.join(known)}")
    return [case for case in found if points is None or case.name in points]


def _check(
    plans: Sequence[tuple[Experiment, Path, list[Case]]], check: Callable[[list[str]], None], fit_only: bool
) -> None:
    """Find what is wrong with the commands of every case, each once, and say where it is."""
    known: set[tuple[str, ...]] = set()
    for plan, file, chosen in plans:
        for case in chosen:
            for stage in stages(case, Path(case.trained), 0, plan.split, plan.baselines, fit_only):
                if tuple(stage.arguments) in known:
                    continue
                known.add(tuple(stage.arguments))
                try:
                    check(stage.arguments)
                except (ValueError, ArgumentError) as error:
                    raise ValueError(f"{file}, {case.key}: {stage.arguments[0]}: {error}") from error


def _target(case: Case, place: Path, split: str) -> Path:
    """Where the networks and the report of a case lie."""
    return place / (case.key if split == "test" else f"{case.key}.{split}")


def _weights(case: Case, place: Path) -> Path:
    """The checkpoint that a case's training begins with."""
    return place.parent.parent / str(case.point.weights_of) / place.name / "checkpoints" / f"{CHECKPOINT}.ckpt"


def _finished(checkpoint: Path) -> bool:
    """Whether an experiment's training is done and has left this checkpoint."""
    return checkpoint.is_file() and _read(checkpoint.parents[1]).get("fit", {}).get("done", False)


def _run_stages(plan: Iterator[Stage], place: Path, run: Callable[[list[str]], None]) -> list[str]:
    """Run what is not done; the commands of all."""
    commands, again = [], False
    for stage in plan:
        commands.append(shlex.join(["wsflow", *stage.arguments]))
        record = _read(place)
        known = record.get(stage.name, {})
        other = differing(_recorded(known.get("settings", {})), stage.settings)  # older records have no hash of weights
        if "configs" in other:  # which says the same
            other = [name for name in other if name != "contents"]
        if stage.name == "fit" and other:
            raise ValueError(
                f"{place} holds a training of other settings than the experiment's now ({', '.join(other)}): remove it "
                "or choose another --folder"
            )
        if known.get("done") and not other and not again:
            continue
        goes_on = stage.name == "fit" and any(place.glob("checkpoints/*.ckpt"))
        _write(place, record | {stage.name: {"settings": stage.settings, "done": False}})
        print(f"experiment: {commands[-1]}", flush=True)
        whole = WHOLE if stage.arguments[0] in ("predict", "collect") else []
        run([*stage.arguments, *["--ckpt_path", "last"] * goes_on, *whole])
        _write(place, _read(place) | {stage.name: {"settings": stage.settings, "done": True}})
        again = True
    return commands


def _report(case: Case, place: Path, split: str) -> dict[str, Any]:
    """What evaluate wrote, with the time of the training, and of those that gave the weights it began with."""
    folder = _target(case, place, split)
    report: dict[str, Any] = read_json(folder / "report.json")
    times = {name: value for name, value in read_timing(place).items() if name in ("collect", "fit", "fit_before")}
    return report | {f"timing.{name}": value for name, value in times.items()}


def _origin(case: Case, file: Path, commands: list[str]) -> dict[str, Any]:
    point = case.point
    settings = {
        "configs": [shown(path) for path in case.configs],
        "overrides": point.overrides,
        "n": point.n or NETWORKS,
        "steps": point.steps or STEPS,
        "solver": point.solver or "Euler",
        "checkpoint": point.checkpoint or CHECKPOINT,
        "noise": point.noise or 0.0,
        "power": point.power or 1.0,
        "weights_of": point.weights_of,
        "transfer": point.transfer,
        "transfer_configs": [shown(path) for path in case.transfer_configs],
        "transfer_overrides": point.transfer_overrides,
        "contents": _fingerprint([*case.configs, *case.transfer_configs]),
    }
    command = shlex.join(["wsflow", "experiment", str(file)])
    return {"command": command, "split": "test", "settings": settings, "stages": commands}


def _show(case: Case, seed: int, report: Mapping[str, Any]) -> None:
    keys = ("accuracy", "loss", "nn_ratio.function", "nn_ratio.weight", "z_u", "dispersion", "ensemble_accuracy")
    shown = {key: report[f"samples.{key}"] for key in keys if f"samples.{key}" in report}
    print(f"{case.key}, seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))


def _said(text: str) -> Any:
    """What a config says, whatever its comments, as plain data."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


def _contents(configs: Sequence[Path]) -> dict[str, Any]:
    """What configs say, by name, for a reader of the record; and their hash, since two of them may have one name."""
    said = {path.name: _said(path.read_text()) for path in configs}
    return {"configs": said, "contents": _fingerprint(configs)}


def _recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a record; older ones hold the configs as text."""
    configs = settings.get("configs")
    if configs is None:
        return dict(settings)
    said = {name: _said(value) if isinstance(value, str) else value for name, value in configs.items()}
    return {**settings, "configs": said}


def _fingerprint(configs: Sequence[Path]) -> str:
    """A hash of what configs say."""
    said = [_said(path.read_text()) for path in configs]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(place: Path) -> dict[str, Any]:
    file = place / RECORD
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    return found


def _write(place: Path, record: Mapping[str, Any]) -> None:
    write_whole(place / RECORD, json.dumps(record, indent=1) + "\n")
