"""Files of packed data sets, local or behind a URL: remote ones are downloaded whole, checked, and cached.

Fetched files lie in ~/.cache/boxless/shards under their SHA-256, for all processes of a machine. The oldest ones go
when there are more than BOXLESS_CACHE_GB (100) of them or the disk is full; one that is missed is fetched again. fsspec
does the fetching, so that any URL goes for which there is a package: s3://, https://, hf://, gs:// ...
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from boxless.data.retry import retry
from boxless.errors import UserError
from boxless.files import sha256_of, to_disk

PAUSES = (1.0, 5.0)  # seconds before another try, where a connection fails

_Result = TypeVar("_Result")


class _Damaged(Exception):
    """A file that was downloaded but differs from the packed one."""


@dataclass(frozen=True)
class ShardFile:
    """A packed file: its `place`, a path or a URL; its size in bytes and its SHA-256 in hex."""

    place: str
    size: int
    sha256: str

    @property
    def remote(self) -> bool:
        """True if the file has to be fetched."""
        return is_remote(self.place)

    def check(self) -> None:
        """Raise `UserError` if a file that is here is missing or has another size; takes no time."""
        if self.remote:
            return
        try:
            found = os.stat(self.place).st_size
        except OSError as error:
            raise UserError(f"{self.place}: missing ({error.strerror}); copy it again, or pack again") from error
        if found != self.size:
            what = "cut short" if found < self.size else "not what was packed"
            raise UserError(f"{self.place}: {what}: {found:,} of {self.size:,} bytes; copy it again, or pack again")

    def intact(self) -> bool:
        """Return whether a local file has the size and checksum that it was packed with; reads all of it."""
        try:
            return os.stat(self.place).st_size == self.size and sha256_of(Path(self.place)) == self.sha256
        except OSError:
            return False

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on.

        Raises:
            UserError: the file is missing or cut short, or could not be fetched.
        """
        for _ in range(5):
            path = self.local()
            try:
                content = _bytes(path, offset, size)
            except FileNotFoundError:
                self.check()
                continue  # another process has made room since
            except OSError as error:
                raise UserError(f"{self.place}: cannot be read ({error.strerror})") from error
            if len(content) < size:
                self.check()
                raise UserError(f"{path}: cut short: it ends before byte {offset + size:,}; delete it")
            return content
        raise UserError(f"{cache_folder()}: too small for the shards in use; set BOXLESS_CACHE_GB higher")

    def local(self) -> Path:
        """Return the file on this machine, fetched if need be; processes that need the same file wait for the first."""
        if not self.remote:
            return Path(self.place)
        from filelock import FileLock

        kept = cache_folder() / f"{self.sha256[:32]}{Path(self.place).suffix}"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{kept}.lock"):
                if not kept.exists():
                    self._fetch(kept)
        return kept

    def _fetch(self, kept: Path) -> None:
        part = kept.with_name(f"{kept.name}.part")
        _make_room(kept.parent, self.size)

        def transfer() -> None:
            files, path = file_system(self.place)
            files.get_file(path, str(part))
            if part.stat().st_size < self.size:
                raise _Damaged(f"cut short: {part.stat().st_size:,} of {self.size:,} bytes; copy it again")
            if sha256_of(part) != self.sha256:
                raise _Damaged(f"altered since it was packed: its SHA-256 is not {self.sha256[:16]}...; copy it again")

        try:
            with_retries(self.place, transfer)
            to_disk(part)  # what has its name is taken for whole from then on
            os.replace(part, kept)
        finally:
            part.unlink(missing_ok=True)


@retry
def _bytes(path: str | Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def is_remote(where: str | Path) -> bool:
    """Return whether a place is a URL."""
    return "://" in str(where)


def read_whole(place: str) -> bytes:
    """Return the content of a small file, a path or a URL; raises `UserError` if it cannot be read."""
    if is_remote(place):

        def transfer() -> bytes:
            files, path = file_system(place)
            content: bytes = files.cat_file(path)
            return content

        return with_retries(place, transfer)
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from error


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL and the path there."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {error}: pip install 'boxless[remote]' has s3://, https:// and hf://") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}") from error
    return files, path


def with_retries(place: str, transfer: Callable[[], _Result]) -> _Result:
    """Try a transfer three times and return its result; failures become a `UserError` that names the place."""
    for pause in (*PAUSES, None):
        try:
            return transfer()
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{place}: missing: there is no such file") from error
        except Exception as error:  # each kind of store has errors of its own
            if pause is None:
                reason = " ".join(str(error).split())[:200]
                kind = "" if isinstance(error, _Damaged) else f"{type(error).__name__}: "
                raise UserError(f"{place}: {kind}{reason}") from error
            time.sleep(pause)
    raise AssertionError


def cache_folder() -> Path:
    """Return the folder of downloaded files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxless" / "shards"


def cache_limit() -> int:
    """Return the number of bytes of downloaded files that are kept."""
    text = os.environ.get("BOXLESS_CACHE_GB", "100")
    try:
        return int(float(text) * 1e9)
    except ValueError as error:
        raise UserError(f"BOXLESS_CACHE_GB={text}: expected a number") from error


def _make_room(folder: Path, size: int) -> None:
    """Delete the oldest files of a folder until there is room for `size` bytes; open files stay readable."""
    files = []
    for path in folder.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):  # others make room too
            stat = path.stat()
            files.append((stat.st_mtime_ns, stat.st_size, path))
    used = sum(each for _, each, _ in files)
    for _, each, path in sorted(files):
        if used + size <= cache_limit() and shutil.disk_usage(folder).free > size:
            return
        path.unlink(missing_ok=True)
        used -= each
