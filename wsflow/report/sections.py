"""The sections of a page, in order: tables of all runs, comparisons, and each run's own figures and model card.

What cannot be shown is named with the reason: a run without an evaluation, networks or a zoo that are gone, figures
that the base task has no numbers for.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from wsflow.api import Flow, load
from wsflow.callbacks.barrier_figures import barrier_matrices
from wsflow.callbacks.figures import weight_means
from wsflow.report import figures, networks, tables
from wsflow.report.card import card
from wsflow.report.markup import Section, details, free, missing, paragraph, picture, preformatted, table
from wsflow.report.markup import figures as grid
from wsflow.report.networks import Library, MissingError, Networks
from wsflow.report.runs import Case, Run, read_json
from wsflow.uses.figures import learning_curve_figure
from wsflow.uses.result import rows
from wsflow.zoo import Zoo

CURVES = {"train/flow_loss": ("flow loss", "val/flow_loss"), "samples/accuracy": ("accuracy of samples", None)}
"""Logged numbers that are drawn, with their label and what is drawn dashed beside them."""


@dataclass
class Gallery:
    """Figures of a page, which are also written as files.

    Attributes:
        files: What to write, by file name.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, figure: Figure, alt: str, caption: str, wide: bool = False) -> str:
        """HTML of a figure; it is kept as SVG and PNG under its name, numbered where that is taken."""
        taken = {file.removesuffix(".svg") for file in self.files}
        place = free("".join(c if c.isalnum() or c in "-_" else "-" for c in name), taken)
        picture_bytes = figures.svg(figure)
        self.files[f"{place}.svg"], self.files[f"{place}.png"] = picture_bytes, figures.png(figure)
        return picture(picture_bytes, alt, caption, wide)


@dataclass(frozen=True)
class Studied:
    """A run whose networks have been read as far as they are there.

    Args:
        run: The run.
        flow: Its flow, or why there is none.
        networks: Of its first evaluation, or why there are none.
    """

    run: Run
    flow: Flow | str
    networks: Networks | str


def study(run: Run, library: Library, most: int) -> Studied:
    """Read a run's flow and networks.

    Args:
        run: The run.
        library: Of data modules, shared by the runs.
        most: Networks that are looked at.
    """
    flow: Flow | str
    try:
        flow = load(run.checkpoint)
    except ArgumentError:
        flow = f"the settings in {run.checkpoint.name} are those of another version"
    except (ValueError, OSError) as error:
        flow = str(error)
    if not run.cases:
        return Studied(run, flow, "the run holds no evaluation")
    try:
        return Studied(run, flow, networks.read_networks(run.cases[0], library, most))
    except (ValueError, OSError) as error:
        return Studied(run, flow, str(error))


def sections(studied: Sequence[Studied], gallery: Gallery, licence: str | None) -> list[Section]:
    """All sections of a page.

    Args:
        studied: The runs.
        gallery: Where figures are kept.
        licence: Of the networks, for the model cards.
    """
    runs = [one.run for one in studied]
    title = "Model card and figures" if len(runs) == 1 else None
    return [
        Section("Evaluations", _evaluations(runs)),
        Section("Averaged predictions", _averaged(studied)),
        Section("Training", _training(runs, gallery)),
        Section("Quality and solver steps", _steps(runs, gallery)),
        *(Section(title or one.run.name, _own(one, gallery, licence)) for one in studied),
        Section("Settings", _settings(runs)),
    ]


def _evaluations(runs: Sequence[Run]) -> str:
    gone = [
        missing(f"The evaluation of {run.name}", "its folder holds no report.json") for run in runs if not run.cases
    ]
    found = tables.named_cases(runs)
    parts = [tables.evaluations(runs)] if len(found) > 1 else [tables.baselines(case) for *_, case in found]
    for name, _, case in found:
        if len(found) > 1 and any(key.startswith("baselines.") for key in case.values):
            parts.append(details(f"Baselines: {name}", tables.baselines(case)))
    return "\n".join([*parts, *gone])


def _averaged(studied: Sequence[Studied]) -> str:
    found: dict[str, dict[str, dict[str, float]]] = {}
    gone, sizes = [], set()
    for one in studied:
        try:
            known = _networks(one)
            found[one.run.name] = networks.ensemble_scores(known)
            sizes.add(min(len(known.generated), len(known.heldout)))
        except (ValueError, OSError) as error:
            gone.append(missing(f"The average of {one.run.name}", str(error)))
    size = f"{sizes.pop()} networks" if len(sizes) == 1 else "as many generated as held-out networks"
    parts = [tables.averaged(found, size)] if found else []
    for one in studied:
        for file in sorted(one.run.folder.glob("**/bayes.json")):
            words = f"Ensembles by size: {one.run.name}"
            try:
                parts.append(details(words, tables.ensembles(read_json(file))))
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                gone.append(missing(words, f"{file.name} cannot be read ({type(error).__name__})"))
    return "\n".join([*parts, *gone])


