"""Proposals that somebody else made: the annotations of a COCO file, whatever drew them."""

import time
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from boxless.data.annotations.coco import load_dict
from boxless.data.annotations.types import COORDINATE_LIMIT, number_problem
from boxless.data.images import BadImage, image_size
from boxless.data.index import ImageIndex
from boxless.errors import UserError
from boxless.files import make_folder, sha256_of
from boxless.proposals.generate import Produced, existing
from boxless.proposals.limits import Array, whole_image
from boxless.proposals.table import ProposalTable, Row


def take_from_coco(index: ImageIndex, out: str | Path, coco_json: str | Path) -> Produced:
    """Write the boxes of `coco_json` to `out` for the index's images; see `from_coco`.

    Raises:
        UserError: as `from_coco`, or `out` holds something else.
    """
    started, out = time.monotonic(), Path(out)
    table = from_coco(index, coco_json)
    existing(out, index, table.settings)
    make_folder(out.parent)
    table.write(out)
    return Produced(out, table, len(table), time.monotonic() - started)


def from_coco(index: ImageIndex, coco_json: str | Path) -> ProposalTable:
    """Return the annotations of a COCO file, crowds left out, as the proposals of the images that they name.

    `file_name` must be the end of an image's key, or the key the end of it; of several that fit one key, the end of the
    image's whole path. An image that is listed more than once has the boxes of all its entries. Boxes are clipped to
    the image, those without area are dropped, no other limit applies. A listed image without boxes gets the whole
    image; an image that the file does not list gets no row, see `ProposalTable.aligned_to`.

    Raises:
        UserError: no COCO file, a broken entry, or not one image of the index in it.
    """
    path = Path(coco_json)
    document = load_dict(path, ("images", "annotations"))
    boxes: dict[Any, list[list[float]]] = defaultdict(list)
    try:
        for annotation in document["annotations"]:
            if not annotation.get("iscrowd"):
                if message := number_problem(annotation["bbox"], 4):
                    raise ValueError(message)
                x, y, w, h = annotation["bbox"]
                boxes[annotation["image_id"]].append([x, y, x + w, y + h])
        listed: dict[str, dict[Any, list[list[float]]]] = defaultdict(dict)
        sizes: dict[str, tuple[int, int] | None] = {}
        for image in document["images"]:
            name = str(image["file_name"])
            listed[name][image["id"]] = boxes[image["id"]]
            sizes[name] = sizes.get(name) or _size(image)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: broken entry ({type(error).__name__}: {error}); expected COCO form") from error
    rows = _matches(index, list(listed))
    if not rows:
        raise UserError(f"{path}: its {len(listed)} file names match none of the images, e.g. {index.key(0)}")
    table = []
    for name, row in sorted(rows.items(), key=lambda item: item[1]):
        own = [box for found in listed[name].values() for box in found]
        try:
            size = sizes[name] or image_size(index.path(row))
        except BadImage as error:
            table.append(Row(index.key(row), skipped=error.reason))
        else:
            table.append(Row(index.key(row), size, *_clipped(own, size)))
    return ProposalTable.of(table, {"method": "coco", "file": path.name, "sha256": sha256_of(path)})


def _matches(index: ImageIndex, names: list[str]) -> dict[str, int]:
    """Return the row of each file name that fits exactly one key, and this key no other name.

    Of names that fit one key (train/x.png and val/x.png both fit x.png) the one counts that the image's whole path ends
    in; if there is none, or several, the image counts as not listed.
    """
    by_last: dict[str, list[int]] = defaultdict(list)
    wanted = {PurePosixPath(name).name for name in names}
    for row, key in enumerate(index.keys().to_pylist()):
        if (last := key.rpartition("/")[2]) in wanted:
            by_last[last].append(row)
    fitting: dict[int, list[str]] = defaultdict(list)
    for name in names:
        rows = [row for row in by_last[PurePosixPath(name).name] if _is_end(name, index.key(row))]
        if len(rows) == 1:
            fitting[rows[0]].append(name)
    found = {}
    for row, fits in fitting.items():
        if len(fits) > 1:
            path = Path(index.path(row)).as_posix()
            fits = [name for name in fits if f"/{path}".endswith(f"/{name}")]
        if len(fits) == 1:
            found[fits[0]] = row
    return found


def _is_end(a: str, b: str) -> bool:
    return f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}")


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if type(width) is int and type(height) is int and 0 < width < COORDINATE_LIMIT and 0 < height < COORDINATE_LIMIT:
        return width, height
    return None


def _clipped(found: list[list[float]], size: tuple[int, int]) -> tuple[Array, int]:
    boxes = np.array(found, np.float32).reshape(-1, 4).clip(0, np.array([*size, *size], np.float32))
    kept = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    return (kept, 0) if len(kept) else (whole_image(*size), 3)
