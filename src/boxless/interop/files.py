"""Tensors out of files, without running any code that a file holds."""

import argparse
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from boxless.errors import UserError
from boxless.interop.names import Tensors
from boxless.untrusted import is_there

CONTAINERS = (
    *("ema", "module", "state_dict", "model", "model_state_dict", "model_ema", "teacher", "student"),
    *("net", "network", "weights", "params", "classy_state_dict", "base_model", "trunk", "backbone", "encoder"),
)
"""Keys that the weights lie under in a checkpoint, perhaps one in another; the first one that is there is taken."""
_NESTED = 8
"""Most containers in one another."""
FOREIGN_LIMIT = 100
"""Kinds of objects beside the tensors of a checkpoint; each costs another reading."""
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors, .pth, .pt, .bin or .ckpt file; no code in the file is ever run.

    Raises:
        UserError: if the file is missing, is none of these, or holds anything but plain tensors.
    """
    if not is_there(path):
        raise UserError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return _tensors({key: file.get_tensor(key) for key in file.keys()}, path)  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError, LookupError) as error:
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
        UserError: if the file has no tensors, or something is called in it that is no such object.
    """
    if not is_there(path):
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
            if name is None or name in foreign or len(foreign) == FOREIGN_LIMIT:
                return _arrays(path, name), ()
            foreign.append(name)


def _load(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are compressed, which torch.save never does: they may be of any size")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old protocols, of sparse tensors: what is taken from the file is plain
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
    for _ in range(_NESTED):
        inner = _contained(content)
        if inner is None:
            break
        content = inner
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in named if isinstance(key, str) and _is_plain(value)}
    if not tensors:
        raise UserError(
            f"{path}: holds no named tensors{_keys_in(content)}; expected the state_dict of a backbone or a detector, "
            "or a run"
        )
    size = path.stat().st_size
    for key, value in tensors.items():
        if value.numel() * value.element_size() > size:  # one number, shown a billion times
            raise UserError(
                f"{path}: {key} is said to be {tuple(value.shape)}, more than a file of {size:,} bytes holds"
            )
    return tensors


def _keys_in(content: object) -> str:
    keys = [str(key) for key in content] if isinstance(content, Mapping) else []
    return f" but {', '.join(keys[:5]):.100}" if keys else ""


def _contained(content: object) -> Mapping[Any, Any] | None:
    """The mapping in a container of a checkpoint; None if there is none."""
    if not isinstance(content, Mapping):
        return None
    found = (content.get(container) for container in CONTAINERS)
    return next((each for each in found if isinstance(each, Mapping) and each), None)


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Return whether it is a dense tensor in memory: not sparse, quantised, nested or without content."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    return value.device.type == "cpu" and not value.is_quantized


class _Nothing(argparse.Namespace):
    """A placeholder for an object of a class that is not imported."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass

    def append(self, _: object) -> None:
        """As a list has it."""

    def __setitem__(self, _: object, __: object) -> None:
        pass


class _Array:
    """Contents of a pickled NumPy array: shape, dtype and bytes, read without NumPy's code."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if isinstance(content, str):  # protocols before 3 have bytes as text
            content = content.encode("latin1")
        numbers = np.frombuffer(content, kind.dtype)
        self.array = numbers.reshape(shape, order="F" if fortran else "C")


class _Kind:
    """A kind of plain numbers, such as f4 or i8."""

    def __init__(self, name: str, *_: object) -> None:
        if not re.fullmatch("[fiub][1248]|bool", name):
            raise pickle.UnpicklingError(f"numbers of kind {name!r:.20}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "=")


def _from_buffer(content: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", bytes(content)))
    return array


_NUMPY = {
    "multiarray._reconstruct": lambda *_: _Array(),
    "multiarray.scalar": lambda *_: None,  # single numbers are no weights
    "numeric._frombuffer": _from_buffer,
}


class _Arrays(pickle._Unpickler):
    """Reads pickles of arrays; nothing that a pickle names is imported or called.

    Python's documented way to restrict a pickle, and the reader that is written in Python: that in C clears as much
    memory as a pickle of ten bytes asks for.
    """

    _known: ClassVar[dict[str, Any]] = {
        **{f"{numpy}.{name}": made for numpy in ("numpy.core", "numpy._core") for name, made in _NUMPY.items()},
        "numpy.ndarray": None,
        "numpy.dtype": _Kind,
        "collections.OrderedDict": dict,
        "_codecs.encode": lambda text, _: text,  # of protocols before 3: bytes as text of Latin 1
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up an object that the pickle names.

        Raises:
            pickle.UnpicklingError: for anything but arrays.
        """
        if f"{module}.{name}" not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return self._known[f"{module}.{name}"]


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
    named = content.items() if isinstance(content, Mapping) else ()
    arrays = {str(key): value.array for key, value in named if isinstance(value, _Array) and value.array is not None}
    # torch has no other order of bytes
    return _tensors({k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for k, v in arrays.items()}, path)
