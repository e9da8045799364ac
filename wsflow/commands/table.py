"""``wsflow table``: Markdown tables and figures of what ``docs/results.json`` holds.

A page holds a table between two comments, and ``wsflow table --page PAGE FILE`` writes it there::

    <!-- table: configs/experiments/table_7_1.yaml -->
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsflow.commands.experiment_file import Case, Experiment, cases, read_experiment
from wsflow.commands.results import read_results
from wsflow.files import held, write_whole

COLUMNS = (
    "samples.accuracy",
    "heldout.accuracy",
    "published:samples.accuracy",
    "samples.loss",
    "heldout.loss",
    "published:samples.loss",
    "samples.nn_ratio.function",
    "samples.nn_ratio.weight",
    "samples.z_u",
    "samples.dispersion",
)
"""What a table shows unless its experiment says otherwise; the published figure of a metric by ``published:``."""

WORDS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "nn_ratio.function": "NN ratio, function",
    "nn_ratio.weight": "NN ratio, weight",
    "z_u": "Z_U",
    "dispersion": "dispersion",
    "ensemble_accuracy": "ensemble accuracy",
    "ensemble_nll": "ensemble NLL",
    "ensemble50_accuracy": "accuracy of 50",
    "ensemble50_nll": "NLL of 50",
    "raw.loss": "loss as trained",
    "raw.accuracy": "accuracy as trained",
    "seconds_per_network": "seconds per network",
}
OWNERS = {"samples": "", "heldout": "held-out ", "best_single": "best single ", "timing": ""}
MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "-"


def table(files: Sequence[str], results: str = "docs/results.json", page: str | None = None) -> None:
    """Print the tables of experiments, write them into a page and draw their figures.

    Args:
        files: Experiment files; with a page, those that the page names by default.
        results: JSON file with the figures.
        page: Markdown page whose tables are brought up to date.

    Raises:
        ValueError: where a file or the page is missing, or there is nothing to do.
    """
    if page is None:
        if not files:
            raise ValueError("give experiment files, or a page that names them by --page")
        print(tables(files, results))
        drawn = list(files)
    else:
        if not Path(page).is_file():
            raise ValueError(f"there is no page {page}")
        with held(Path(page).resolve()):
            text = Path(page).read_text()
            write_whole(Path(page).resolve(), filled(text, results))
        drawn = [name for _, name, _ in MARK.findall(text)]
        print(f"{len(drawn)} tables in {page}")
    draw(drawn, results)


def filled(text: str, results: str | Path) -> str:
    """A page with every table as the results have it now."""
    return MARK.sub(lambda match: f"{match[1]}{markdown(match[2], results)}\n{match[3]}", text)


def tables(files: Sequence[str], results: str | Path) -> str:
    """The tables of several experiments, with their titles."""
    return "\n\n".join(
        f"{read_experiment(file).title or Path(file).stem}\n\n{markdown(file, results)}" for file in files
    )


def markdown(file: str | Path, results: str | Path) -> str:
    """The table of an experiment: a row a case, what was not run yet left open."""
    plan, found = read_experiment(file), read_results(results)
    rows = [(case, found.get(case.key, {})) for case in cases(file)]
    shown = [column for column in plan.columns or COLUMNS if not column.startswith("published:") or _any(rows, column)]
    lines = [["", *(_heading(column) for column in shown), "seeds"]]
    lines.append(["---"] * len(lines[0]))
    lines += [
        [_label(case), *(_cell(case, values, column) for column in shown), _seeds(values)] for case, values in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(files: Sequence[str], results: str | Path) -> None:
    """Draw the figures of those experiments that have one and results for it."""
    for file in files:
        if _draw(file, results):
            print(f"figure of {file} drawn")


def _draw(file: str, results: str | Path) -> bool:
    plan, found = read_experiment(file), read_results(results)
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for case in cases(file):
        if case.point.x is not None and case.key in found:
            lines.setdefault(case.line, []).append((case.point.x, found[case.key]))
    if plan.figure is None or not lines:
        return False
    from wsflow.commands.curves import save_curves  # matplotlib takes its time to import

    save_curves(_lines(plan, lines), plan.axis, Path(file).parent / plan.figure)
    return True


def _lines(plan: Experiment, lines: dict[str, list[tuple[float, Mapping[str, Any]]]]) -> dict[str, Any]:
    """One line a label; one line in all where every label has a single place."""
    if all(len(line) == 1 for line in lines.values()):
        return {plan.title or "generated": sorted((one for line in lines.values() for one in line), key=_place)}
    return {name: sorted(line, key=_place) for name, line in lines.items()}


def _place(point: tuple[float, Mapping[str, Any]]) -> float:
    return point[0]


def _any(rows: list[tuple[Case, Mapping[str, Any]]], column: str) -> bool:
    return any(column.partition(":")[2] in case.point.published for case, _ in rows)


def _label(case: Case) -> str:
    return f"{case.line}, {case.point.steps} steps" if case.key.endswith(f"_steps_{case.point.steps}") else case.line


def _heading(column: str) -> str:
    published, name = column.startswith("published:"), column.removeprefix("published:")
    owner, _, metric = name.partition(".")
    if owner == "baselines":
        baseline, _, metric = metric.partition(".")
        return f"{baseline}'s {WORDS.get(metric, metric)}"
    return ("published " if published else "") + OWNERS.get(owner, f"{owner} ") + WORDS.get(metric, metric)


def _cell(case: Case, values: Mapping[str, Any], column: str) -> str:
    if column.startswith("published:"):
        known, name = case.point.published, column.removeprefix("published:")
        return _number(name, known[name], known.get(f"{name}.std")) if name in known else MISSING
    if column not in values:
        return MISSING
    return _number(column, values[column], values.get("spread", {}).get(column))


def _number(column: str, value: float, spread: float | None) -> str:
    digits = 2 if column.endswith(("z_u", "nn_ratio.function")) else 4 if "loss" in column or "nll" in column else 3
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread else "")


def _seeds(values: Mapping[str, Any]) -> str:
    return ", ".join(map(str, values.get("origin", {}).get("seeds", []))) or MISSING
