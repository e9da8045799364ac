r"""Runs, steps and metrics of foreign networks, from file names or a table.

A pattern is a regular expression with named groups, searched for in the name of each file without its suffix::

    run(?P<run>\d+)_step(?P<step>\d+)_acc(?P<test_accuracy>[\d.]+)

A table is a CSV file with a header.  For files, its column ``file`` holds their names; for an array, its rows are the
array's.  ``run`` and ``step`` are whole numbers; every other group or column becomes a metric, and ``train_``,
``val_`` and ``test_`` become the ``train.``, ``val.`` and ``test.`` of a zoo's own metrics.

What is not numeric becomes codes 0, 1, ... in natural order of the texts, which the manifest lists.  An empty cell of
a metric is NaN.  Networks without a run are each a run of their own, in the order in which they are read; networks of
one run without steps are numbered in that order.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from wsflow.zoo.exchange.folders import NetworkFile, natural
from wsflow.zoo.shards import ZooError

RUN, STEP, FILE = "run", "step", "file"

Columns = dict[str, list[str]]
"""Texts by column, one per network."""


@dataclass(frozen=True)
class Labels:
    """What is known of N networks.

    Attributes:
        run: (N,) int64.
        step: (N,) int64.
        metrics: (N,) float32 each.
        codes: The texts behind metrics, or runs, that are codes; text i has code i.
    """

    run: Tensor
    step: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, list[str]] = field(default_factory=dict)

    def order(self, names: Sequence[str]) -> list[int]:
        """The networks by run, and then by step.

        Raises:
            ZooError: where two networks of a run have the same step.
        """
        pairs = list(zip(self.run.tolist(), self.step.tolist(), strict=True))
        order = sorted(range(len(pairs)), key=lambda i: pairs[i])
        for one, other in pairwise(order):
            if pairs[one] == pairs[other]:
                run, step = pairs[one]
                raise ZooError(f"{names[one]} and {names[other]} are both step {step} of run {run}")
        return order


def labels(columns: Columns, count: int) -> Labels:
    """Labels from texts.

    Args:
        columns: From :func:`from_names` and :func:`from_table`.
        count: N.

    Raises:
        ZooError: where a step is no whole number, a run or a step is missing or negative, or there are steps without
            runs: snapshots of one training must not fall into different splits.
    """
    if STEP in columns and RUN not in columns:
        raise ZooError(
            "there are steps but no runs; say which training each network is of, by a group or column 'run', or call "
            "the steps by another name"
        )
    codes: dict[str, list[str]] = {}
    metrics = {n: _numbers(n, texts, codes) for n, texts in columns.items() if n not in (RUN, STEP)}
    run = _runs(columns[RUN], codes) if RUN in columns else torch.arange(count)
    step = _steps(columns[STEP]) if STEP in columns else _numbered(run)
    return Labels(run, step, metrics, codes)


def from_names(files: Sequence[NetworkFile], pattern: str) -> Columns:
    """What a pattern finds in the names of files.

    Raises:
        ZooError: where the pattern is no regular expression, names nothing, or does not fit a file.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ZooError(f"the pattern {pattern!r} is no regular expression: {error}") from None
    if not compiled.groupindex:
        raise ZooError(f"the pattern {pattern!r} names nothing; groups are written (?P<run>...)")
    found = []
    for file in files:
        match = compiled.search(file.stem)
        if match is None:
            raise ZooError(f"the pattern {pattern!r} does not fit the file {file.stem!r}")
        found.append(match.groupdict(default=""))
    _refuse_doubles(list(compiled.groupindex), f"the pattern {pattern!r}")
    return {metric_name(name): [groups[name] for groups in found] for name in compiled.groupindex}


def from_table(path: Path, files: Sequence[NetworkFile] | None, count: int) -> Columns:
    """The columns of a CSV file, one entry per network.

    Args:
        path: The file.
        files: The networks' files, found by the column ``file``; None where rows are in the networks' order.
        count: N.

    Raises:
        ZooError: where the table is damaged or does not have every network.
    """
    header, rows = _read(path)
    if files is not None:
        rows = _by_file(path, header, rows, files)
    elif len(rows) != count:
        raise ZooError(f"{path} has {len(rows)} rows, and there are {count} networks")
    names = [name for name in header if name != FILE]
    return {metric_name(name): [row[name] for row in rows] for name in names}


