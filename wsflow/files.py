"""Files that are there in full or not at all, and that several processes may change.

A file is written beside its place, to the disk, and renamed: whoever reads the place finds what was there before or
what is there now, also after a crash or on a full disk.  What is read, changed and written again is held meanwhile, so
that of two processes that do it together none loses what the other one wrote.  A folder that only one process may fill
is claimed by it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

try:
    import fcntl
except ImportError:  # no POSIX: files are replaced as a whole there too, but not held
    fcntl = None  # type: ignore[assignment]


ABANDONED = 3600.0
"""Seconds after which what is temporary is taken for a killed writer's."""


@contextmanager
def replacing(place: Path) -> Iterator[IO[bytes]]:
    """A file beside its place, for writing; when it is whole and on the disk, it takes that place.

    Processes may write one file at the same time: each has a temporary file of its own, and the last one stays.

    Args:
        place: The file, whose folder is made; one that is there stays as it was if anything fails.

    Raises:
        OSError: where it cannot be written, with the name of the place.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):  # a full disk names no file
            error.filename = str(place)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    handle = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(place: Path, content: str | bytes) -> None:
    """Write a file by :func:`replacing`; text as UTF-8."""
    with replacing(place) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers from a folder: those that nobody has touched for an hour."""
    for temporary in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > ABANDONED:
                temporary.unlink()


@contextmanager
def held(place: Path) -> Iterator[None]:
    """Wait until no other process holds the file's folder, and hold it, to read a file and replace it.

    Nothing is left behind.  Where the file system knows no locks, nobody waits.

    Args:
        place: The file, whose folder is made; the file itself need not be there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder to oneself among those who claim it; a process that ends in any way lets it go.

    Nothing is left in it, and its files are not :func:`held` meanwhile: both lock the folder.  Where the file system
    knows no locks, everybody gets it.

    Args:
        folder: The folder, which is made.

    Raises:
        BlockingIOError: where somebody else has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass
        yield
    finally:
        os.close(handle)
