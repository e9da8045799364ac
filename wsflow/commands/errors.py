"""Errors as a user reads them."""

from __future__ import annotations

import errno
import re

NOISE = re.compile(
    "Given value|Subtypes:|Errors:|Does not validate|Expected a (path|<class 'NoneType'>|<class 'list'>)"
)
"""Lines of jsonargparse's errors that tell of attempts nobody meant."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or of a user's share of it, that is full."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without jsonargparse's listing of what it tried."""
    if isinstance(error, OSError) and error.errno in FULL:
        place = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{place}: free some and begin again; what was finished is kept"
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not NOISE.match(line)) or type(error).__name__
    text = re.sub(r"Type \S*Callable\[.*\] expects a function or a callable class: ", "", text)
    return re.sub(r"Expected a dot import path string: (\S+)", r"no class \1 is known; give the full path of one", text)
