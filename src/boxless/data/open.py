"""Open a folder, a list, a labelled data set or shards as an `ImageIndex`.

The index of a folder is cached as an Arrow file that is memory-mapped, so a million paths cost neither a scan nor
memory; the cache holds as long as no folder (or list file) below has been modified.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from boxless.data.annotations.read import read_labels
from boxless.data.annotations.voc import is_voc_split
from boxless.data.images import EXTENSIONS
from boxless.data.index import ImageIndex
from boxless.data.label_maps import label_map_folders
from boxless.errors import UserError
from boxless.files import written

MANIFEST = "manifest.json"
"""Name of the file that lists shards."""
LIST_EXTENSIONS = (".txt", ".csv", ".lst")

_LABEL_PICTURES = {  # by the folder of images that they lie beside
    "JPEGImages": {"SegmentationClass", "SegmentationClassAug", "SegmentationObject"},
    "leftImg8bit": {"gtFine", "gtCoarse"},
}
_NO_IMAGES = {"@eaDir", "#recycle", "__MACOSX"}  # thumbnails and copies of Synology and macOS, beside hidden folders
_CACHE_VERSION = 3  # of what a scan finds
_COARSE_CLOCK = 2_000_000_000  # ns; some file systems stamp changes no finer than this


def index_images(where: str | Path | Sequence[str | Path], cache: Path | None = None) -> ImageIndex:
    """Find the images of a folder, a list file, a labelled data set (labels ignored), or of several of these.

    A folder is searched to any depth; hidden files, thumbnails, label pictures of a VOC or Cityscapes root and folders
    of label maps beside their images are skipped, and no folder is entered twice. A list (.txt, .csv, .lst) has one
    path per line, relative to its own folder, # starts a comment. All else is what `read_labels` accepts:
    `neu-det:train`, a COCO .json, a YOLO .yaml. Shards are given alone, by their manifest or folder, a path or a URL.
    `cache`: folder of the cached indexes (~/.cache/boxless/index).

    Raises:
        UserError: a path does not exist, holds no image, or lies inside another one.
    """
    places = [where] if isinstance(where, str | Path) else list(dict.fromkeys(where))
    if any(map(is_packed, places)):
        return _index_packed(places)
    if not places:
        raise UserError("no images given: expected a folder, a list file or a labelled data set")
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxless" / "index"
    return _index_one(places[0], cache) if len(places) == 1 else _index_several(places, cache)


def _index_packed(places: Sequence[str | Path]) -> ImageIndex:
    from boxless.data.shards.read import open_shards

    if len(places) > 1:
        packed = next(filter(is_packed, places))
        raise UserError(f"{packed}: shards are given alone; pack all the images into one set")
    return open_shards(places[0])


def _index_several(places: Sequence[str | Path], cache: Path) -> ImageIndex:
    _refuse_nested(places)
    parts = [_index_one(place, cache) for place in places]
    prefixes = _prefixes(places)
    text = pa.large_string()
    keys = [
        pc.binary_join_element_wise(pa.scalar(prefix, text), index.keys(), pa.scalar("", text))
        for prefix, index in zip(prefixes, parts, strict=True)
    ]
    roots = {prefix: index.roots[""] for prefix, index in zip(prefixes, parts, strict=True)}
    return ImageIndex(roots, _sorted_keys(pa.concat_arrays(keys)))


def is_packed(where: str | Path) -> bool:
    """Return whether a path is or will be one of shards: a manifest, its folder, or any URL."""
    return "://" in str(where) or Path(where).name == MANIFEST or (Path(where) / MANIFEST).is_file()


def is_labelled(where: str | Path) -> bool:
    """Return whether a path can only be labelled images: it is neither a folder nor a list."""
    return not Path(where).is_dir() and not _is_list(Path(where))


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LIST_EXTENSIONS and path.is_file() and not is_voc_split(path)


def _index_one(where: str | Path, cache: Path) -> ImageIndex:
    path = Path(where)
    is_list = _is_list(path)
    if is_labelled(where):
        if not path.exists() and ":" not in path.name:
            raise UserError(f"no such file or folder: {where}")
        return _index_labelled(where)
    path = path.resolve()
    root = str(path.parent if is_list else path)
    stored = cache / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:24]}.arrow"
    if (found := _load(stored, root)) is not None:
        return found
    started = time.time_ns()
    keys, stamps = _read_list(path) if is_list else _scan(root)
    index = ImageIndex({"": root}, _sorted_keys(_strings(keys, path)))
    if max(stamps.values()) < started - _COARSE_CLOCK:  # a later change could get the same stamp
        _store(stored, index, stamps)
    return index


def _index_labelled(where: str | Path) -> ImageIndex:
    paths = [os.path.abspath(image.path) for image in read_labels(where).images]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    keys = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    return ImageIndex({"": root}, _sorted_keys(_strings(keys, Path(where))))


def _scan(root: str) -> tuple[list[str], dict[str, int]]:
    """Return the keys of all images below `root` and the modification time (ns) of each folder seen."""
    keys: list[str] = []
    stamps: dict[str, int] = {}
    entered: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        full = os.path.join(root, folder)
        try:
            stat = os.stat(full)  # before listing, so that a change meanwhile makes the cache stale
            if (stat.st_dev, stat.st_ino) in entered:
                continue
            entered.add((stat.st_dev, stat.st_ino))
            stamps[full] = stat.st_mtime_ns
            folders: set[str] = set()
            with os.scandir(full) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders |= {entry.name} - _NO_IMAGES
                    elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                        keys.append(folder + entry.name)
        except OSError as error:
            raise UserError(f"cannot read folder {full}: {error.strerror}") from error
        for images in folders & _LABEL_PICTURES.keys():
            folders -= _LABEL_PICTURES[images]
        # sorted, for of two links to one folder the first counts
        pending += sorted((f"{folder}{name}/" for name in folders), reverse=True)
    for folder, count in (maps := label_map_folders(root, keys)).items():
        print(f"boxless: {os.path.join(root, folder)}: {count} label maps are left out", file=sys.stderr, flush=True)
    keys = [key for key in keys if key.rpartition("/")[0] not in maps]
    if not keys:
        raise UserError(f"no images in {root} or its subfolders: looked for {' '.join(EXTENSIONS)}")
    return keys, stamps


def _read_list(path: Path) -> tuple[list[str], dict[str, int]]:
    """Return the keys of a list file (absolute lines stay absolute) and the file's modification time (ns)."""
    stamps = {str(path): path.stat().st_mtime_ns}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file; expected one image path per line") from error
    keys = [os.path.normpath(line) for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"{path}: lists no images; expected one path per line")
    if not any(os.path.exists(path.parent / key) for key in keys[:20]):
        raise UserError(f"{path}: none of its first files exist, e.g. {path.parent / keys[0]}; paths count from there")
    return keys, stamps


