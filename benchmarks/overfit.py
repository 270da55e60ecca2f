"""Does every kind of detector learn? The tables of docs/results.md, section "Every detector learns".

    python benchmarks/overfit.py learn --data coco256/annotations/instances_train.json
    python benchmarks/overfit.py finetune --data coco256/annotations/instances_train.json \\
        --val coco256/annotations/instances_val.json --weights runs/soco --out runs/finetuned
    python benchmarks/overfit.py table --out docs/results.md

`learn` over-fits each kind to eight real images, from scratch, through `boxless finetune`, and measures it on these
images: a sound detector reaches an AP50 of 0.8. They are the first eight of the file that hold one to four objects,
none of them small or a crowd: small objects need more pixels and steps, which would say nothing more.
`finetune` starts each kind from a pretrained run, takes a few steps on all labelled images, and evaluates what came out
on others with `boxless evaluate`; further calls start kinds from further runs. Both write down each figure as soon as
it is there; `--kinds a,b` chooses kinds, and any key of the recipe may follow (`--optim.lr 0.001`). `learn` ends with 1
where a kind has less than 0.8. FCN, which has no AP, is measured by its mIoU. `table` puts both tables into a page.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, facts, write
from overfit_table import WANTED, put, section

import boxless
from boxless.data.annotations.read import read_labels

MEASURES = "AP50", "mIoU"
IMAGES, OBJECTS, SHARE = 8, 4, 0.2
"""How many images, the most objects in each, and the least share of the image's shorter side that theirs have."""

SETTINGS: dict[str, Any] = {
    "detector.anchor_sizes": (16, 32, 64, 128, 256),
    "detector.rpn_proposals": 100,
    "detector.roi_samples": 64,
    "detector.learned_proposals": 20,
    "trunk.transformer.width": 64,
    "trunk.transformer.heads": 4,
    "trunk.transformer.encoder_layers": 2,
    "trunk.transformer.decoder_layers": 2,
    "trunk.transformer.feedforward": 128,
    "trunk.transformer.dropout": 0.0,
    "trunk.transformer.queries": 20,
    "trunk.hybrid.heads": 4,
    "trunk.hybrid.feedforward": 128,
    "detector.queries": 20,
    "detector.layers": 2,
    "detector.denoising": 20,
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.reference_batch": 8,
    "optim.warmup_iterations": 20,
    "optim.drops": (0.8,),
    "optim.clip_norm": 1.0,
    "checkpoint_every": 10**9,
    "workers": 0,
}
"""Of both commands."""
LEARN: dict[str, Any] = {
    "trunk.backbone": "resnet18",
    "trunk.fpn_channels": 64,
    "trunk.box_head_width": 128,
    "trunk.norm": "group",
    "iterations": 60,
    "batch_size": 8,
    "min_size": (112,),
    "max_size": 160,
    "evaluate_every": 20,
}
"""Group norm: the images that are learned from and looked at are alike only without a batch's statistics."""
FINETUNE: dict[str, Any] = {
    "iterations": 60,
    "batch_size": 4,
    "min_size": (128,),
    "max_size": 192,
    "evaluate_every": 10**9,
    "detector.score_threshold": 0.0,
    "detector.detections": 20,
}
"""Without a threshold, which few scores would pass after so few steps."""

