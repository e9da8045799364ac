"""Scores of ensembles as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from wsflow.bayes.ensembles import SizeScores

COLUMNS = {
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "nll": "NLL",
    "nll.calibrated": "NLL\ncalibrated",
    "brier": "Brier",
    "ece": "ECE",
    "ece.calibrated": "ECE\ncalibrated",
    "aurc": "AURC",
    "mutual_information": "mutual\ninformation",
    "epistemic_std": "epistemic\nstd",
    "ood_auroc": "OOD AUROC\nentropy",
    "ood_auroc.epistemic": "OOD AUROC\nepistemic",
}
"""Scores that a table shows, in order, with their headings."""

PAIRS = {"diversity": "diversity", "error_overlap": "error\noverlap"}

DIGITS = {"nll": 4, "nll.calibrated": 4, "aurc": 4, "mutual_information": 4}
"""Those shown with more than three digits."""


def render(families: Mapping[str, Mapping[int, SizeScores]], pairs: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each family and size of ensembles, in plain characters.

    Args:
        families: Scores by size of each set of networks, by its name.
        pairs: Means over pairs of members of each set, by its name, as :class:`~wsflow.bayes.Disagreement` gives them.
    """
    every = [one for sizes in families.values() for one in sizes.values()]
    columns = [name for name in COLUMNS if any(name in one.mean for one in every)]
    table = _table("Averaged predictions", ("networks", "averaged"), [COLUMNS[name] for name in columns])
    for family, sizes in families.items():
        for place, one in enumerate(sizes.values()):
            label = family if place == 0 else ""
            table.add_row(label, f"{one.size}{'' if one.disjoint else '*'}", *(_cell(one, name) for name in columns))
    text = _plain(table) + "±: standard deviation over ensembles of a size\n"
    if not all(one.disjoint for one in every):
        text += "*: ensembles share members, so that the deviation is too small\n"
    return text + _pairs(pairs)


def _pairs(pairs: Mapping[str, Mapping[str, float]]) -> str:
    if not pairs:
        return ""
    columns = [name for name in PAIRS if any(name in values for values in pairs.values())]
    table = _table("Pairs of networks", ("networks",), [PAIRS[name] for name in columns])
    for family, values in pairs.items():
        table.add_row(family, *(f"{values[name]:.4f}" if name in values else "" for name in columns))
    return _plain(table)


def _table(title: str, labels: Sequence[str], headings: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for label in labels:
        table.add_column(label, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cell(one: SizeScores, name: str) -> str:
    if name not in one.mean:
        return ""
    digits = DIGITS.get(name, 3)
    return f"{one.mean[name]:.{digits}f}" + (f" ± {one.std[name]:.{digits}f}" if name in one.std else "")


def _plain(table: Table) -> str:
    """As wide as it needs to be."""
    console = Console(file=StringIO(), width=1000, color_system=None, force_terminal=False, record=True)
    console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines() if line.strip())
