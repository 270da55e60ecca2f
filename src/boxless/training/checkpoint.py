"""Checkpoints of a run: written whole or not at all, checked when read; the previous one is kept.

A checkpoint's name holds its checksum, `step-<n>-<first 16 digits of its SHA-256>.pt`, so that there is no moment in
which one is there without its proof. Runs of version 0.1 before had the proof in a file beside it, and are read too.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from boxless.errors import UserError
from boxless.files import PARTIAL, explain_write_errors, make_folder, sha256_of, to_disk

KEEP = 2
"""Number of checkpoints that stay on disk."""

_NAME = re.compile(r"step-(\d+)(?:-([0-9a-f]{16}))?\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a step's state (tensors, numbers, strings, lists, dicts); the newest earlier one stays.

    Raises:
        UserError: if the disk is full, say; the checkpoints before stay as they are.
    """
    make_folder(folder)
    partial = folder / f"step{PARTIAL}"
    try:
        with explain_write_errors(folder):
            with partial.open("wb") as file:
                torch.save({"step": step, **state}, file)
            to_disk(partial)
            path = folder / f"step-{step:08d}-{sha256_of(partial)[:16]}.pt"
            partial.replace(path)
            to_disk(folder)
    finally:
        partial.unlink(missing_ok=True)
    for old in [each for each in checkpoints(folder) if each != path][: 1 - KEEP]:
        _remove(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step(path), path.stat().st_mtime_ns))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Load the newest state with a correct checksum, or None; damaged ones are removed with a message."""
    for path in reversed(checkpoints(folder)):
        try:
            whole = _holds(path)
        except OSError as error:
            _say(f"{path}: cannot be read ({error.strerror}); continuing from the one before")
            continue
        if whole:
            return _loaded(path)
        _remove(path)
        left = checkpoints(folder)
        after = f"the one before, of step {_step(left[-1])}" if left else "the start, because there is none before"
        _say(f"{path}: damaged (its checksum does not hold) and removed; continuing from {after}")
    return None


def _loaded(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path}: holds objects, which no checkpoint of boxless does; nothing was run: do not trust it, delete it"
        ) from error
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer's state from a checkpoint; its settings, which may have changed, stay its own."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


@contextmanager
def check_network(out: Path) -> Iterator[None]:
    """Raise UserError if a checkpoint in the folder `out` does not match the network.

    Raises:
        UserError: with that line.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{out}: its checkpoint is of another network or optimizer ({reason}); give the settings back that it was "
            "started with, or name another folder"
        ) from error


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _holds(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    if match[2]:
        return sha256_of(path).startswith(match[2])
    proof = path.with_suffix(".sha256")
    return proof.exists() and proof.read_text() == sha256_of(path)


def _remove(path: Path) -> None:
    path.unlink()
    path.with_suffix(".sha256").unlink(missing_ok=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
