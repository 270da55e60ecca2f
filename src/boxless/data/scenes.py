"""Scenes of real handwritten digits on real photographs: a detection task that needs no download.

Digits: 1797 samples of scikit-learn's `load_digits`. Backgrounds and clutter: photographs inside the wheels of
scikit-image and scikit-learn. Everything is drawn from the seed, so the same settings give the same bytes.
"""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data
from faster_coco_eval import mask as coco_mask
from sklearn.datasets import load_digits, load_sample_images

from boxless.errors import UserError
from boxless.files import content_to_disk, make_folder

Array = npt.NDArray[Any]

CLASSES = tuple("0123456789")
FORMAT = 2  # raise when the drawing changes, so that folders drawn by older code are not taken for new ones
HELD_OUT = 360  # the last samples, a fifth, are kept for val
STENCIL = 60  # px, side of an enlarged 8 x 8 sample with a margin of one sample pixel
JPEG_QUALITY = 95
PHOTOGRAPHS = (  # of skimage.data, those that ship in its wheel and show no digits
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "immunohistochemistry",
    "hubble_deep_field",
    "brick",
    "grass",
    "gravel",
    "camera",
)


def make_scenes(out: Path, unlabelled: int, train: int, val: int, size: int = 96, seed: int = 0) -> None:
    """Write a data folder of `size` x `size` px scenes with 3 to 8 digits each, boxes and masks in COCO form.

    `out/images/{unlabelled,train,val}/000000.jpg ...` and `out/annotations/{train,val}.json`. Boxes and masks (RLE)
    hold the visible pixels. Scenes of `val` use handwritten samples that no other scene uses; the background
    photographs are shared, their crops are not. Scene i of a part is the same whatever the counts are. A folder that
    already holds these very scenes is left alone.

    Raises:
        UserError: `size` under 32 px, a negative count, or `out` holds something else.
    """
    if size < 32 or min(unlabelled, train, val) < 0:
        raise UserError(f"size={size}, counts {unlabelled}, {train}, {val}: expected size >= 32 px and counts >= 0")
    settings = dict(format=FORMAT, unlabelled=unlabelled, train=train, val=val, size=size, seed=seed)
    out = Path(out)
    if _holds(out, settings):
        return
    make_folder(out.parent)
    # Drawn beside `out` and moved at the end: a stopped run leaves no half-filled data folder.
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        building.chmod(0o755)
        for part, count in (("unlabelled", unlabelled), ("train", train), ("val", val)):
            _write_part(building, part, count, size, seed)
        (building / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        content_to_disk(building)
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _holds(out: Path, settings: dict[str, int]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = out / "settings.json"
    if found.is_file() and json.loads(found.read_text()) == settings:
        return True
    raise UserError(f"{out}: expected an empty folder or the same scenes, found others; delete it or name another")


def _write_part(out: Path, part: str, count: int, size: int, seed: int) -> None:
    folder = out / "images" / part
    folder.mkdir(parents=True)
    samples = len(_stencils()[0])
    pool = np.arange(samples - HELD_OUT, samples) if part == "val" else np.arange(samples - HELD_OUT)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, size, ("unlabelled", "train", "val").index(part), index])
        picture, labels, masks = draw_scene(rng, pool, size)
        name = f"{index:06d}.jpg"
        cv2.imwrite(str(folder / name), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for label, mask in zip(labels, masks, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **_annotation(label, mask)})
    if part == "unlabelled":
        return
    categories = [{"id": digit + 1, "name": name} for digit, name in enumerate(CLASSES)]
    (out / "annotations").mkdir(exist_ok=True)
    document = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / f"{part}.json").write_text(json.dumps(document))


def _annotation(label: int, mask: Array) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": label + 1,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
    }


def draw_scene(rng: np.random.Generator, samples: Array, size: int) -> tuple[Array, list[int], Array]:
    """One scene: (image (size, size, 3) uint8 RGB, labels [N] 0 to 9, masks (N, size, size) bool of visible pixels).

    `samples`: (M,) rows of the handwritten set to draw from.
    """
    stencils, targets = _stencils()
    canvas = _photo_crop(rng, (size, size))
    canvas = canvas.mean() + (canvas - canvas.mean()) * rng.uniform(0.4, 1.0) + rng.uniform(-30, 30)
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)  # OpenCV smooths lines on uint8 only
    _draw_clutter(rng, canvas)
    canvas = canvas.astype(np.float32)
    labels: list[int] = []
    masks: list[Array] = []
    for x, y, height in _places(rng, int(rng.integers(3, 7)), size):
        sample = int(rng.choice(samples))
        mask = _draw_digit(rng, canvas, stencils[sample], x, y, height)
        masks = [np.logical_and(earlier, ~mask) for earlier in masks]
        labels.append(int(targets[sample]))
        masks.append(mask)
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), size / 96 * rng.uniform(0.3, 0.7))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(0, 7)
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    kept = [index for index, mask in enumerate(masks) if mask.sum() >= 8]
    return picture, [labels[i] for i in kept], np.array([masks[i] for i in kept]).reshape(-1, size, size)


