"""Experiment files: which configs compose to a training, how it is sampled and judged, and at which points.

An experiment file is YAML of the fields of :class:`Experiment`::

    configs: [../breast_cancer.yaml, ../coupling/independent.yaml]  # relative to the file, composed in this order
    overrides: {trainer.max_epochs: 2}                              # options of fit, by dotted name
    n: 400
    points:
      euclidean: {configs: [../geometry/euclidean.yaml], published: {samples.accuracy: 0.998}}
      geometric: {configs: [../geometry/geometric.yaml], steps: [8, 16]}

Each point is one row of figures.  Its configs and overrides are added to the file's, everything else that it gives
replaces the file's.  Figures are kept by the file's name, the point's name and, where several numbers of steps are
given, the steps: ``NAME``, ``NAME_POINT`` or ``NAME_POINT_steps_8``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace


@dataclass
class Point:
    """What one point of an experiment adds to, or has instead of, the experiment's own settings.

    Attributes:
        label: Of the row in tables; the point's name by default.
        configs: Further configs of fit, relative to the file.
        overrides: Further options of fit.
        run: The case whose training is used, such as ``table_7_1_euclidean``; its settings must be the same.
        weights_of: The case whose trained weights, of the same seed, the training begins with.
        n: Networks generated and judged.
        steps: Solver steps; a list makes one case for each.
        solver: Class of the solver; Euler by default.
        noise: Noise before every step.
        power: Of the time grid.
        checkpoint: Stem of the checkpoint file that is sampled.
        transfer: The zoo of other widths that the flow is carried over to.
        transfer_configs: Configs that collect that zoo where it is absent, relative to the file.
        transfer_overrides: Options beside these configs.
        published: Figures by metric, to stand beside the measured ones.
        x: Place on the axis of a figure; the steps by default.
    """

    label: str | None = None
    configs: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    weights_of: str | None = None
    n: int | None = None
    steps: int | list[int] | None = None
    solver: str | None = None
    noise: float | None = None
    power: float | None = None
    checkpoint: str | None = None
    transfer: str | None = None
    transfer_configs: list[str] = field(default_factory=list)
    transfer_overrides: dict[str, Any] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    x: float | None = None


@dataclass
class Experiment(Point):
    """An experiment; every field of a point is the default of its points.

    Attributes:
        title: Of the table.
        seeds: Of trainings and samples.
        split: Whose runs and data networks are held against.
        baselines: Whether baselines are evaluated too.
        points: Points by name; none for an experiment of one case.
        columns: Metrics that the table shows.
        figure: PNG file to draw, relative to the file.
        axis: Name of the figure's horizontal axis.
    """

    title: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    split: Literal["val", "test"] = "test"
    baselines: bool = True
    points: dict[str, Point] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    figure: str | None = None
    axis: str = "solver steps"


@dataclass(frozen=True)
class Case:
    """One row of figures: settings in which nothing is left open but the seed.

    Attributes:
        key: Under which figures are kept.
        name: The point's name; empty where there are no points.
        trained: The case whose training is used, this one unless another is named.
        line: The point's label, or the file's name.
        point: Settings, the experiment's and the point's together; ``steps`` is one number.
        configs: Existing config files of fit.
        transfer_configs: Existing config files of the other zoo.
    """

    key: str
    name: str
    trained: str
    line: str
    point: Point
    configs: tuple[Path, ...]
    transfer_configs: tuple[Path, ...]


def read_experiment(path: str | Path) -> Experiment:
    """The experiment that a file describes.

    Raises:
        ValueError: where there is no file, or it says what no experiment has.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no experiment file {path}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, nested_key=None)
    values = _plain(parser.parse_string(path.read_text()))  # classes in overrides are fit's to make
    points = {name: Point(**value) for name, value in values.pop("points").items()}
    return Experiment(**values, points=points)


def cases(path: str | Path) -> list[Case]:
    """Every case of an experiment file, in the file's order.

    Raises:
        ValueError: as :func:`read_experiment`, and where a config is missing.
    """
    path, experiment = Path(path), read_experiment(path)
    points = experiment.points or {"": Point()}
    return [case for name, point in points.items() for case in _cases(path, name, _together(experiment, point))]


def _cases(path: Path, name: str, point: Point) -> list[Case]:
    key = f"{path.stem}_{name}" if name else path.stem
    configs, others = (tuple(_existing(path, text) for text in t) for t in (point.configs, point.transfer_configs))
    line = point.label or name.replace("_", " ") or path.stem
    trained = point.run or key
    if not isinstance(point.steps, list):
        return [Case(key, name, trained, line, point, configs, others)]
    each = [(steps, Point(**_given(point) | {"steps": steps, "x": point.x or steps})) for steps in point.steps]
    return [Case(f"{key}_steps_{steps}", name, trained, line, one, configs, others) for steps, one in each]


def _together(experiment: Experiment, point: Point) -> Point:
    """The point's settings on top of the experiment's: lists are joined, mappings merged, the rest replaced."""
    merged = dict[str, Any]()
    for name, own in _given(point).items():
        common = getattr(experiment, name)
        if name != "published" and isinstance(own, dict):
            merged[name] = {**common, **own}
        elif name in ("configs", "transfer_configs"):
            merged[name] = [*common, *own]
        else:
            merged[name] = own if own or own == 0 else common
    return Point(**merged)


def _given(point: Point) -> dict[str, Any]:
    return {one.name: getattr(point, one.name) for one in fields(Point)}


def _plain(value: Any) -> Any:
    """Mappings and lists in place of what the parser makes of them."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _existing(path: Path, text: str) -> Path:
    found = path.parent / text
    if not found.is_file():
        raise ValueError(f"{path} names the config {text}, and there is no file {found}")
    return Path(*_shortest(found))


def _shortest(path: Path) -> list[str]:
    """The parts of a path without ``folder/..``."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] not in ("..", "/"):
            parts.pop()
        else:
            parts.append(part)
    return parts
