"""Folders as runs leave them, written by hand: what a page is told from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.evaluation.average_precision import Detections
from boxless.tasks.gallery import write_gallery

ENVIRONMENT = {
    "machine": "x86_64, 2 cores",
    "torch": "2.11",
    "inputs": {"val": "val.json"},
    "command": ["/x/boxless", "go"],
}


def pretrained(folder: Path, losses: list[float], health: str = "healthy", **changes: Any) -> Path:
    """A finished pretraining; `recipe` among the changes adds keys."""
    recipe = {"recipe": "soco-small", "method": {"name": "soco"}, "epochs": 100, "seed": 0, **changes.pop("recipe", {})}
    summary = {
        "steps": 10 * len(losses),
        "seconds": 90.0,
        "health": health,
        "health_report": f"pretraining: {health} - different images still differ\n  spread 0.8 -> 0.9",
        **changes,
    }
    return _written(folder, recipe, summary, {"loss": losses})


def finetuned(folder: Path, per_class: dict[str, float | None], seed: int = 0, **changes: Any) -> Path:
    """A finished fine-tuning whose AP is the mean of its classes."""
    recipe = {"recipe": "faster-rcnn-fpn", "detector": {"kind": "faster_rcnn"}, "seed": seed, "label_seed": seed}
    known = [value for value in per_class.values() if value is not None]
    ap = sum(known) / len(known) if known else None
    summary = {
        "steps": 60,
        "seconds": 120.0,
        "weights": "weights: 194 of 194 tensors",
        "labelled_images": 40,
        "scores": {"bbox": {"AP": ap, "AP50": ap, "AP75": ap}},
        "per_class": {"bbox": per_class},
        "skipped": {},
        **changes.pop("summary", {}),
    }
    path = _written(folder, recipe | changes.pop("recipe", {}), summary, {"loss": [2.0, 1.0, 0.5], **changes})
    (path / "labels.json").write_text(json.dumps({"classes": list(per_class), "sha256": "abc"}))
    return path


def detected(folder: Path, images: list[Path], classes: tuple[str, ...], seed: int = 0) -> tuple[LabelledData, list]:
    """Labels and what was found of them at random, left in the folder as an evaluation leaves them."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for number, file in enumerate(images):
        with Image.open(file) as picture:
            width, height = picture.size
        corners = random.random((4, 2)) * [width * 0.6, height * 0.6]
        boxes = np.concatenate([corners, corners + np.array([width, height]) * 0.3], 1).astype(np.float32)
        labels = random.integers(0, len(classes), 4)
        crowd = np.array([False, False, False, number % 3 == 0])
        truths.append(LabelledImage(file, number, width, height, boxes, labels, crowd))
        moved = np.concatenate([boxes, boxes, boxes[:2]]) + random.normal(size=(10, 4)) * width * 0.03
        seen = np.where(random.random(10) < 0.7, np.concatenate([labels, labels, labels[:2]]), 0)
        found.append(Detections(moved.astype(np.float32), random.permutation(np.linspace(0.1, 0.95, 10)), seen))
    data = LabelledData("val.json", classes, tuple(range(1, len(classes) + 1)), tuple(truths))
    write_gallery(folder, data, found, {})
    return data, found


def pictured(folder: Path, count: int) -> list[Path]:
    """Small images with something in them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        ramp = np.linspace(number * 20, 250, 96 * 64).reshape(64, 96, 1).repeat(3, 2)
        Image.fromarray(ramp.astype(np.uint8)).save(file)
    return files


def _written(folder: Path, recipe: dict[str, Any], summary: dict[str, Any], curves: dict[str, list[float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # YAML too
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [f"{10 * n + 9},{name},{value}" for name, values in curves.items() for n, value in enumerate(values)]
    (folder / "metrics.csv").write_text("\n".join(["step,name,value", *rows]) + "\n")
    return folder