def _places(rng: np.random.Generator, count: int, size: int) -> list[tuple[float, float, float]]:
    """Up to `count` squares (centre x, centre y, side) in px that overlap each other by a third at most."""
    places: list[tuple[float, float, float]] = []
    for _ in range(count):
        side = size * float(np.exp(rng.uniform(np.log(0.25), np.log(0.55))))
        for _ in range(30):
            x, y = rng.uniform(0.45 * side, size - 0.45 * side, 2)
            if all(_overlap((x, y, side), place) < 1 / 3 for place in places):
                places.append((float(x), float(y), side))
                break
    return places


def _overlap(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    reach, smaller = (a[2] + b[2]) / 2, min(a[2], b[2])
    width = min(max(reach - abs(a[0] - b[0]), 0), smaller)
    height = min(max(reach - abs(a[1] - b[1]), 0), smaller)
    return width * height / smaller**2


def _draw_digit(rng: np.random.Generator, canvas: Array, stencil: Array, x: float, y: float, height: float) -> Array:
    """Paint one sample on the canvas in place; returns where it can be seen, (H, W) bool."""
    size = canvas.shape[0]
    middle = STENCIL / 2
    turn = np.array(cv2.getRotationMatrix2D((middle, middle), float(rng.normal(0, 9)), height / STENCIL), np.float64)
    turn[:, 0] *= rng.uniform(0.8, 1.15)
    turn[:, 2] += np.array([x, y]) - turn @ [middle, middle, 1]
    ink = cv2.warpAffine(stencil, turn, (size, size), flags=cv2.INTER_LINEAR)
    edge = max(1.5, height / 10) * rng.uniform(0.6, 1.3)  # alpha per unit of ink: a border of about 1 px
    weight = rng.uniform(0.46, 0.62)  # ink level of the border: thick to thin strokes
    body = np.clip((ink - weight) * edge + 0.5, 0, 1)
    outline = body
    colour = _contrasting(rng, canvas[body > 0.5].mean(0) if (body > 0.5).any() else canvas.mean((0, 1)))
    if rng.random() < 0.3:
        rim = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3) if height < 0.35 * size else (5, 5))
        outline = cv2.dilate(body, rim)
        _blend(canvas, outline, _contrasting(rng, colour))
    _blend(canvas, body, colour)
    return np.asarray(outline > 0.5)


def _blend(canvas: Array, alpha: Array, colour: Array) -> None:
    canvas += alpha[..., None] * (colour - canvas)


def _contrasting(rng: np.random.Generator, against: Array) -> Array:
    """A random colour (3,) of 0..255 that people can distinguish from `against`."""
    for _ in range(20):
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        # luminance weights of ITU-R BT.601: the eye reads a shape by brightness far more than by hue
        if abs(float((colour - against) @ np.array([0.299, 0.587, 0.114]))) > 75:
            return colour
    return np.full(3, 245 if against.mean() < 128 else 10, np.float32)


def _draw_clutter(rng: np.random.Generator, canvas: Array) -> None:
    """Pieces of other photographs, filled polygons and long strokes, in place and under the digits."""
    size = canvas.shape[0]
    for _ in range(rng.integers(0, 3)):
        width, height = (int(side) for side in rng.integers(size // 8, size // 2, 2))
        x, y = int(rng.integers(0, size - width)), int(rng.integers(0, size - height))
        canvas[y : y + height, x : x + width] = _photo_crop(rng, (height, width))
    for _ in range(rng.integers(0, 4)):
        corners = rng.uniform(0, size, 2) + rng.normal(0, size / 9, (int(rng.integers(3, 6)), 2))
        cv2.fillPoly(canvas, [corners.astype(np.int32)], rng.uniform(0, 255, 3).tolist(), cv2.LINE_AA)
    for _ in range(rng.integers(0, 4)):
        start, bend, end = rng.uniform(-0.2 * size, 1.2 * size, (3, 2))
        t = np.linspace(0, 1, 20)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        thickness = max(1, int(size / 96 * rng.integers(1, 5)))
        cv2.polylines(canvas, [curve.astype(np.int32)], False, rng.uniform(0, 255, 3).tolist(), thickness, cv2.LINE_AA)


def _photo_crop(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A random piece of a random photograph, (*shape, 3) float32 of 0..255, sometimes mirrored, its tint changed."""
    photographs = _photographs()
    photo = photographs[int(rng.integers(len(photographs)))]
    height, width = photo.shape[:2]
    scale = rng.uniform(0.2, 0.95) * min(height / shape[0], width / shape[1])
    h, w = max(int(shape[0] * scale), 8), max(int(shape[1] * scale), 8)
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    crop = cv2.resize(photo[y : y + h, x : x + w], shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.clip(crop * rng.uniform(0.8, 1.2, 3).astype(np.float32), 0, 255)


@functools.cache
def _stencils() -> tuple[Array, Array]:
    """Ink of every sample, (1797, STENCIL, STENCIL) float32 of 0..1, and its digit, (1797,)."""
    digits = load_digits()
    padded = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    return np.stack(
        [cv2.resize(ink, (STENCIL, STENCIL), interpolation=cv2.INTER_CUBIC) for ink in padded]
    ), digits.target


@functools.cache
def _photographs() -> list[Array]:
    """RGB uint8, (H, W, 3) each."""
    photos = [*load_sample_images().images, *(getattr(skimage.data, name)() for name in PHOTOGRAPHS)]
    left, _, _ = skimage.data.stereo_motorcycle()  # type: ignore[no-untyped-call]
    return [photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, 2) for photo in [*photos, left]]
