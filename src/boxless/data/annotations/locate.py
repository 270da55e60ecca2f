"""Find image files by the names that labels have for them, which may be another machine's."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from boxless.data.images import EXTENSIONS
from boxless.untrusted import inside, is_there

_TRIED = 20
"""Names that decide where the images are."""


class ImageFiles:
    """The files that names of images stand for.

    Names count from the first folder that has any of the first ones. Those of another machine (absolute, or with
    Windows' backslashes) do so without their first parts, the same number for all. If no folder has any, a name is
    enough that only one file below the last folder has.

    Args:
        names: names of all images.
        folders: likely folders, in order; names are looked for below the last one in the end.
    """

    def __init__(self, names: Sequence[str], folders: Sequence[Path]) -> None:
        self.folders = folders
        self.folder, self.dropped = self._start(names[:_TRIED])

    def _start(self, names: Sequence[str]) -> tuple[Path | None, int]:
        for folder in self.folders:
            if any(_literal(folder, name) for name in names):
                return folder, 0
        split = [_parts(name) for name in names if not _is_plain(name)]
        for dropped in range(max(map(len, split), default=0)):
            for folder in self.folders:
                if any(is_there(folder.joinpath(*parts[dropped:])) for parts in split if len(parts) > dropped):
                    return folder, dropped
        return None, 0

    def find(self, name: str) -> Path | None:
        """The file of a name; None if there is none, or several that it may stand for."""
        if self.folder is None:
            return self._below(name)
        if (file := _literal(self.folder, name)) is not None:
            return file
        parts = _parts(name)[self.dropped :]
        file = self.folder.joinpath(*parts)
        return file if parts and is_there(file) else None

    def expected(self, name: str) -> str:
        """The place where a file that is missing was looked for."""
        return str((self.folder or self.folders[0]).joinpath(*_parts(name)[self.dropped :]))

    def _below(self, name: str) -> Path | None:
        parts = _parts(name)
        alike = self._files.get(parts[-1], []) if parts else []
        for count in range(len(parts) if _is_plain(name) else 1, len(parts) + 1):
            tail = tuple(parts[-count:])
            alike = [file for file in alike if file.parts[-count:] == tail]
            if len(alike) == 1:
                return alike[0]
        return None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(self.folders[-1]):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if name.lower().endswith(EXTENSIONS):
                    found.setdefault(name, []).append(Path(folder, name))
        return found


def _literal(folder: Path, name: str) -> Path | None:
    """The file of exactly this name in the folder or, for an absolute one, anywhere."""
    file = folder / name if os.path.isabs(name) else inside(folder, name)
    return file if file is not None and is_there(file) else None


def _is_plain(name: str) -> bool:
    return not re.match(r"[A-Za-z]:|/", name) and "\\" not in name and ".." not in name.split("/")


def _parts(name: str) -> list[str]:
    """The folders and file of a name of any machine, without its drive and without steps outwards."""
    plain = re.sub(r"^[A-Za-z]:", "", name.replace("\\", "/"))
    return [part for part in plain.split("/") if part not in ("", ".", "..")]
