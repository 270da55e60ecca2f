"""Can a kind of detector learn at all? Over-fits it to eight real images, from scratch, through `boxless finetune`.

    python benchmarks/overfit.py --kind retinanet --data coco256/annotations/instances_train.json

Prints AP50 on the very images that were learned from, the seconds that it took, and ends with 1 below 0.8, which a
sound detector should reach. The images are the first eight of the file that hold one to four objects, none of them
small or a crowd: small objects need more pixels and steps, which would say nothing more. Any key of the recipe may be
given behind the flags (`--optim.lr 0.001`).
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import boxless
from boxless.data.labels import read_labels

WANTED = 0.8
IMAGES, OBJECTS, SHARE = 8, 4, 0.2
"""How many images, the most objects in each, and the least share of the image's shorter side that theirs have."""

SETTINGS: dict[str, Any] = {
    "trunk.backbone": "resnet18",
    "trunk.fpn_channels": 64,
    "trunk.box_head_width": 128,
    "trunk.norm": "group",
    "detector.anchor_sizes": (16, 32, 64, 128, 256),
    "detector.rpn_proposals": 100,
    "detector.roi_samples": 64,
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.reference_batch": 4,
    "optim.warmup_iterations": 20,
    "optim.drops": (0.8,),
    "optim.clip_norm": 1.0,
    "iterations": 300,
    "batch_size": 4,
    "min_size": (112,),
    "max_size": 160,
    "evaluate_every": 10**9,
    "checkpoint_every": 10**9,
    "workers": 0,
}
"""Group norm: the images that are learned from and looked at are alike only without a batch's statistics."""

KINDS: dict[str, dict[str, Any]] = {}
"""What other kinds need to be as quick."""


def chosen(annotations: Path) -> dict[str, Any]:
    """A COCO dict of the images to learn, with absolute file names."""
    files = {image.image_id: str(image.path.resolve()) for image in read_labels(annotations).images}
    document = json.loads(annotations.read_text())
    objects = defaultdict(list)
    for entry in document["annotations"]:
        objects[entry["image_id"]].append(entry)

    def easy(image: dict[str, Any]) -> bool:
        own = objects[image["id"]]
        least = SHARE * min(image["width"], image["height"])
        sound = all(min(entry["bbox"][2:]) >= least and not entry["iscrowd"] for entry in own)
        return image["id"] in files and 1 <= len(own) <= OBJECTS and sound

    images = [image for image in document["images"] if easy(image)][:IMAGES]
    if len(images) < IMAGES:
        raise SystemExit(f"{annotations}: only {len(images)} images suit, {IMAGES} are needed")
    kept = [entry for image in images for entry in objects[image["id"]]]
    classes = {entry["category_id"] for entry in kept}
    return {
        "images": [{**image, "file_name": files[image["id"]]} for image in images],
        "annotations": kept,
        "categories": [category for category in document["categories"] if category["id"] in classes],
    }


def overfit(kind: str, annotations: Path, changes: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Fine-tune a kind; the summary's scores and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.json"
        labels.write_text(json.dumps(chosen(annotations)))
        settings = {**SETTINGS, "detector.kind": kind, **KINDS.get(kind, {}), **changes}
        began = time.monotonic()
        run = boxless.finetune(str(labels), str(labels), str(Path(folder) / "run"), **settings)
        return run.summary["scores"], time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", required=True, help="detector.kind")
    parser.add_argument("--data", required=True, type=Path, help="COCO instances of real images")
    arguments, rest = parser.parse_known_args()
    changes = {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2], strict=True)}
    scores, seconds = overfit(arguments.kind, arguments.data, changes)
    for name, values in scores.items():
        print(f"{arguments.kind} {name}: AP50 {values['AP50']:.3f} AP {values['AP']:.3f} after {seconds:.0f} s")
    return 0 if scores["bbox"]["AP50"] >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
