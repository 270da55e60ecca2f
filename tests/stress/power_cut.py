"""A file system that forgets, at any moment, what was not brought to the disk: what a power cut may leave of a folder.

Within `recorded(folder)` each fsync, rename and removal in the folder is a moment. Of each moment there are three ends:
nothing but what was brought to the disk; all names but only such content as was, the rest empty or cut in half. What a
file system leaves lies between them (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Names = dict[str, int]


@dataclass
class Disk:
    """What is known of a folder: names now and on the disk, content by inode now and on the disk; `moments` so far."""

    folder: Path
    names_there: Names = field(default_factory=dict)
    content_there: dict[int, bytes] = field(default_factory=dict)
    moments: list[tuple[str, Names, Names, dict[int, bytes], dict[int, bytes]]] = field(default_factory=list)

    def names(self) -> Names:
        """Inodes by name, now."""
        return {path.name: path.stat().st_ino for path in self.folder.iterdir() if path.is_file()}

    def moment(self, what: str) -> None:
        """Remember how things are."""
        now = self.names()
        content = {number: (self.folder / name).read_bytes() for name, number in now.items()}
        self.moments.append((what, now, dict(self.names_there), content, dict(self.content_there)))

    def synced(self, path: Path) -> None:
        """Take note that a file's content, or the folder's names, are on the disk."""
        if path == self.folder:
            self.names_there = self.names()
        elif path.parent == self.folder:
            self.content_there[path.stat().st_ino] = path.read_bytes()

    def ends(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """What a cut at each moment may leave: (what was being done, content by name)."""
        for what, now, there, content, content_there in self.moments:
            yield f"{what}, names on the disk", {name: content_there.get(n, b"") for name, n in there.items()}
            yield f"{what}, all names, rest empty", {name: content_there.get(n, b"") for name, n in now.items()}
            halves = {n: content_there.get(n, whole[: len(whole) // 2]) for n, whole in content.items()}
            yield f"{what}, all names, rest cut", {name: halves[n] for name, n in now.items()}


@contextmanager
def recorded(folder: Path) -> Iterator[Disk]:
    """Look on while files of a folder are written by Python."""
    folder = folder.resolve()
    disk = Disk(folder)
    disk.names_there = disk.names()
    disk.content_there = {number: (folder / name).read_bytes() for name, number in disk.names_there.items()}
    before = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

    def fsync(descriptor: int) -> None:
        disk.moment("before fsync")
        before["fsync"](descriptor)
        disk.synced(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        disk.moment("after fsync")

    def other(name: str) -> None:
        def changed(*arguments: object, **named: object) -> None:
            before[name](*arguments, **named)
            disk.moment(f"after {name}")

        setattr(os, name, changed)

    os.fsync = fsync
    other("replace")
    other("unlink")
    try:
        yield disk
    finally:
        for name, function in before.items():
            setattr(os, name, function)


def leave(folder: Path, content: dict[str, bytes]) -> None:
    """Make a folder hold this and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)