KINDS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {},
    "faster_rcnn_c4": {
        "detector.kind": "faster_rcnn",
        "trunk.neck": "c4",
        "detector.roi_samples": 8,
        "detector.rpn_proposals": 20,
        "detector.detections": 20,
    },
    "mask_rcnn": {},
    "keypoint_rcnn": {},
    "retinanet": {},
    "fcos": {},
    "detr": {},
    "sparse_rcnn": {},
    "rt_detr": {},
    "fcn": {"detector.fcn.head": "16s", "crop.size": 192, "crop.scales": (1.0, 1.0), "crop.distort": False},
}
"""The rows of the tables, with what is special about each. C4 has few boxes, each of which goes through layer4."""
SLOW: dict[str, dict[str, Any]] = {
    "faster_rcnn_c4": {"iterations": 100, "evaluate_every": 25},
    "retinanet": {"iterations": 200, "evaluate_every": 50},
    "sparse_rcnn": {"iterations": 300, "evaluate_every": 50},
    "detr": {"iterations": 150, "evaluate_every": 50},
    "rt_detr": {"iterations": 150, "evaluate_every": 50},
    "fcn": {"iterations": 200, "min_size": (144,), "max_size": 192, "evaluate_every": 50},
}
"""What more a kind needs to learn the eight images."""

ENDS = {"top": (1, min), "bottom": (1, max), "left_end": (0, min), "right_end": (0, max)}
"""Keypoints that every outline has: the coordinate, and which end of it."""


def chosen(document: dict[str, Any]) -> dict[str, Any]:
    """A COCO dict of the images to learn."""
    objects = defaultdict(list)
    for entry in document["annotations"]:
        objects[entry["image_id"]].append(entry)

    def easy(image: dict[str, Any]) -> bool:
        own = objects[image["id"]]
        least = SHARE * min(image["width"], image["height"])
        sound = all(min(entry["bbox"][2:]) >= least and not entry["iscrowd"] for entry in own)
        return 1 <= len(own) <= OBJECTS and sound

    images = [image for image in document["images"] if easy(image)][:IMAGES]
    if len(images) < IMAGES:
        raise SystemExit(f"only {len(images)} images suit, {IMAGES} are needed")
    kept = [entry for image in images for entry in objects[image["id"]]]
    classes = {entry["category_id"] for entry in kept}
    categories = [category for category in document["categories"] if category["id"] in classes]
    return {"images": images, "annotations": kept, "categories": categories}


def absolute(annotations: Path) -> dict[str, Any]:
    """A COCO file's content, of the images that are there, under their absolute names."""
    files = {image.image_id: str(image.path.resolve()) for image in read_labels(annotations).images}
    document = json.loads(annotations.read_text())
    found = [image for image in document["images"] if image["id"] in files]
    return {**document, "images": [{**image, "file_name": files[image["id"]]} for image in found]}


def with_keypoints(document: dict[str, Any]) -> dict[str, Any]:
    """A COCO dict whose objects' keypoints are the four ends of their outlines; crowds, and what has no outline,
    have none."""

    def ends(entry: dict[str, Any]) -> dict[str, Any]:
        if entry["iscrowd"] or not entry.get("segmentation"):
            return entry
        numbers = [number for polygon in entry["segmentation"] for number in polygon]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        found = [pick(points, key=lambda point: point[axis]) for axis, pick in ENDS.values()]
        return {**entry, "keypoints": [value for x, y in found for value in (x, y, 2)], "num_keypoints": len(ENDS)}

    categories = [{**category, "keypoints": list(ENDS), "skeleton": []} for category in document["categories"]]
    return {**document, "annotations": [ends(entry) for entry in document["annotations"]], "categories": categories}


def labels_for(kind: str, document: dict[str, Any], file: Path) -> str:
    """The labels that a kind learns from, written to a file; its name."""
    file.write_text(json.dumps(with_keypoints(document) if kind == "keypoint_rcnn" else document))
    return str(file)


def main_score(values: dict[str, float]) -> float:
    """AP50, or the mIoU of what has no AP."""
    return next(values[name] for name in MEASURES if name in values)


