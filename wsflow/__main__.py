"""The ``wsflow`` command, which is also ``python -m wsflow``.

What a command needs takes seconds to import, and Ctrl-C is answered in these too.
"""

from __future__ import annotations

import sys


def command() -> None:
    """The console script."""
    try:
        from wsflow.cli import entry
    except KeyboardInterrupt:
        print("wsflow: interrupted", file=sys.stderr)
        sys.exit(130)
    entry()


if __name__ == "__main__":
    command()
