"""The model card of a run: where its networks come from, what they are for, and how far they were tried."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

from wsflow.api import Flow
from wsflow.description import build
from wsflow.report.markup import definitions, missing
from wsflow.report.runs import Run
from wsflow.tasks import BaseTask
from wsflow.weightspace import WeightSpace
from wsflow.zoo import Zoo, ZooError

NEW, OLD = 0.9, -2.0
"""Ratio of distances below which, and rank statistic below which, networks are closer to the training runs than real
unseen ones are."""

USE = (
    "Ensembles and Bayesian model averages of networks of this architecture on this task, starts of further training, "
    "and the study of weight space."
)
LIMITS = (
    "The networks answer for the base task's data alone, and are no better than what their flow was trained on. They "
    "are samples of a learned law and not of the exact posterior. Nothing was tried about fairness, privacy of the "
    "training data, or attacks; decisions about people should not rest on them."
)


def card(run: Run, flow: Flow | None, licence: str | None) -> str:
    """The card, as a list of terms.

    Args:
        run: The run.
        flow: Its flow; None where the checkpoint cannot be read.
        licence: Of the flow and its networks, as their owner states it.
    """
    entries = [
        ("Model", escape(_model(run, flow))),
        ("Networks", _said(_networks, "The networks' description", _known(run, flow, "space"))),
        ("Data", _said(_data, "The data's origin", _known(run, flow, "data"))),
        ("Licence", escape(licence or "not stated: whoever publishes the flow or its networks has to state one")),
        ("Intended use", escape(USE)),
        ("Novelty test", _novelty(run)),
        ("Quality", _quality(run)),
        ("Limits", escape(LIMITS)),
    ]
    return definitions(entries)


def novelty(values: Any) -> str | None:
    """The outcome of an evaluation's novelty test in words; None where it was not made or came to nothing."""
    found = [values.get(f"samples.{key}") for key in ("nn_ratio.function", "nn_ratio.weight", "z_u")]
    if any(value is None or isnan(value) for value in found):
        return None
    function, weight, z_u = found
    numbers = f"nearest-neighbour ratio {function:.2f} as functions, {weight:.2f} as weights, Z_U {z_u:.1f}"
    if function < NEW or weight < NEW or z_u < OLD:
        return f"closer to the training networks than real unseen networks are, so partly copied ({numbers})"
    return f"passed: no closer to the training networks than real unseen networks are ({numbers})"


def _model(run: Run, flow: Flow | None) -> str:
    if flow is None:
        return f"checkpoint {run.checkpoint.name}, which could not be read"
    module = flow.module
    parameters = sum(parameter.numel() for parameter in module.field.parameters())
    parts = (module.geometry, module.field, module.coupling, module.prior, module.parametrization)
    names = ", ".join(type(part).__name__ for part in parts)
    return f"A flow in weight space ({names}); {parameters:,} parameters; checkpoint {run.checkpoint.name}."


def _known(run: Run, flow: Flow | None, name: str) -> Any:
    """What the checkpoint or, where it cannot be read, generated networks say of the space or the data."""
    if flow is not None:
        return flow.data if name == "data" else flow.weight_space.description
    return next((case.manifest[name] for case in run.cases if case.manifest.get(name)), None)


def _said(words: Callable[[Any], str], what: str, described: Any) -> str:
    """What is said of a description; what it misses where that cannot be built, as of a package that is not here."""
    try:
        return words(described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return missing(what, f"{type(error).__name__}: {error}")


def _networks(described: Any) -> str:
    if not described:
        return "not known"
    given = ", ".join(f"{key}={value}" for key, value in described.get("init_args", {}).items())
    dim = WeightSpace.from_description(described).dim
    return escape(f"{str(described['class_path']).rpartition('.')[2]}({given}), {dim:,} weights each.")


def _data(described: Any) -> str:
    if not described:
        return missing("The data's origin", "neither checkpoint nor networks name it")
    arguments = described.get("init_args", {})
    task = build(arguments["task"])
    if not isinstance(task, BaseTask):
        return missing("The data's origin", "the checkpoint names no base task")
    about = (type(task).__doc__ or task.name).strip().splitlines()[0]
    terms = task.terms or "not stated by the task"
    return escape(f"{type(task).__name__}: {about} Terms of the data: {terms}. {_zoo(arguments)}")


def _zoo(arguments: dict[str, Any]) -> str:
    path, fractions = arguments.get("path"), arguments.get("fractions")
    share = f"; {fractions[0]:.0%} of the runs were for training" if fractions else ""
    share += f", of which the first {arguments['train_runs']:,} were used" if arguments.get("train_runs") else ""
    try:
        zoo = Zoo.open(Path(str(path)))
    except (ZooError, OSError) as error:
        return f"The flow was trained on the zoo {path}, which cannot be read here ({error})."
    orders = f" that saw the data in {len(set(zoo.order.tolist())):,} orders" if zoo.order is not None else ""
    return f"The flow was trained on the zoo {path}: {len(zoo.run_ids):,} runs{orders}, {len(zoo):,} snapshots{share}."


def _novelty(run: Run) -> str:
    known = [(case, novelty(case.values)) for case in run.cases]
    made = [f"{case.name or 'evaluation'}: {words}" if len(run.cases) > 1 else words for case, words in known if words]
    return "<br>".join(escape(words) for words in made) or missing("The novelty test", "no evaluation made it")


def _quality(run: Run) -> str:
    lines = []
    for case in run.cases:
        for key in ("accuracy", "mse"):
            ours, real = (case.values.get(f"{kind}.{key}") for kind in ("samples", "heldout"))
            if ours is not None and real is not None:
                lines.append(f"{key} {ours:.3f} on {case.split} data, beside {real:.3f} of held-out runs")
    return "<br>".join(map(escape, lines)) or missing("Quality", "no evaluation measured it")