def _training(runs: Sequence[Run], gallery: Gallery) -> str:
    pictures, parts = [], []
    for key, (label, held) in CURVES.items():
        curves = {run.name: run.curves[key] for run in runs if key in run.curves}
        if curves:
            others = {run.name: run.curves[held] for run in runs if held in run.curves} if held else None
            figure = figures.training_curves(curves, label, others)
            note = "Dashed: validation runs." if others else "Scored in training, on validation data."
            name = key.replace("/", "-")
            pictures.append(gallery.add(f"training-{name}", figure, f"{label} over training steps", note))
    gone = [missing(f"The training curve of {run.name}", "its folder holds no logs") for run in runs if not run.curves]
    times = {run.name: run.timing for run in runs if run.timing}
    commands = list(dict.fromkeys(name for each in times.values() for name in each))
    if times:
        lines = [
            [name, *(f"{each[c]:.0f}" if c in each else tables.MISSING for c in commands)]
            for name, each in times.items()
        ]
        parts.append(table(["run", *commands], lines, "Seconds that the commands of a run took."))
    return "\n".join([grid(pictures) if pictures else "", *parts, *gone])


def _steps(runs: Sequence[Run], gallery: Gallery) -> str:
    """The thesis's Figure 7.3, from evaluations that differ in the number of steps alone."""
    lines: dict[str, list[Case]] = {}
    for run in runs:
        for case in run.cases:
            if "steps" in case.sampling:
                way = {k: v for k, v in case.sampling.items() if k not in ("steps", "seed") and v}
                kind = way.pop("solver", {}).get("class_path", "").rpartition(".")[2]
                words = ", ".join([kind, *(f"{k} {_short(v)}" for k, v in way.items() if (k, v) != ("power", 1.0))])
                lines.setdefault(f"{run.name}, {words}, {case.split}", []).append(case)
    lines = {name: cases for name, cases in lines.items() if len({c.sampling["steps"] for c in cases}) > 1}
    pictures = []
    for key in ("accuracy", "loss", "mse"):
        curves = {
            name: sorted(
                (float(c.sampling["steps"]), c.values[f"samples.{key}"]) for c in cases if f"samples.{key}" in c.values
            )
            for name, cases in lines.items()
        }
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            level = figures.level_of([c.values.get(f"heldout.{key}") for cases in lines.values() for c in cases])
            figure = figures.quality_over_steps(curves, f"{key} of one network", level)
            pictures.append(
                gallery.add(f"steps-{key}", figure, f"{key} over solver steps", "As the thesis's Figure 7.3.")
            )
    if pictures:
        return grid(pictures)
    return missing("Quality over solver steps (thesis, Figure 7.3)", "no run was evaluated at several numbers of steps")


def _settings(runs: Sequence[Run]) -> str:
    known = [run for run in runs if run.settings]
    parts = [tables.settings(known)] if known else []
    for run in known:
        text = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True)
        parts.append(details(f"All settings of {run.name}", preformatted(text)))
    return "\n".join(
        [*parts, *(missing(f"fit.yaml of {run.name}", "not in its folder") for run in runs if not run.settings)]
    )


def _own(one: Studied, gallery: Gallery, licence: str | None) -> str:
    """A run's model card and figures."""
    run = one.run
    flow = None if isinstance(one.flow, str) else one.flow
    parts = ["<h3>Model card</h3>", card(run, flow, licence), "<h3>Figures</h3>"]
    drawn, gone = [], []
    for title, draw in FIGURES.items():
        if title == LAW and isinstance(one.networks, Networks) and one.networks.task.has_data:
            continue  # trained networks follow no stated law
        try:
            figure, caption, wide = draw(one)
            drawn.append(gallery.add(f"{run.name}-{title}", figure, f"{title} of {run.name}", caption, wide))
        except (ValueError, OSError) as error:
            gone.append(missing(title, str(error)))
    parts += [grid(drawn), *gone, _initialisation(one, gallery)]
    return "\n".join(parts)


def _flow(one: Studied) -> Flow:
    if isinstance(one.flow, str):
        raise MissingError(one.flow)
    return one.flow


def _networks(one: Studied) -> Networks:
    if isinstance(one.networks, str):
        raise MissingError(one.networks)
    return one.networks


LAW = "Means of weights"

Drawn = tuple[Figure, str, bool]


