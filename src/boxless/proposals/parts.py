"""What a stopped run leaves behind: finished blocks of images as small tables in `<out>.parts/`."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from boxless.errors import UserError
from boxless.proposals.table import ProposalTable


class Parts:
    """The folder `<out>.parts`. Each part names its images and carries its settings, so it fits any later run."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(out.name + ".parts")

    def file_of(self, keys: Sequence[str]) -> Path:
        """Return where the part of these images is to be written."""
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        return self.folder / f"{digest[:24]}.parquet"

    def load(self, settings_hash: str, say: Callable[[str], None]) -> list[ProposalTable]:
        """Return the parts that were made with these settings; delete broken and other ones, saying so."""
        found = []
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                part = ProposalTable.open(file)
            except UserError:
                reason = "it is broken"
            else:
                if part.settings_hash == settings_hash:
                    found.append(part)
                    continue
                reason = "it was made with other settings"
            say(f"discarded {file}: {reason}")
            file.unlink(missing_ok=True)
        return found

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
