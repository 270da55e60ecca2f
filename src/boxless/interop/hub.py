"""Runs on the Hugging Face Hub: `hf://user/name`, by its own client. Nothing is sent or fetched unless a user asks."""

import re
from pathlib import Path
from typing import Any

from boxless.errors import UserError

SCHEME = "hf://"
RUN_FILES = ("weights.safetensors", "recipe.yaml", "labels.json")
"""Files of a published run; other repositories may lack the last two."""


def is_address(where: str | Path | None) -> bool:
    """Return whether it is a place on the hub."""
    return str(where).startswith(SCHEME)


def fetch(where: str) -> Path:
    """A local copy, in the hub's cache, of a published run (its folder) or of one file of any repository.

    Args:
        where: hf://user/name, or hf://user/name/path/of/file; @revision may follow the name.

    Raises:
        UserError: if there is no such thing, or no way to it.
    """
    user, name, revision, file = _parsed(where)
    hub = _library("--weights")
    try:
        if file:
            return Path(hub.hf_hub_download(f"{user}/{name}", file, revision=revision))
        folder = Path(hub.snapshot_download(f"{user}/{name}", revision=revision, allow_patterns=list(RUN_FILES)))
    except Exception as error:  # the client's own, and whatever its connections raise
        raise UserError(f"{where}: could not be fetched ({_first_line(error)})") from error
    if not (folder / "weights.safetensors").is_file():
        raise UserError(f"{where}: is no run of boxless (no weights.safetensors); name the file, {where}/FILE")
    return folder


def upload(folder: Path, where: str) -> str:
    """Put a folder into a repository, which is made, and kept private, if there is none; returns its page.

    Raises:
        UserError: if the hub refuses.
    """
    user, name, revision, file = _parsed(where)
    if revision or file:
        raise UserError(f"to: {where}; expected hf://user/name")
    hub = _library("publish")
    try:
        page = hub.create_repo(f"{user}/{name}", private=True, exist_ok=True)
        hub.upload_folder(repo_id=f"{user}/{name}", folder_path=folder, commit_message="Publish a run of boxless")
    except Exception as error:
        raise UserError(
            f"to: {where}: refused ({_first_line(error)}); log in with `hf auth login`, or publish to a folder"
        ) from error
    return str(page)


def _parsed(where: str) -> tuple[str, str, str | None, str]:
    match = re.fullmatch(rf"{SCHEME}([\w.-]+)/([\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", where)
    if match is None:
        raise UserError(f"{where}: expected hf://user/name or hf://user/name/file")
    return match[1], match[2], match[3], match[4] or ""


def _library(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{what}: {SCHEME} needs huggingface_hub; install it with pip install 'boxless[hub]'") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
