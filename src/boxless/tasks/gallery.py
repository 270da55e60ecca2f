"""Gallery of a detector for the report: small images with labels and detections, in one JSON file."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.data.images import BadImage, decode_reduced
from boxless.evaluation.average_precision import Detections, verified
from boxless.evaluation.matching import MISSING, balanced_score, confusion, match
from boxless.runs.run import write_json

FILE = "gallery.json"
IMAGES = 60
"""Images shown, spread from the first of the data to the last, whatever was found in them."""
SIDE = 480
"""Longest side of a shown image, px: a page with sixty of them stays below 3 MB."""
FOUND = 40
"""Number of an image's most confident detections that are kept."""
LEAST_SCORE = 0.05


def write_gallery(folder: Path, labels: LabelledData, found: Sequence[Detections], skipped: Mapping[str, str]) -> None:
    """Write FILE into a folder: images with boxes (source px, xyxy), and of all data what became of what.

    Detections of classes that the labels do not speak of (LVIS) are left out, as AP leaves them out.
    """
    found = verified(labels, found)
    rows = [row for row, image in enumerate(labels.images) if str(image.path) not in skipped]
    data, found = labels.subset(rows), [found[row] for row in rows]
    score = min(0.5, balanced_score(data, found))
    matches = [match(image, each, score) for image, each in zip(data.images, found, strict=True)]
    counts = {"correct": 0, "extra": 0, "wrong class": 0, MISSING: sum(len(each.missing) for each in matches)}
    for outcome in (outcome for each in matches for outcome in each.outcomes):
        counts[outcome] = counts.get(outcome, 0) + 1
    chosen = np.unique(np.linspace(0, len(data) - 1, min(IMAGES, len(data))).round().astype(int)).tolist()
    content = {
        "data": labels.origin,
        "images": len(data),
        "score": round(score, 4),
        "counts": counts,
        "confusions": _confusions(data.classes, confusion(data, found, matches)),
        "classes": list(labels.classes),
        "shown": [shown for row in chosen if (shown := _shown(data.images[row], found[row])) is not None],
    }
    write_json(folder / FILE, content)


def _confusions(classes: Sequence[str], counts: Any) -> list[list[Any]]:
    """The most frequent pairs of a labelled class and another that was found in its place, with their number."""
    pairs = np.argwhere(counts[:-1, :-1] * (1 - np.eye(len(classes), dtype=int)) > 0)
    ranked = sorted(pairs.tolist(), key=lambda pair: -counts[pair[0], pair[1]])[:10]
    return [[classes[truth], classes[taken], int(counts[truth, taken])] for truth, taken in ranked]


def _shown(image: LabelledImage, found: Detections) -> dict[str, Any] | None:
    try:
        pixels, _ = decode_reduced(image.path, min(1.0, SIDE / max(image.width, image.height, 1)))
    except (BadImage, OSError):  # it went away since
        return None
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=72, optimize=True)
    rows = [row for row in np.argsort(-found.scores, kind="stable")[:FOUND] if found.scores[row] >= LEAST_SCORE]
    return {
        "file": image.path.name,
        "width": image.width,
        "height": image.height,
        "jpeg": base64.b64encode(file.getvalue()).decode("ascii"),
        "truth": [
            [*_rounded(box), int(label), int(crowd)]
            for box, label, crowd in zip(image.boxes, image.labels, image.crowd, strict=True)
        ],
        "found": [
            [*_rounded(found.boxes[row]), int(found.labels[row]), round(float(found.scores[row]), 3)] for row in rows
        ],
    }


def _rounded(box: Any) -> list[float]:
    return [round(float(side), 1) for side in box]