def _strings(keys: list[str], where: Path) -> pa.LargeStringArray:
    try:
        return pa.array(keys, type=pa.large_string())
    except UnicodeEncodeError as error:
        name = str(error.object).encode(errors="backslashreplace").decode()
        raise UserError(f"{where}: rename {name}: its name is not UTF-8") from error


def _sorted_keys(keys: pa.LargeStringArray) -> pa.LargeStringArray:
    keys = pc.unique(keys)
    return keys.take(pc.sort_indices(keys))


def _refuse_nested(places: Sequence[str | Path]) -> None:
    folders = [Path(place).resolve() for place in places if Path(place).is_dir()]
    for a, b in combinations(folders, 2):
        if a == b or a in b.parents or b in a.parents:
            inner, outer = (b, a) if a in b.parents else (a, b)
            raise UserError(f"{inner} lies inside {outer}: its images would count twice; give only one of them")


def _prefixes(places: Sequence[str | Path]) -> list[str]:
    """Return one prefix per place, the fewest last path parts that distinguish all of them: `a/`, `b/`."""
    parts = [Path(os.path.abspath(place)).parts for place in places]
    for depth in range(1, max(map(len, parts)) + 1):
        prefixes = ["/".join(p[-depth:]) + "/" for p in parts]
        if len(set(prefixes)) == len(prefixes):
            return prefixes
    raise UserError(f"the same images are given twice: {places[0]}")


def _load(stored: Path, root: str) -> ImageIndex | None:
    """Return the cached index if nothing below `root` has changed, else None."""
    try:
        with pa.memory_map(str(stored)) as file:
            table = pa.ipc.open_file(file).read_all()
        facts: dict[str, Any] = json.loads(table.schema.metadata[b"boxless"])
        if facts["version"] != _CACHE_VERSION or facts["root"] != root:
            return None
        if any(os.stat(path).st_mtime_ns != stamp for path, stamp in facts["stamps"].items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):  # absent, stale or broken: scan again
        return None
    index = ImageIndex({"": root}, table["key"].chunk(0))  # combine_chunks would copy it into memory
    index.__dict__["fingerprint"] = facts["fingerprint"]
    return index


def _store(stored: Path, index: ImageIndex, stamps: dict[str, int]) -> None:
    facts = {
        "version": _CACHE_VERSION,
        "root": index.roots[""],
        "stamps": stamps,
        "fingerprint": index.fingerprint,
    }
    table = pa.table({"key": index.keys_array}).replace_schema_metadata({b"boxless": json.dumps(facts).encode()})
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        with written(stored, alone=False) as partial, pa.ipc.new_file(str(partial), table.schema) as writer:
            writer.write_table(table)
    except (OSError, UserError):  # a cache that cannot be written only costs time
        pass