def learn(kind: str, arguments: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """Over-fit a kind; its row."""
    with tempfile.TemporaryDirectory() as folder:
        labels = labels_for(kind, chosen(absolute(arguments.data)), Path(folder) / "labels.json")
        out = arguments.out / kind if arguments.out else Path(folder) / "run"
        settings = {"detector.kind": kind, **SETTINGS, **LEARN, **KINDS[kind], **SLOW.get(kind, {}), **changes}
        began = time.process_time()
        run = boxless.finetune(labels, labels, str(out), **settings)
        metrics, scores = run.metrics, run.summary["scores"]
        steps, curve = next((metrics[f"val/{name}"] for name in MEASURES if f"val/{name}" in metrics), ([], []))
        return {
            "reached": {name: round(main_score(values), 3) for name, values in scores.items()},
            "AP": {name: round(values["AP"], 3) for name, values in scores.items() if "AP" in values},
            "curve": {step + 1: round(value, 3) for step, value in zip(steps, curve, strict=True)},
            "steps": run.summary["steps"],
            "cpu_seconds": round(time.process_time() - began),
        }


def finetune(kind: str, arguments: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune a kind from a pretrained run and evaluate it; its row."""
    with tempfile.TemporaryDirectory() as folder:
        data, val = (
            labels_for(kind, absolute(file), Path(folder) / f"{name}.json")
            for name, file in (("data", arguments.data), ("val", arguments.val))
        )
        settings = {"detector.kind": kind, **SETTINGS, **FINETUNE, **KINDS[kind], **changes}
        began = time.process_time()
        run = boxless.finetune(data, val, str(arguments.out / kind), weights=arguments.weights, **settings)
        seconds = time.process_time() - began
        scores = boxless.evaluate(str(run.path), val).scores
        losses = run.metrics["loss"][1]
        return {
            "kind": kind,
            "from": Path(arguments.weights).name,
            "weights": run.summary["weights"],
            "loss": [round(losses[place], 2) for place in (0, -1)],
            "AP50": {name: round(main_score(result.as_dict()), 4) for name, result in scores.items()},
            "steps": run.summary["steps"],
            "images": run.summary["labelled_images"],
            "cpu_seconds": round(seconds),
        }


def measure(arguments: argparse.Namespace, changes: dict[str, Any]) -> int:
    """The rows of some kinds, each written down as soon as it is there; 1 where one has not learned."""
    file = arguments.results / "overfit.json"
    enough = True
    for kind in arguments.kinds.split(",") if arguments.kinds else KINDS:
        row = arguments.command(kind, arguments, changes)
        row |= {"changes": changes, "threads": torch.get_num_threads(), **facts("torch", "torchvision")}
        content = json.loads(file.read_text()) if file.is_file() else {}
        name = f"{kind} from {row['from']}" if "from" in row else kind
        content.setdefault(arguments.command.__name__, {})[name] = row
        write(file, content)
        print(f"{kind}: {row}", flush=True)
        enough &= all(value >= WANTED for value in row.get("reached", {}).values())
    return 0 if enough else 1


def table(arguments: argparse.Namespace) -> int:
    """Both tables, put into a page."""
    put(arguments.out, section(json.loads((arguments.results / "overfit.json").read_text())))
    print(arguments.out)
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of overfit.json")
    commands = parser.add_subparsers(required=True, metavar="learn|finetune|table")
    for command in (learn, finetune):
        own = commands.add_parser(command.__name__)
        own.add_argument("--data", required=True, type=Path, help="COCO instances of real images")
        own.add_argument("--kinds", help="a,b; by default all")
        own.add_argument("--out", type=Path, required=command is finetune, help="folder of the runs")
        own.set_defaults(command=command)
        if command is finetune:
            own.add_argument("--val", required=True, type=Path, help="COCO instances to evaluate on")
            own.add_argument("--weights", required=True, help="a run of boxless pretrain")
    own = commands.add_parser("table")
    own.add_argument("--out", type=Path, default=Path("docs/results.md"), help="page with the marks of this table")
    own.set_defaults(command=table)
    arguments, rest = parser.parse_known_args(words)
    if arguments.command is table:
        return table(arguments)
    changes = {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2], strict=True)}
    return measure(arguments, changes)


if __name__ == "__main__":
    sys.exit(main())
