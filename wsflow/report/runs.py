"""What a run folder holds, as it is: settings, training curves, evaluations, checkpoints.

A run is a folder with ``checkpoints/``.  Its evaluations are the ``report.json`` files in it or in folders of its own,
such as an experiment's cases; each names the generated networks it is of.  Nothing here is computed from networks.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPORT = "report.json"
METRICS = "metrics.csv"
SETTINGS = "fit.yaml"


@dataclass(frozen=True)
class Case:
    """An evaluation of generated networks.

    Args:
        name: Its folder in the run; empty for the run itself.
        values: The flat report that ``wsflow evaluate`` wrote.
        samples: Folder of the networks; None where they are not there any more.
        manifest: Of these networks; empty likewise.
    """

    name: str
    values: Mapping[str, Any]
    samples: Path | None
    manifest: Mapping[str, Any]

    @property
    def split(self) -> str:
        """Whose runs and data the networks were held against."""
        return str(self.values.get("origin", {}).get("split", "val"))

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How the networks were drawn; empty where that is not known."""
        found: Mapping[str, Any] = self.manifest.get("sampling") or {}
        return found


@dataclass(frozen=True)
class Run:
    """A training and what was made of it.

    Args:
        name: What tells it from the other runs of a report.
        folder: Where it lies.
        checkpoint: The last one, or the one that its first evaluation names.
        settings: The config of its training; empty where ``fit.yaml`` is missing.
        cases: Its evaluations, the run's own first.
        curves: Logged numbers by name, (step, value) each; of all starts of the training.
        timing: Seconds by command.
    """

    name: str
    folder: Path
    checkpoint: Path
    settings: Mapping[str, Any]
    cases: Sequence[Case]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    timing: Mapping[str, float]


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Runs of given folders; a folder of runs stands for all of them.

    Raises:
        ValueError: where a folder is missing or holds no checkpoint, or a file is damaged.
    """
    folders = list(dict.fromkeys(folder.resolve() for path in paths for folder in _run_folders(Path(path))))
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as one level of dotted names; a class stands for its name, and its arguments follow it."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            found[name] = str(value["class_path"]).rpartition(".")[2]
            found |= flat(value.get("init_args") or {}, f"{name}.")
        elif isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            found |= flat({str(number): one for number, one in enumerate(value)}, f"{name}.")
        else:
            found[name] = json.dumps(value) if isinstance(value, list | bool) or value is None else str(value)
    return found


def _run_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"there is no run folder {path}")
    if any(path.glob("checkpoints/*.ckpt")):
        return [path]
    inside = sorted(one for one in path.iterdir() if any(one.glob("checkpoints/*.ckpt")))
    if not inside:
        raise ValueError(f"{path} holds no checkpoint: give the folder that wsflow fit trained in")
    return inside


def _names(folders: Sequence[Path]) -> list[str]:
    """The parts of paths in which they differ; of one folder, its name and, for a seed, its parent's."""
    parts = [list(folder.parts) for folder in folders]
    if len(parts) == 1:
        name = parts[0][-1]
        return [f"{parts[0][-2]}/{name}" if name.startswith("seed_") else name]
    while all(len(one) > 1 for one in parts) and len({one[0] for one in parts}) == 1:
        parts = [one[1:] for one in parts]
    while all(len(one) > 1 for one in parts) and len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    return ["/".join(one) for one in parts]


def _read(folder: Path, name: str) -> Run:
    cases = sorted(_cases(folder), key=lambda case: (case.name not in ("", folder.parent.name), case.name))
    settings = _yaml(folder / SETTINGS)
    timing = _timing(folder / "timing.json")
    return Run(name, folder, _checkpoint(folder, cases), settings, cases, _curves(folder), timing)


def _checkpoint(folder: Path, cases: Sequence[Case]) -> Path:
    named = [Path(case.manifest.get("checkpoint") or case.values["origin"].get("ckpt_path") or "") for case in cases]
    own = [folder / "checkpoints" / one.name for one in [*named, Path("last.ckpt")]]
    return next((one for one in own if one.is_file()), sorted(folder.glob("checkpoints/*.ckpt"))[0])


def _cases(folder: Path) -> Iterator[Case]:
    for file in (folder / REPORT, *folder.glob(f"*/{REPORT}")):
        if not file.exists():
            continue
        values = read_json(file)
        if not isinstance(values.get("origin"), dict):
            raise ValueError(f"{file} is no report of wsflow evaluate: it does not say what it is of")
        if not any(name.startswith("samples.") and isinstance(value, int | float) for name, value in values.items()):
            raise ValueError(f"{file} is damaged: it holds no scores of samples")
        samples, manifest = _samples(file, values)
        yield Case(file.parent.relative_to(folder).as_posix().removeprefix("."), values, samples, manifest)


def _samples(file: Path, values: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The networks that a report is of, and their manifest, also where the run was moved.

    These are the ones that took as long as the report says, and none after another prediction in their place; where it
    does not say, the run's own.
    """
    recorded = Path(values["origin"].get("samples") or "")
    places = [file.parent / recorded.name, recorded, file.parent / "samples"]
    found = [(place, read_json(place / "zoo.json")) for place in places if (place / "zoo.json").is_file()]
    cost = values.get("timing.seconds_per_network")
    same = [one for one in found if one[1].get("seconds_per_network") == cost]
    return next(iter(found if cost is None else same), (None, {}))


def _timing(file: Path) -> dict[str, float]:
    """The numbers that a file holds; none where it is damaged."""
    try:
        found = read_json(file) if file.exists() else {}
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Logged numbers, but for a last line that a killed process left torn, and what is no number."""
    curves: dict[str, dict[int, float]] = {}
    files = sorted(folder.glob(f"logs/csv/version_*/{METRICS}"), key=lambda path: int(path.parent.name[8:] or 0))
    for file in files:
        whole, _, _ = file.read_text(errors="replace").rpartition("\n")
        if whole:
            for row in csv.DictReader(whole.splitlines()):
                for key, text in row.items():
                    if text and key not in ("step", "epoch"):
                        with contextlib.suppress(TypeError, ValueError):
                            curves.setdefault(key, {})[int(row.get("step") or "")] = float(text)
    return {name: sorted(points.items()) for name, points in sorted(curves.items()) if points}


def read_json(file: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        ValueError: where it holds none.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds no mapping")
    return found


def _yaml(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}
