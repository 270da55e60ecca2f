"""Finished blocks of images of a stopped run, as small tables in `<out>.parts/`."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boxless.errors import UserError
from boxless.files import locked, make_folder
from boxless.proposals.table import ProposalTable


class Parts:
    """The folder `<out>.parts`. Each part names its images and carries its settings."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(out.name + ".parts")

    def file_of(self, keys: Sequence[str]) -> Path:
        """Return where the part of these images is to be written."""
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        return self.folder / f"{digest[:24]}.parquet"

    def load(self, settings: dict[str, Any], say: Callable[[str], None]) -> list[ProposalTable]:
        """Return the parts, all made with these settings; delete broken ones, saying so.

        Raises:
            UserError: if some were made with other settings, naming those.
        """
        found = []
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                part = ProposalTable.open(file)
            except UserError:
                say(f"discarded {file}: it is broken")
                file.unlink(missing_ok=True)
                continue
            if part.settings != settings:
                raise UserError(
                    f"{self.folder}: holds an unfinished run with other settings "
                    f"({differences(part.settings, settings)}); give these back to continue it, give another --out, or "
                    "delete that folder"
                )
            found.append(part)
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the table and its parts.

        Raises:
            UserError: if one is working on them.
        """
        make_folder(self.folder.parent)
        out = self.folder.with_suffix("")
        with locked(out.with_name(f".{out.name}.lock"), str(out)):
            yield

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Differences between two settings, in words."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys[:5])
