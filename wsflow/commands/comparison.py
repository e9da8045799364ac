"""Comparison files, what is kept of them, and the tables drawn from it.

A comparison file is YAML of the fields of :class:`Comparison`; a method is named by its class, as plug-ins are::

    task: BreastCancer
    outliers: ShuffledFeatures
    methods:
      deep_ensemble:
        label: Deep ensemble
        method: {class_path: DeepEnsemble, init_args: {recipe: {class_path: Recipe}}}

The results file holds, by the file's name, ``methods``: settings, what they were judged by (``shared``: task, outliers,
sizes), by seed and number of networks, what was measured (``by_seed``), and by seed the SHA-256 of the checkpoint or
zoo that was read (``read``); and ``origin``: command, commit, hardware.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from wsflow.bayes import OutlierSource
from wsflow.commands.results import read_results
from wsflow.files import held, write_whole
from wsflow.posteriors import PosteriorMethod
from wsflow.tasks import BaseTask
from wsflow.zoo import file_hash

MARK = re.compile(r"(<!-- baselines: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

COLUMNS = {
    "accuracy": ("accuracy", 3),
    "nll": ("NLL", 4),
    "brier": ("Brier", 4),
    "ece": ("ECE", 4),
    "ood_auroc": ("OOD AUROC", 3),
    "seconds": ("seconds", 1),
    "gradient_evaluations": ("gradient evaluations", 0),
}
"""What a table shows of each ensemble: heading and digits."""

DIGITS = 5


@dataclass
class Row:
    """A method of a comparison.

    Attributes:
        method: The method.
        label: In tables; the method's key by default.
    """

    method: PosteriorMethod
    label: str | None = None


@dataclass
class Comparison:
    """What is compared on what.

    Attributes:
        task: The base task.
        methods: By key.
        title: Of the table.
        outliers: Inputs that uncertainty should tell from the task's.
        sizes: Numbers of networks that are averaged.  A method draws as many as the largest; smaller ensembles are
            parts of these (:func:`wsflow.bayes.by_size`).
        seeds: Of fits.
    """

    task: BaseTask
    methods: dict[str, Row]
    title: str = ""
    outliers: OutlierSource | None = None
    sizes: list[int] = field(default_factory=lambda: [1, 5, 10, 50])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be positive numbers, got {self.sizes}")


class Settings(NamedTuple):
    """What a comparison file says, as plain data.

    Attributes:
        methods: Each method, by key.
        shared: ``task``, ``outliers`` and ``sizes``, on which what is measured depends too.
    """

    methods: dict[str, Any]
    shared: dict[str, Any]


def read_comparison(path: str | Path) -> tuple[Comparison, Settings]:
    """The comparison that a file describes, and its settings as plain data.

    Raises:
        ValueError: where there is no file, or it says what no comparison has.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no comparison file {path}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Comparison, nested_key=None)
    parsed = parser.parse_string(Path(path).read_text())
    plain = json.loads(json.dumps(parsed.as_dict()))
    methods = {name: row["method"] for name, row in plain["methods"].items()}
    settings = Settings(methods, {name: plain[name] for name in ("task", "outliers", "sizes")})
    return Comparison(**parser.instantiate_classes(parsed).as_dict()), settings


def keep(
    path: str | Path, file: str, origin: Mapping[str, Any], name: str, entry: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Put what was measured of a method with one seed among the results; the results file is replaced as a whole.

    Returns:
        The method's entry, with what other processes measured meanwhile.
    """
    with held(Path(path)):
        results = read_results(path)
        methods = results.get(Path(file).stem, {}).get("methods", {})
        found = _same(methods.get(name, {}), {part: entry[part] for part in ("settings", "shared")})
        for part in ("by_seed", "read"):
            seeds = {**found[part], str(seed): entry[part][str(seed)]}
            found[part] = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
        results[Path(file).stem] = {"origin": dict(origin), "methods": {**methods, name: found}}
        write_whole(Path(path), json.dumps(results, indent=1) + "\n")
    return found


def known_entry(path: str | Path, file: str, name: str, settings: Settings) -> dict[str, Any]:
    """What is kept of a method; nothing of it was measured where its settings, or those of all methods, were others.

    Entries of before ``shared`` was kept are taken to be of the same task, outliers and sizes.

    Returns:
        The entry, whose ``read`` are the files' hashes by seed, where they are known.
    """
    found: dict[str, Any] = read_results(path).get(Path(file).stem, {}).get("methods", {}).get(name, {})
    return _same(found, {"settings": settings.methods[name], "shared": settings.shared})


def _same(found: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with what was found, if that was measured as is asked."""
    same = {"shared": asked["shared"], **found}
    kept = all(same.get(part) == value for part, value in asked.items())
    return {**asked, **{part: dict(found.get(part, {})) if kept else {} for part in ("by_seed", "read")}}


def read_by(method: PosteriorMethod, seed: int) -> dict[str, str]:
    """SHA-256, by path, of the files that a fit reads and that are there."""
    return {str(path): file_hash(path) for path in method.reads(seed) if path.is_file()}


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """To the digits that are kept."""
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}


def markdown(comparison: Comparison, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each method and number of networks: means over seeds, and their standard deviations."""
    lines = [["", "networks", *(heading for heading, _ in COLUMNS.values()), "seeds"]]
    lines.append(["---"] * len(lines[0]))
    for name, row in comparison.methods.items():
        by_seed = entries.get(name, {}).get("by_seed", {})
        sizes = sorted({int(size) for found in by_seed.values() for size in found})
        lines += [_line(row.label or name, size, by_seed) for size in sizes]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str, results: str | Path) -> str:
    """A page with every table as the results have it now."""

    def table(match: re.Match[str]) -> str:
        found = read_results(results).get(Path(match[2]).stem, {})
        return f"{match[1]}{markdown(read_comparison(match[2])[0], found.get('methods', {}))}\n{match[3]}"

    return MARK.sub(table, text)


def _line(label: str, size: int, by_seed: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    found = {seed: sizes[str(size)] for seed, sizes in by_seed.items() if str(size) in sizes}
    cells = [
        _cell([one[name] for one in found.values() if name in one], digits) for name, (_, digits) in COLUMNS.items()
    ]
    return [label, str(size), *cells, ", ".join(found)]


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    return f"{fmean(values):,.{digits}f}{spread}"
