"""The tables of a report: settings, evaluations and scores of averages, with all runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wsflow.bayes.table import COLUMNS as AVERAGED
from wsflow.metrics.report import COLUMNS, caption, cell, shown
from wsflow.report.markup import table
from wsflow.report.runs import Case, Run, flat

MISSING = "-"

PARTS = ("model.", "data.", "seed_everything", "trainer.max_epochs", "trainer.max_steps", "trainer.gradient_clip_val")
"""Settings that a table of runs shows; all others are in the whole config."""

BESIDE = ("accuracy", "mse", "loss", "nll", "ensemble_accuracy", "ensemble_mse", "ensemble_nll")
"""Numbers of generated networks that stand beside those of held-out runs."""

SCORES = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "ece": "calibration error",
    "aurc": "risk over coverage",
    "rmse": "rms error",
}
"""Scores of averaged predictions that are shown, with their headings."""


def named_cases(runs: Sequence[Run]) -> list[tuple[str, Run, Case]]:
    """Every evaluation with a name of its own: the run's and, where it has several, the case's."""
    return [
        (f"{run.name}: {case.name}" if len(run.cases) > 1 and case.name else run.name, run, case)
        for run in runs
        for case in run.cases
    ]


def evaluations(runs: Sequence[Run]) -> str:
    """Generated networks of all evaluations beside the held-out runs."""
    found = named_cases(runs)
    keys = [key for key in COLUMNS if any(f"samples.{key}" in case.values for *_, case in found)]
    head = ["run"]
    for key in keys:
        head += [COLUMNS[key], *([f"held-out\n{COLUMNS[key]}"] if key in BESIDE else [])]
    head += ["ms a\nnetwork", "steps", "networks", "split"]
    return table(head, (_row(name, case, keys) for name, _, case in found), _how_to_read([c for *_, c in found]))


def baselines(case: Case) -> str:
    """Everything that one evaluation holds: generated and held-out networks, and baselines."""
    rows, columns = shown(case.values)
    lines, last = [], ""
    for prefix, label in rows.items():  # an indented label belongs to the row above it
        last = last if label.startswith(" ") else label
        name = f"{last}, {label.strip()}" if label.startswith(" ") else label
        lines.append([name, *(cell(case.values, f"{prefix}{key}") for key in columns)])
    return table(["networks", *(COLUMNS[key] for key in columns)], lines, caption(case.values, rows, columns) or "")


def settings(runs: Sequence[Run]) -> str:
    """Settings of all runs: those in which they differ or, of one run, the main ones that are set."""
    known = {run.name: flat(run.settings) for run in runs if run.settings}
    names = list(dict.fromkeys(name for each in known.values() for name in each))
    several = len(known) > 1
    rows = []
    for name in names:
        values = [each.get(name, MISSING) for each in known.values()]
        differs = len(set(values)) > 1
        if (differs if several else name.startswith(PARTS) and values[0] != "null") and not name.endswith("_dir"):
            rows.append([name, *values])
    text = (
        "Settings in which the runs differ." if several else "Settings of model, data and training that are not null."
    )
    return table(["setting", *known], rows, text, numbers=False)


def averaged(found: Mapping[str, Mapping[str, Mapping[str, float]]], size: str) -> str:
    """Scores of averaged predictions.

    Args:
        found: By run, of ``generated`` and ``heldout`` networks.
        size: How many are averaged, in words.
    """
    keys = [key for key in SCORES if any(key in each for kinds in found.values() for each in kinds.values())]
    head = ["run", *(f"{prefix}{SCORES[key]}" for key in keys for prefix in ("", "held-out\n"))]
    rows = [
        [name, *(_number(kinds[kind].get(key)) for key in keys for kind in ("generated", "heldout"))]
        for name, kinds in found.items()
    ]
    return table(head, rows, f"The averaged prediction of {size}; lower is better for all but accuracy.")


def ensembles(found: Mapping[str, Any]) -> str:
    """Scores of ensembles by their number of networks, as ``wsflow bayes`` wrote them.

    Args:
        found: The contents of its ``bayes.json``.
    """
    lines = [
        (name, size, values)
        for name, networks in found["networks"].items()
        for size, values in networks["sizes"].items()
    ]
    keys = [key for key in AVERAGED if any(key in values["mean"] for *_, values in lines)]
    rows = [
        [f"{name}, {size}", *(_spread(values, key) for key in keys), str(values["ensembles"])]
        for name, size, values in lines
    ]
    head = ["networks averaged", *(AVERAGED[key] for key in keys), "ensembles"]
    text = f"±: standard deviation over ensembles; {found['origin'].get('split', 'unknown')} data."
    return table(head, rows, text)


def _spread(values: Mapping[str, Any], key: str) -> str:
    mean, spread = (values[name].get(key) for name in ("mean", "std"))
    if mean is None:
        return MISSING
    return f"{mean:.4f}" + (f" ± {spread:.4f}" if spread is not None and values["ensembles"] > 1 else "")


def _row(name: str, case: Case, keys: Iterable[str]) -> list[str]:
    values = case.values
    row = [name]
    for key in keys:
        row += [cell(values, f"samples.{key}") or MISSING]
        row += [cell(values, f"heldout.{key}") or MISSING] * (key in BESIDE)
    seconds = values.get("timing.seconds_per_network")
    row.append(f"{1e3 * seconds:.3g}" if seconds is not None else MISSING)
    return [*row, str(case.sampling.get("steps", MISSING)), str(values["origin"].get("n", MISSING)), case.split]


def _how_to_read(cases: Sequence[Case]) -> str:
    """The notes of all evaluations, each once."""
    notes: dict[str, None] = {}
    for case in cases:
        rows, columns = shown(case.values)
        kept = {prefix: label for prefix, label in rows.items() if not prefix.startswith("baselines.")}
        notes |= dict.fromkeys((caption(case.values, kept, [c for c in columns if c != "noise"]) or "").splitlines())
    return "\n".join(notes)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
