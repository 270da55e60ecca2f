"""Tensors out of files, without running any code that a file holds."""

import argparse
import collections
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from boxless.errors import UserError
from boxless.interop.names import Tensors

CONTAINERS = ("state_dict", "model", "model_state_dict", "model_ema", "teacher", "student")
"""Keys that the weights lie under in a checkpoint; the first one that is there is taken."""
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors, .pth, .pt, .bin or .ckpt file; no code in the file is ever run.

    Raises:
        UserError: where the file is missing, is none of these, or holds anything but plain tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file ({error})") from error
    try:
        content = _load(path)
    except Exception as error:
        raise _refusal(path, error) from error
    return _tensors(content, path)


def converted(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a checkpoint that holds other things too, and the names of what was left out.

    Objects of other programs' classes become empty ones: their code is not even imported. Of a plain pickle, as
    Detectron2 has them, NumPy's arrays are read and nothing else.

    Raises:
        UserError: where the file has no tensors, or something is called in it that is no such object.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    foreign: list[str] = []
    while True:
        stubs: list[Any] = [(_Nothing, name) for name in foreign]
        try:
            with torch.serialization.safe_globals(stubs):
                return _tensors(_load(path), path), tuple(foreign)
        except UserError:
            raise
        except Exception as error:
            name = _foreign(error)
            if name is None or name in foreign:
                return _arrays(path, name), ()
            foreign.append(name)


def _load(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: Exception) -> UserError:
    name = _foreign(error)
    if name is not None or _is_pickle(path):
        found = f"objects of {name}" if name else "a pickle, perhaps of Detectron2"
        return UserError(
            f"{path}: holds {found} beside or instead of plain tensors, and boxless runs no code from files; keep the "
            f"tensors alone with boxless convert --file {path} --out {path.with_suffix('.safetensors')}"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{path}: not a file of plain tensors, and code from files is not run; save its state_dict() or convert "
        f"it to .safetensors ({reason})"
    )


def _foreign(error: Exception) -> str | None:
    """The class that torch's loader met and does not know."""
    match = _FOREIGN.search(str(error))
    return match[1] if match else None


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] <= pickle.HIGHEST_PROTOCOL


def _tensors(content: object, path: Path) -> Tensors:
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(
            f"{path}: holds no named tensors; expected the state_dict of a backbone or a detector, or a run"
        )
    return tensors


class _Nothing(argparse.Namespace):
    """Stands in for an object of a class that is not to be imported."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass

    def append(self, _: object) -> None:
        """As a list has it."""

    def __setitem__(self, _: object, __: object) -> None:
        pass


class _Arrays(pickle.Unpickler):
    """Python's documented way to restrict a pickle: nothing but arrays is found by name."""

    _known = frozenset(
        (module, name)
        for numpy in ("numpy.core", "numpy._core")
        for module, name in (
            (f"{numpy}.multiarray", "_reconstruct"),
            (f"{numpy}.multiarray", "scalar"),
            (f"{numpy}.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
        )
    )

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names.

        Raises:
            pickle.UnpicklingError: for anything else.
        """
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        if module == "collections":
            return collections.OrderedDict
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _arrays(path: Path, name: str | None) -> Tensors:
    """Tensors of a plain pickle of arrays; `name` is what torch refuses in it."""
    if not _is_pickle(path):
        found = (
            f"asks for {name}, which is no data, so nothing was read: do not trust it" if name else "is no checkpoint"
        )
        raise UserError(f"{path}: {found}; expected a file of torch.save or a pickle of NumPy's arrays")
    try:
        content = _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:
        raise UserError(f"{path}: holds {error or type(error).__name__}, which is no array; nothing was run") from error
    if isinstance(content, Mapping):
        content = content.get("model", content.get("blobs", content))
    arrays = content if isinstance(content, Mapping) else {}
    arrays = {str(key): np.asarray(value) for key, value in arrays.items() if isinstance(value, np.ndarray)}
    numbers = {key: value for key, value in arrays.items() if value.dtype.kind in "fiub"}
    return _tensors({key: torch.from_numpy(value.copy()) for key, value in numbers.items()}, path)
