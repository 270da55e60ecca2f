"""Files that appear whole or not at all and outlast a power cut, and locks that die with their process.

A file is written under another name, brought to the disk, renamed, and then its folder is brought to the disk, since a
name is only an entry there: LWN, "Ensuring data reaches disk" (2011).
"""

import contextlib
import errno
import hashlib
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, overload

from boxless.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Place = str | Path
"""A file, a folder, an address or another word for one, as users name it."""
Places = Place | Sequence[Place]
"""One place, or several."""

PARTIAL = ".partial"
"""Suffix of an incomplete file; a later try overwrites one that a kill has left."""

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_NO_PLACE = (*_REFUSED, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_OF_RUST = re.compile(r"\(os error (\d+)\)")

_held: set[IO[str]] = set()


@overload
def as_text(places: None) -> None: ...


@overload
def as_text(places: Place) -> str: ...  # type: ignore[overload-overlap]


@overload
def as_text(places: Sequence[Place]) -> list[str]: ...


def as_text(places: Places | None) -> str | list[str] | None:
    """Places as text: messages show them and runs note them down."""
    if places is None or isinstance(places, str | Path):
        return None if places is None else str(places)
    return list(map(str, places))


@contextlib.contextmanager
def written(path: Path, alone: bool = True) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` once the block ends well; else `path` stays as it was.

    `alone`: false where other processes, on this machine or others, may write the same file at the same time.

    Raises:
        UserError: if the disk is full, say, or the path cannot be written to.
    """
    partial = path.with_name(f"{path.name}{'' if alone else f'.{socket.gethostname()}-{os.getpid()}'}{PARTIAL}")
    try:
        with explain_path_errors(path), explain_write_errors(path):
            yield partial
            (content_to_disk if partial.is_dir() else to_disk)(partial)
            os.replace(partial, path)
            to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; raises as `make_folder` and `written` do."""
    make_folder(path.parent)
    with written(path) as partial:
        partial.write_text(text)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, that outlasts a power cut.

    Raises:
        UserError: if there cannot be one: below a file, say.
    """
    with explain_path_errors(path):
        new = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for each in new:
            to_disk(each.parent)


def to_disk(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":  # which writes names down by itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # file systems that know no such thing
            raise
    finally:
        os.close(descriptor)


def content_to_disk(folder: Path) -> None:
    """Return once all that a folder holds is on the disk."""
    for path in (*folder.rglob("*"), folder):
        to_disk(path)


@contextlib.contextmanager
def explain_write_errors(place: Path) -> Iterator[None]:
    """Turn what a disk refuses in the block (full, read-only, broken) into one line that names the place.

    Raises:
        UserError: with that line.
    """
    rest = "what was saved stays: fix that and repeat the command to continue"
    # TensorBoard's threads are refused what the run is
    with silent_threads(lambda error: _refusal(error) is not None), _explained(place, "written to", _REFUSED, rest):
        yield


@contextlib.contextmanager
def explain_path_errors(place: Path | None = None) -> Iterator[None]:
    """Turn a path that the system refuses in the block (no permission, below a file, too long) into one line.

    Unlike `explain_write_errors` it says nothing of what was saved, because there may be nothing yet. Without `place`
    it names the path that the error does.

    Raises:
        UserError: with that line.
    """
    with _explained(place, "used", _NO_PLACE, "fix that, or name another place"):
        yield


@contextlib.contextmanager
def _explained(place: Path | None, verb: str, numbers: Sequence[int], rest: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where, reason = place or getattr(error, "filename", None), _refusal(error, numbers)
        if not where or reason is None:  # without a path it is of something else: a semaphore, say
            raise
        raise UserError(f"{where}: cannot be {verb} ({reason}); {rest}") from error


@contextlib.contextmanager
def silent_threads(known: Callable[[BaseException], bool]) -> Iterator[None]:
    """Let other threads end without a traceback if the main thread reports the same error."""
    before = threading.excepthook
    if main := threading.current_thread() is threading.main_thread():
        threading.excepthook = lambda of: None if of.exc_value and known(of.exc_value) else before(of)
    try:
        yield
    finally:
        if main:
            threading.excepthook = before


def _refusal(error: BaseException | None, numbers: Sequence[int] = _REFUSED) -> str | None:
    """The system's error, which PyTorch and safetensors hide in errors of their own."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if match := _OF_RUST.search(str(error)):
            number = int(match[1])
        if number is not None and number in numbers:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def lock(path: Path, what: str) -> IO[str]:
    """Hold a lock until it is closed or this process dies, by kill -9 too; nothing is left to be cleaned up.

    Args:
        path: path of the lock's file.
        what: is locked, for people.

    Raises:
        UserError: if another process holds it, saying which; where the path cannot be written to.
    """
    while True:
        with explain_path_errors(path):
            file = path.open("a+")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{what}: {holder} is working on it; wait for that one, end it, or name another place"
            ) from error
        except OSError as error:
            print(f"{path}: no locks here ({error.strerror}): start no second run on it", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # the one before has just removed it
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    for closed in [each for each in _held if each.closed]:
        _held.discard(closed)
    _held.add(file)
    return file


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock in the block, and remove its file; see `lock`."""
    with lock(path, what):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _let_go() -> None:
    """Close locks in forked data workers, which may outlive a killed run by seconds."""
    for file in _held:
        with contextlib.suppress(OSError):
            os.close(file.fileno())  # the file object shares its buffer with nobody
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