def metric_name(name: str) -> str:
    """The name of a metric in a zoo: ``val_loss`` is ``val.loss`` there."""
    return re.sub("^(train|val|test)_", r"\1.", name)


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except FileNotFoundError:
        raise ZooError(f"there is no table at {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{path} cannot be read as CSV: {error}") from None
    if not header or not all(header):
        raise ZooError(f"{path} needs a header that names every column, found {header}")
    _refuse_doubles(header, str(path))
    for number, cells in lines:
        if len(cells) != len(header):
            raise ZooError(f"{path}, line {number}: {len(cells)} cells under {len(header)} columns")
    return header, [dict(zip(header, cells, strict=True)) for _, cells in lines]


def _by_file(
    path: Path, header: Sequence[str], rows: Sequence[dict[str, str]], files: Sequence[NetworkFile]
) -> list[dict[str, str]]:
    """The row of each file, called by its name with or without the suffix."""
    if FILE not in header:
        raise ZooError(f"{path} needs a column {FILE!r} with the names of the files, found {list(header)}")
    named = [Path(row[FILE]).as_posix() for row in rows]
    if repeated := [name for name, times in Counter(named).items() if times > 1]:
        raise ZooError(f"{path} has the file {repeated[0]!r} twice")
    table = dict(zip(named, rows, strict=True))
    for file in files:
        if file.name not in table and file.stem not in table:
            raise ZooError(f"{path} has no row for the file {file.name!r}")
    return [table.get(file.name) or table[file.stem] for file in files]


def _refuse_doubles(names: Sequence[str], where: str) -> None:
    doubles = [name for name, times in Counter(map(metric_name, names)).items() if times > 1]
    if doubles:
        raise ZooError(f"{where} has {doubles[0]!r} twice")


def _numbers(name: str, texts: Sequence[str], codes: dict[str, list[str]]) -> Tensor:
    """(N,) numbers, or codes of texts where one of them is no number."""
    try:
        return torch.tensor([_number(text) if text else float("nan") for text in texts], dtype=torch.float32)
    except ValueError:
        codes[name] = sorted({text for text in texts if text}, key=natural)
        code = {text: float(i) for i, text in enumerate(codes[name])} | {"": float("nan")}
        return torch.tensor([code[text] for text in texts], dtype=torch.float32)


def _number(text: str) -> float:
    if "_" in text:  # which Python reads over, so that 1_2 would be twelve
        raise ValueError(text)
    return float(text)


def _runs(texts: Sequence[str], codes: dict[str, list[str]]) -> Tensor:
    if not all(texts):
        raise ZooError(f"network {list(texts).index('')} has no run")
    if all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts):
        return torch.tensor([int(text) for text in texts], dtype=torch.long)
    codes[RUN] = sorted(set(texts), key=natural)
    place = {text: i for i, text in enumerate(codes[RUN])}
    return torch.tensor([place[text] for text in texts], dtype=torch.long)


def _steps(texts: Sequence[str]) -> Tensor:
    for text in texts:
        if not re.fullmatch(r"[0-9]{1,18}(\.0*)?", text):
            raise ZooError(f"a step is a whole number that is not negative, found {text!r}")
    return torch.tensor([int(text.partition(".")[0]) for text in texts], dtype=torch.long)


def _numbered(run: Tensor) -> Tensor:
    """0, 1, ... within each run."""
    seen: Counter[int] = Counter()
    steps = []
    for one in run.tolist():
        steps.append(seen[one])
        seen[one] += 1
    return torch.tensor(steps, dtype=torch.long)


def merged(first: Mapping[str, list[str]], second: Mapping[str, list[str]]) -> Columns:
    """Columns of a pattern and of a table.

    Raises:
        ZooError: where both have one.
    """
    if both := sorted(first.keys() & second.keys()):
        raise ZooError(f"the pattern and the table both say {both[0]!r}")
    return {**first, **second}
