"""The report of runs: read, measure, draw, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from html import escape
from pathlib import Path

from wsflow.report.markup import details, page
from wsflow.report.networks import Library
from wsflow.report.runs import read_runs
from wsflow.report.sections import Gallery, sections, study, write


def report(
    paths: Sequence[str | Path],
    folder: str | Path,
    title: str | None = None,
    licence: str | None = None,
    most: int = 100,
    progress: Callable[[str], object] = str,
) -> Path:
    """Write a page about runs.

    Args:
        paths: Run folders, or folders of runs.
        folder: Where ``index.html`` and ``figures/`` go.
        title: Of the page.
        licence: Of the flows and their networks, for the model cards.
        most: Networks of each kind that are looked at.
        progress: Called with what is done next.

    Returns:
        The page.

    Raises:
        ValueError: where a folder holds no checkpoint, or no run was evaluated.
    """
    runs = read_runs(paths)
    if not any(run.cases for run in runs):
        checkpoint = runs[0].checkpoint
        raise ValueError(
            f"no evaluation lies in {', '.join(str(run.folder) for run in runs)}: run "
            f"'wsflow evaluate --ckpt_path {checkpoint}' first"
        )
    library, studied = Library(), []
    for run in runs:
        progress(f"{run.name}: networks")
        studied.append(study(run, library, most))
    gallery = Gallery()
    progress("tables and figures")
    parts = sections(studied, gallery, licence)
    heading = title or (runs[0].name if len(runs) == 1 else f"{len(runs)} flows in weight space")
    folders = ", ".join(f"<code>{escape(_shown(run.folder))}</code>" for run in runs)
    lead = f"<p>{date.today().isoformat()}, of {folders}.</p>"
    if len(runs) > 1:
        lead = f"<p>{date.today().isoformat()}.</p>\n" + details(f"{len(runs)} run folders", f"<p>{folders}</p>")
    return write(Path(folder), page(heading, lead, parts), gallery)


def _shown(folder: Path) -> str:
    """A path below the working directory without it."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
