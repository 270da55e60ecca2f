"""Checkpoints of a run: written whole or not at all, checked when read, the one before kept."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

KEEP = 2
"""How many checkpoints stay on disk."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a state (tensors, numbers, strings, lists, dicts) as `step-<n>.pt` with its checksum beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    digest = _digest(partial)
    partial.replace(path)
    path.with_suffix(".sha256").write_text(digest)
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest state whose checksum holds, or None; damaged ones are removed."""
    for path in reversed(checkpoints(folder)):
        proof = path.with_suffix(".sha256")
        if proof.exists() and proof.read_text() == _digest(path):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        path.unlink()
        proof.unlink(missing_ok=True)
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
