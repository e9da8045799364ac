"""``wsflow baselines``: ensembles by several methods, all judged by the same code, with what they cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from wsflow.bayes import by_size
from wsflow.commands.comparison import (
    Comparison,
    filled,
    keep,
    known_entry,
    markdown,
    read_by,
    read_comparison,
    rounded,
)
from wsflow.commands.results import commit, hardware
from wsflow.files import held, write_whole
from wsflow.posteriors import PosteriorMethod


def baselines(
    file: str,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    split: Literal["val", "test"] = "test",
    results: str = "docs/baselines.json",
    page: str | None = None,
) -> None:
    """Fit and judge what a comparison file lists; what is known of the same settings is not fitted again.

    The checkpoints and zoos that methods read count as settings: a flow that was trained again is judged again.  Where
    they are not there, what is known stays, and so do rows of which it was not noted what they read, which is said.

    Args:
        file: The comparison file, such as configs/baselines/breast_cancer.yaml.
        methods: Only these, by key; all by default.
        seeds: Of fits; the file's own by default.
        split: Whose data ensembles are judged on.  Settings are chosen by ``val``, which is shown and not kept.
        results: JSON file that figures are kept in.
        page: Markdown page whose tables are brought up to date.

    Raises:
        ValueError: where a file is missing or damaged, or a method is not in it.
    """
    comparison, settings = read_comparison(file)
    if missing := [name for name in methods or [] if name not in comparison.methods]:
        raise ValueError(f"{file} has no method {', '.join(missing)}; it has {', '.join(comparison.methods)}")
    if page is not None and not Path(page).is_file():
        raise ValueError(f"there is no page {page}")
    origin: dict[str, Any] = {"command": shlex.join(["wsflow", "baselines", file]), "split": split}
    origin |= {"commit": commit(), "hardware": hardware()}
    entries = {}
    for name, row in comparison.methods.items():
        kept = split == "test"
        entry = known_entry(results, file, name, settings) if kept else {"by_seed": {}, "read": {}}
        if methods is None or name in methods:
            for seed in seeds or comparison.seeds:
                read, before = read_by(row.method, seed), entry["read"].get(str(seed))
                if str(seed) in entry["by_seed"] and (not read or before in (None, read)):
                    if read and before is None:
                        print(f"{name}, seed {seed}: kept; of {', '.join(read)} it is not known what it was then")
                    continue
                if str(seed) in entry["by_seed"]:
                    print(f"{name}, seed {seed}: measured again, {', '.join(read)} is another than it was", flush=True)
                entry["by_seed"][str(seed)] = _measure(comparison, name, row.method, seed, split)
                entry["read"][str(seed)] = read
                if kept:
                    entry = keep(results, file, origin, name, entry, seed)
        entries[name] = entry
    print(markdown(comparison, entries))
    if page is not None:
        with held(Path(page).resolve()):
            write_whole(Path(page).resolve(), filled(Path(page).read_text(), results))
        print(f"tables of {page} are up to date")


def _measure(
    comparison: Comparison, name: str, method: PosteriorMethod, seed: int, split: str
) -> dict[str, dict[str, float]]:
    """Scores and cost by number of networks: of the whole fit, or a part where networks are made one by one."""
    draws = method.fit(comparison.task, max(comparison.sizes), seed)
    source = draws.predict or draws.theta
    assert source is not None
    found = by_size(comparison.task, source, split, comparison.sizes, comparison.outliers, seed=seed)
    result = {}
    for size, scores in found.items():
        share = size / max(comparison.sizes) if method.one_by_one else 1.0
        cost = {"seconds": draws.seconds * share, "gradient_evaluations": draws.gradient_evaluations * share}
        result[str(size)] = rounded({**scores.mean, **cost, **draws.notes})
        shown = ", ".join(f"{key} {value:.4g}" for key, value in result[str(size)].items())
        print(f"{name}, {size} networks, seed {seed}: {shown}", flush=True)
    return result
