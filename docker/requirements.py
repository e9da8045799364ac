"""Print requirements that pyproject.toml lists, one a line, for a layer of the image that holds them alone.

``requirements.py run [EXTRA ...]`` prints what wsflow and the extras need, ``requirements.py build`` what building its
wheel needs.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], kind: str, extras: list[str]) -> list[str]:
    """Requirements of one kind.

    Args:
        project: The parsed pyproject.toml.
        kind: ``run`` or ``build``.
        extras: Names of optional dependencies, for ``run``.

    Raises:
        SystemExit: where the kind or an extra is not known.
    """
    if kind == "build" and not extras:
        return [*project["build-system"]["requires"]]
    if kind != "run":
        raise SystemExit("requirements.py: give 'run', with extras if you like, or 'build'")
    known = project["project"]["optional-dependencies"]
    unknown = sorted(set(extras) - set(known))
    if unknown:
        raise SystemExit(f"requirements.py: no extra {', '.join(unknown)}; extras are {', '.join(known)}")
    return [*project["project"]["dependencies"], *(line for extra in extras for line in known[extra])]


if __name__ == "__main__":
    found = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    kind, *names = sys.argv[1:] or [""]
    print("\n".join(requirements(found, kind, names)))
