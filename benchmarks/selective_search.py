"""Selective search: ours against the PyPI package `selectivesearch` that SoCo used, on the same images.

    pip install selectivesearch
    python benchmarks/selective_search.py coco256/annotations/instances_val.json

Without labels, those of coco256 in $BOXLESS_DATA are taken. Prints, and writes to
benchmarks/results/selective_search.json: CPU seconds per image (decoding left out), the share of labelled objects that
some box covers with IoU >= 0.5, before and after SoCo's limits, and boxes per image. About 10 s per image in all.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from environment import RESULTS, facts, write

from boxless.data.annotations.read import read_labels
from boxless.data.images import decode
from boxless.proposals.generate import settings_of
from boxless.proposals.limits import keep_fitting
from boxless.proposals.recall import recall
from boxless.proposals.selective_search import PRESETS, SelectiveSearch, regions

Boxes = Callable[[np.ndarray], np.ndarray]


def ours(settings: SelectiveSearch) -> Boxes:
    return lambda image: regions(image, settings)


def theirs(settings: SelectiveSearch) -> Boxes:
    from selectivesearch import selective_search

    def search(image: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skimage: local binary patterns of float images
            found = selective_search(image, settings.scale, settings.sigma, settings.min_size)[1]
        x, y, w, h = np.array([region["rect"] for region in found], np.float32).T
        return np.stack([x, y, x + w, y + h], axis=1)  # duplicates stay, as in SoCo's code

    return search


def measure(images: list[tuple[np.ndarray, np.ndarray]], finders: dict[str, tuple[Boxes, SelectiveSearch]]) -> dict:
    seconds = {name: 0.0 for name in finders}
    found: dict[str, list[np.ndarray]] = {name: [] for name in finders}
    for number, (image, _) in enumerate(images):
        for name, (finder, _) in finders.items():  # in turns, so that a busy machine is unfair to none
            start = time.process_time()
            found[name].append(finder(image))
            seconds[name] += time.process_time() - start
        print(f"{number + 1} of {len(images)}", end="\r", flush=True)
    return {name: row(images, seconds[name], found[name], finders[name][1]) for name in finders}


def row(images: list, seconds: float, found: list[np.ndarray], settings: SelectiveSearch) -> dict:
    objects = [boxes for _, boxes in images]
    kept = [
        keep_fitting(boxes, image.shape[1], image.shape[0], settings.limits)[0]
        for boxes, (image, _) in zip(found, images, strict=True)
    ]
    before = recall(zip(found, objects, strict=True))
    after = recall(zip(kept, objects, strict=True))
    return {
        "seconds_per_image": round(seconds / len(images), 4),
        "recall": round(before.shares["all"], 3),
        "recall_after_limits": round(after.shares["all"], 3),
        "recall_after_limits_large": round(after.shares["large"], 3),
        "boxes_per_image": round(before.boxes_per_image, 1),
        "boxes_per_image_after_limits": round(after.boxes_per_image, 1),
        "settings": settings_of(settings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("BOXLESS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    labels = shared / "coco256" / "annotations" / "instances_val.json"
    parser.add_argument("labels", nargs="?", default=str(labels), help="labelled images, e.g. a COCO JSON file")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    chosen = read_labels(arguments.labels, "val").images[arguments.first : arguments.first + arguments.images]
    images = [(decode(image.path), image.boxes[~image.crowd]) for image in chosen]
    finders = {f"boxless {name}": (ours(settings), settings) for name, settings in PRESETS.items()}
    for name in ("paper", "official-code"):
        finders[f"selectivesearch {name}"] = (theirs(PRESETS[name]), PRESETS[name])
    results = measure(images, finders)

    print(f"{'':32}{'s/image':>8}{'recall':>8}{'limited':>9}{'boxes':>8}{'limited':>9}")
    for name, line in results.items():
        numbers = [line[key] for key in ("recall", "recall_after_limits")]
        boxes = [line[key] for key in ("boxes_per_image", "boxes_per_image_after_limits")]
        print(
            f"{name:32}{line['seconds_per_image']:8.3f}{numbers[0]:8.3f}{numbers[1]:9.3f}{boxes[0]:8.0f}{boxes[1]:9.0f}"
        )
    speed = {
        f"{a} over {b}": round(results[b]["seconds_per_image"] / results[a]["seconds_per_image"], 1)
        for a in results
        for b in results
        if a.startswith("boxless") and b.startswith("selectivesearch")
    }
    for pair, ratio in speed.items():
        print(f"{pair}: {ratio} times faster")
    environment = {**facts("scikit-image", "numpy", "selectivesearch"), "opencv": cv2.__version__}
    objects = sum(len(boxes) for _, boxes in images)
    measured = {"images": len(images), "objects": objects, "first": arguments.first}
    content = {**measured, "results": results, "speed": speed, "environment": environment}
    write(arguments.results / "selective_search.json", content)


if __name__ == "__main__":
    main()