def _reliability(one: Studied) -> Drawn:
    known = _networks(one)
    figure = figures.reliability_diagram(networks.reliabilities(known))
    return figure, f"Right predictions by confidence, {known.split} data; larger points hold more predictions.", False


def _paths(one: Studied) -> Drawn:
    flow, known = _flow(one), _networks(one)
    found = networks.paths(one.run.cases[0], flow, known)
    left_out = [name for name in ("noise", "guidance") if one.run.cases[0].sampling.get(name)]
    text = (
        f"Paths of {found.states.shape[1]} samples from t = 0 to t = 1 in the flow's coordinates, on the "
        "components in which other samples move most, beside training networks and prior draws."
        + (f" Drawn without the {' and '.join(left_out)} that the samples were generated with." if left_out else "")
    )
    return figures.path_figure(found), text, False


def _nearest(one: Studied) -> Drawn:
    known = _networks(one)
    figure = figures.nearest_curves(networks.nearest_distances(known))
    searched = min(len(known.train), networks.SEARCHED)
    text = (
        f"Rms difference of predictions on validation inputs to the nearest of {searched} training networks. Samples "
        "left of held-out runs would be copies."
    )
    return figure, text, False


def _overlap(one: Studied) -> Drawn:
    known = _networks(one)
    figure = figures.overlap_figure(networks.overlaps(known), "shared errors over all errors of a pair")
    return (
        figure,
        f"Error overlap of pairs of networks on {known.split} data; 1 where two fail on the same points.",
        False,
    )


def _barriers(one: Studied) -> Drawn:
    known = _networks(one)
    figure = barrier_matrices(networks.midpoint_barriers(known))
    text = (
        f"Rise of the loss half way between pairs of networks, {known.split} data (thesis, Figure 7.2); mean and "
        "standard deviation over pairs. Matching is by weights."
    )
    return figure, text, True


def _weight_means(one: Studied) -> Drawn:
    """The thesis's Figure 7.1, for tasks that state the law of their networks."""
    known = _networks(one)
    law = known.task.mean_network()
    if law is None:
        raise MissingError(f"networks of {known.task.name} are trained, and have no stated law to be held against")
    samples = {case.name or "samples": Zoo.open(case.samples).theta for case in one.run.cases if case.samples}
    figure = weight_means(samples, float(law.mean()), float(getattr(known.task, "std", 1.0)))
    return figure, "Means of the weights of each network (thesis, Figure 7.1).", False


FIGURES: Mapping[str, Callable[[Studied], Drawn]] = {
    "Reliability": _reliability,
    "Path of samples": _paths,
    "Nearest neighbours": _nearest,
    "Error overlap": _overlap,
    "Barriers between networks": _barriers,
    LAW: _weight_means,
}
"""Each run's own figures by title."""


def _initialisation(one: Studied, gallery: Gallery) -> str:
    """Generated networks as starts of training, where that was tried."""
    files = sorted(one.run.folder.glob("**/initialisation.json"))
    parts = []
    for file in files:
        try:
            parts += _curves(one.run, file, gallery)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            parts.append(missing(file.name, f"it cannot be read ({type(error).__name__})"))
    return "\n".join(["<h3>As starts of training</h3>", *parts]) if parts else ""


def _curves(run: Run, file: Path, gallery: Gallery) -> list[str]:
    """Figure and table of a comparison of starts."""
    result = read_json(file)
    task = str(result["origin"]["task"]["class_path"]).rpartition(".")[2]
    name = f"{run.name}-{file.parent.relative_to(run.folder).as_posix().replace('/', '-')}"
    caption = f"Generated networks as starts of training on {task}: mean and standard deviation over seeds."
    head, *lines = rows(result)
    figure = learning_curve_figure(result)
    return [gallery.add(name, figure, f"Learning curves on {task}", caption, wide=True), table(head, lines)]


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = ", ".join(f"{k} {v}" for k, v in (value.get("init_args") or {}).items())
        return f"{str(value['class_path']).rpartition('.')[2]}({arguments})"
    return str(value)


def write(folder: Path, page: str, gallery: Gallery) -> Path:
    """Write a page and its figures, each file whole or not at all; the page last.

    Args:
        folder: Made where it is not there.
        page: HTML.
        gallery: Its figures.

    Returns:
        The page.
    """
    from wsflow.files import replacing

    for name, content in gallery.files.items():
        with replacing(folder / "figures" / name) as file:
            file.write(content)
    place = folder / "index.html"
    with replacing(place) as file:
        file.write(page.encode())
    return place


__all__ = ["Gallery", "Studied", "paragraph", "sections", "study", "write"]
