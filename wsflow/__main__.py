"""``python -m wsflow``: the same as the ``wsflow`` command."""

from __future__ import annotations

from wsflow.cli import entry

if __name__ == "__main__":
    entry()
