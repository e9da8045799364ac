"""``docs/results.json``: the figures of experiments, by case and metric, written by :mod:`wsflow.commands.experiment`.

::

    {"mnist_784_10_10_trajectory": {
        "samples.accuracy": 0.9, ...,               # each kept metric of the report: the mean over seeds
        "spread": {"samples.accuracy": 0.001},      # unbiased standard deviation over seeds; absent for one seed
        "by_seed": {"0": {"samples.accuracy": 0.9}},
        "published": {"samples.accuracy": 0.737},
        "origin": {"command": ..., "seeds": [0], "split": "test", "settings": ..., "stages": ..., "commit": ...,
                   "hardware": ...}}}                  # stages, commit and hardware: of the seed that ran last

A seed that is run again replaces its own figures; the other seeds' stay, unless the settings have changed.  Settings
that were not kept when figures were taken are unknown, and taken to be the same.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from wsflow.files import held, write_whole

KEPT = re.compile(
    r"(samples|heldout)\.(accuracy|loss|mse|nll|grand_mean|mean_error|std)(\.std)?"
    r"|(samples|heldout)\.(ensemble\d*_\w+|raw\.(accuracy|loss|mse|nll)(\.std)?)"
    r"|samples\.(nn_ratio\.(function|weight)|z_u|dispersion)"
    r"|best_single\.\w+"
    r"|baselines\.\w+(\.function_matched)?\.(accuracy|loss|mse|nn_ratio\.(function|weight))"
    r"|timing\.(collect|fit|fit_before|predict|evaluate|seconds_per_network)"
)
"""Metrics of a report that are kept: not the dispersion of single tensors, nor what is 1 by definition."""

DIGITS = 6
PARTS = ("origin", "by_seed", "published", "spread", "methods")
"""What of a case is an object, if it is there; ``methods`` in the results of comparisons."""


def read_results(path: str | Path) -> dict[str, Any]:
    """Everything kept so far, by case; empty where there is no file.

    Raises:
        ValueError: where the file holds anything else.
    """
    path = Path(path)
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no file of results, not even JSON ({error}): mend it or name another") from error
    cases = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(case, dict) and all(isinstance(case.get(n, {}), dict) for n in PARTS) for case in cases):
        raise ValueError(
            f"{path} is no file of results, which holds an object for each case with objects for "
            f"{', '.join(PARTS)}: mend it or name another"
        )
    return found


def merge(
    path: str | Path,
    key: str,
    seed: int,
    report: Mapping[str, Any],
    origin: Mapping[str, Any],
    published: Mapping[str, float] | None = None,
) -> None:
    """Put the report of one seed of a case among the results; the file is replaced as a whole.

    Args:
        path: The results file.
        key: The case.
        seed: Whose report it is.
        report: Flat keys, as ``wsflow evaluate`` writes them.
        origin: What made it; figures of other seeds are dropped if their ``settings`` differ.
        published: Figures to stand beside these.
    """
    values = {name: _round(v) for name, v in report.items() if KEPT.fullmatch(name) and isinstance(v, (int, float))}
    made = {**origin, "commit": commit(), "hardware": hardware(report)}
    with held(Path(path)):
        results = read_results(path)
        _tell_dropped(key, seed, results.get(key, {}), made)
        results[key] = _merged(results.get(key, {}), seed, values, made, dict(published or {}))
        write_whole(Path(path), json.dumps(dict(sorted(results.items())), indent=1) + "\n")


def _tell_dropped(key: str, seed: int, old: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Say which other seeds' figures go, since they were made with other settings."""
    names = differing(old.get("origin", {}).get("settings", {}), origin["settings"])
    gone = [other for other in old.get("by_seed", {}) if other != str(seed)]
    if names and gone:
        print(f"{key}: dropped the figures of seeds {', '.join(gone)}, whose {', '.join(names)} differ; run them again")


def _merged(
    old: Mapping[str, Any],
    seed: int,
    values: Mapping[str, float],
    origin: Mapping[str, Any],
    published: Mapping[str, float],
) -> dict[str, Any]:
    """A case with the figures of one seed more."""
    if differing(old.get("origin", {}).get("settings", {}), origin["settings"]):
        old = {}
    by_seed = dict(sorted((old.get("by_seed", {}) | {str(seed): values}).items(), key=lambda item: int(item[0])))
    found: dict[str, Any] = {name: _round(fmean(each)) for name, each in _columns(by_seed).items()}
    if len(by_seed) > 1:
        found["spread"] = {name: _round(stdev(each)) for name, each in _columns(by_seed).items()}
    origin = {**origin, "seeds": [int(s) for s in by_seed]}
    return {**found, "by_seed": by_seed, "published": published, "origin": origin}


def differing(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two records differ; what one does not have is unknown, and no difference."""
    return sorted(name for name in known.keys() & now.keys() if known[name] != now[name])


def hardware(report: Mapping[str, Any] | None = None) -> str:
    """The processor, how many cores there are, and the device that sampled."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    device = (report or {}).get("timing.device.sampling")
    return f"{name}, {os.cpu_count()} cores" + (f"; sampled on {device}" if device else "")


def commit() -> str | None:
    """The commit of the working directory, marked where files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _columns(by_seed: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """The values of each metric that all seeds have."""
    first, *others = by_seed.values()
    return {name: [one[name] for one in (first, *others)] for name in first if all(name in one for one in others)}


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
