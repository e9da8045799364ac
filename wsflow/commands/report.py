"""``wsflow report``: one page about runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from wsflow.commands.run import shown


def report(
    runs: Sequence[str],
    out: str | None = None,
    title: str | None = None,
    licence: str | None = None,
    n: int = 100,
) -> None:
    """Write a page about runs, with their tables, figures and model cards, that opens without a network.

    Args:
        runs: Run folders, or folders of runs.
        out: Folder for ``index.html`` and ``figures/``; ``report`` in the run, or here for several, by default.
        title: Of the page.
        licence: Of the flows and their networks, for the model cards.
        n: Generated and held-out networks that figures look at, the first ones.

    Raises:
        ValueError: where a folder holds no checkpoint, or no run was evaluated.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    from wsflow.report import report as write  # matplotlib takes its time to import

    folder = Path(out) if out is not None else Path(runs[0] if len(runs) == 1 else ".", "report")
    place = write(runs, folder, title, licence, n, lambda text: print(f"report: {text}", file=sys.stderr, flush=True))
    print(f"page in {shown(place)}, figures in {shown(place.parent / 'figures')}")
