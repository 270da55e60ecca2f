"""Folders that vanish while they are in use, as network drives do: their files are waited for, not skipped.

A folder has vanished when it, or one above it, is missing, empty (where a drive was mounted) or cannot be listed, and
files were read from it before. A file that alone is missing or broken is another matter.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from boxless.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 300.0
"""Seconds that a folder is waited for."""

PAUSES = (0.0, 0.2, 1.0, 3.0)
"""Seconds before another try of a file that the storage did not give; of one that is said to be missing the first."""

_known: set[str] = set()
"""Folders that something was read from, and those above them; a forked data worker begins with its run's."""


def retry(read: Callable[Concatenate[str | Path, P], T]) -> Callable[Concatenate[str | Path, P], T]:
    """Wrap a function that reads a file (its first argument) to try again if the storage fails, not the file.

    Raises:
        UserError: if the file's folder has vanished and does not return in `PATIENCE` seconds.
    """

    @wraps(read)
    def retried(path: str | Path, /, *arguments: P.args, **named: P.kwargs) -> T:
        pauses = list(PAUSES)
        while True:
            try:
                result = read(path, *arguments, **named)
            except Exception as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                failed = isinstance(cause, OSError) and cause.errno is not None
                if wait_for_folder(path):
                    continue
                if not failed or not pauses:
                    raise
                time.sleep(pauses.pop(0))
                if isinstance(cause, FileNotFoundError | IsADirectoryError | PermissionError):
                    pauses.clear()
            else:
                remember_folder(path)
                return result

    return retried


stat = retry(os.stat)
"""`os.stat` of a file, tried again."""


def wait_for_folder(path: str | Path) -> bool:
    """Wait for the folder of a file if it has vanished, and return whether it had.

    Raises:
        UserError: if it does not return in `PATIENCE` seconds.
    """
    gone = _vanished(path)
    if gone is None:
        return False
    _say(f"{gone}: has vanished; waiting up to {PATIENCE:.0f} s for it (a network drive?)")
    end = time.monotonic() + PATIENCE
    while _vanished(path) is not None:
        if time.monotonic() > end:
            raise UserError(f"{gone}: vanished, and did not return in {PATIENCE:.0f} s; mount it again")
        time.sleep(min(1.0, PATIENCE / 10))
    _say(f"{gone}: is back")
    return True


def _vanished(path: str | Path) -> str | None:
    """The highest folder above a file that has vanished, of those that were read from."""
    gone, folder = None, os.path.dirname(path)
    while _bare(folder):
        gone, below = folder, folder
        folder = os.path.dirname(folder)
        if folder in ("", below):
            break
    return gone if gone in _known else None


def _bare(folder: str) -> bool:
    try:
        with os.scandir(folder or ".") as entries:
            return next(entries, None) is None
    except OSError:
        return True


def remember_folder(path: str | Path) -> None:
    """Record that a file was read, for example by another process: if its folder vanishes, it is waited for."""
    folder = os.path.dirname(path)
    if folder in _known or not os.path.isdir(folder or "."):  # an image in a shard has no folder
        return
    while folder not in _known:
        _known.add(folder)
        folder = os.path.dirname(folder)


def _say(text: str) -> None:
    print(f"boxless: {text}", file=sys.stderr, flush=True)
