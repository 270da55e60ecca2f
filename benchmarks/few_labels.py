"""The default detector beside a plain torchvision loop: same images, same CPU seconds, AP on images of neither.

    python benchmarks/few_labels.py run --data $BOXLESS_DATA --out runs/few --minutes 2,5,10 --seeds 3
    python benchmarks/few_labels.py table --out runs/few

Both learn from the same labelled images (10 % of NEU-DET's and DeepPCB's, 128 images of COCO), with one thread and no
data workers, until the same CPU seconds are gone; their AP is measured by faster-coco-eval on up to 150 other images.
The loop is what a user of torchvision would write: Faster R-CNN with FPN on the same ImageNet body, bf16, channels
last, AdamW with a cosine over the time, moving average, flips, colours, zoomed crops; `scratch` is the same on a
ResNet-18 from random weights, with flips only. It gets image size and anchors from boxless's plan.

--split choice measures on held-out training images instead, where defaults are chosen: an arm
boxless:KEY=VALUE:KEY=VALUE is the default with keys changed.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from environment import facts, write
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.v2 import functional

import boxless
from boxless.data.annotations.read import LabelledData, read_labels
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.interop.imagenet import embedded_weights
from boxless.interop.weights import load_trunk
from boxless.recipes.faster_rcnn import FASTER_RCNN_AUTO
from boxless.runs.weights import with_trunk_of
from boxless.tasks import plan
from boxless.tasks.finetune import DetectTask

SETS = {"neu": "neu-det", "pcb": "deep-pcb", "coco": "coco256/annotations"}
MEASURED = 150
"""Images that AP is measured on, at most."""
CUT_OFF = 0.05
WIDTH = 64
"""Channels of the loop's pyramid, those of the default."""
RATE = 2e-3
"""Peak of the loop's learning rate."""


def draw(data: Path, name: str, split: str, seed: int, out: Path) -> tuple[Path, Path]:
    """Labels to learn from and to measure on, as two COCO files."""
    random = np.random.default_rng((seed, 7))
    source = data / SETS[name]
    train, val = (read_labels(source, role) for role in ("train", "val"))
    rows = random.permutation(len(train))
    count = len(train) * 2 // 3 if name == "coco" else len(train) // 10
    if split == "report":
        count = len(train) if name == "coco" else count
        measured = [val.images[row] for row in np.random.default_rng(1).permutation(len(val))[:MEASURED]]
    else:
        measured = [train.images[row] for row in rows[count : count + MEASURED]]
    out.mkdir(parents=True, exist_ok=True)
    files = out / "train.json", out / "val.json"
    for file, images in zip(files, ([train.images[row] for row in rows[:count]], measured), strict=True):
        file.write_text(json.dumps(as_coco(train, images)))
    return files


def as_coco(data: LabelledData, images: list[Any]) -> dict[str, Any]:
    boxes = [
        {
            "id": number,
            "image_id": row,
            "category_id": int(label) + 1,
            "bbox": [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
            "area": float((box[2] - box[0]) * (box[3] - box[1])),
            "iscrowd": int(crowd),
        }
        for number, (row, box, label, crowd) in enumerate(
            (
                (row, box, label, crowd)
                for row, image in enumerate(images)
                for box, label, crowd in zip(image.boxes, image.labels, image.crowd, strict=True)
            ),
            1,
        )
    ]
    entries = [
        {"id": row, "file_name": str(image.path), "width": image.width, "height": image.height}
        for row, image in enumerate(images)
    ]
    return {
        "images": entries,
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for number, name in enumerate(data.classes, 1)],
    }


def value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def with_boxless(train: Path, val: Path, out: Path, arm: str, minutes: float, seed: int) -> dict[str, Any]:
    """The default of `boxless finetune`, with what the arm changes."""
    keys = dict(pair.split("=", 1) for pair in arm.split(":")[1:])
    settings = {key: value_of(value) for key, value in keys.items()}
    length = {} if "iterations" in settings else {"minutes": minutes}
    quick = {"workers": 0, "seed": seed, "evaluate_every": 10**6, "checkpoint_every": 10**6}
    began, ended, finish = time.process_time(), list[float](), DetectTask.finish

    def finishing(task: DetectTask, seconds: float) -> None:
        ended.append(time.process_time())
        finish(task, seconds)

    clock = SimpleNamespace(perf_counter=time.process_time)  # other programs don't count
    with patch.object(plan, "time", clock), patch.object(DetectTask, "finish", finishing):
        run = boxless.finetune(str(train), str(val), str(out), **length, **quick, **settings)
    scores, ran = next(iter(run.summary["scores"].values())), run.settings
    seconds = ended[0] - began
    return {
        "ap": 100 * scores["AP"],
        "ap50": 100 * scores["AP50"],
        "steps": run.summary["steps"],
        "seconds": seconds,
        "images_a_second": round(run.summary["steps"] * ran["batch_size"] / seconds, 2),
        "size": ran["min_size"],
    }


class Timm(nn.Module):
    """The same ImageNet body, from timm, with torchvision's pyramid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        import timm

        self.body = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
        widths = self.body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """P2..P5 and the pooled level, by torchvision's names."""
        maps = {str(number): value for number, value in enumerate(self.body(image))}
        return dict(self.fpn(maps))


class Scratch(nn.Module):
    """A ResNet-18 from random weights, with torchvision's pyramid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        network = resnet18(weights=None)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])
        self.fpn = FeaturePyramidNetwork([64, 128, 256, 512], channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """P2..P5 and the pooled level, by torchvision's names."""
        maps, image = {}, self.stem(image)
        for number, stage in enumerate(self.stages):
            maps[str(number)] = image = stage(image)
        return dict(self.fpn(maps))


def loop_detector(arm: str, classes: int, size: int, longest: int, anchors: tuple[int, ...]) -> FasterRCNN:
    backbone = Scratch(WIDTH) if arm == "scratch" else Timm(WIDTH)
    config = TrunkConfig()
    if isinstance(backbone, Timm):
        config = with_trunk_of(FASTER_RCNN_AUTO, str(embedded_weights())).trunk
        trunk = Trunk(config)
        load_trunk(trunk, embedded_weights(), 0.99)
        ours = {key.removeprefix("model."): value for key, value in trunk.backbone.body.state_dict().items()}
        theirs = {key: ours[key] for key in backbone.body.state_dict()}  # every tensor, or a KeyError
        backbone.body.load_state_dict(theirs)
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=longest,
        image_mean=list(config.mean),
        image_std=list(config.std),
        rpn_anchor_generator=AnchorGenerator(tuple((a,) for a in anchors), ((0.5, 1.0, 2.0),) * 5),
        rpn_batch_size_per_image=128,
        box_batch_size_per_image=128,
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=500,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(WIDTH * 49, 512),
        box_predictor=FastRCNNPredictor(512, classes + 1),
        box_score_thresh=CUT_OFF,
    )


def changed(image: Tensor, boxes: Tensor, labels: Tensor, random: np.random.Generator, strong: bool) -> Any:
    """Flips and, in the strong loop, colours and crops that keep the objects whose centres they show."""
    height, width = image.shape[-2:]
    if strong and random.random() < 0.5:
        image = functional.adjust_brightness(image, random.uniform(0.7, 1.3))
        image = functional.adjust_contrast(image, random.uniform(0.7, 1.3))
        image = functional.adjust_saturation(image, random.uniform(0.7, 1.3))
    if strong and random.random() < 0.5:
        share = 1 / random.uniform(1, 1.5)
        w, h = max(1, int(width * share)), max(1, int(height * share))
        x, y = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
        image = image[:, y : y + h, x : x + w]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([x, y])
        inside = (centres > 0).all(1) & (centres < torch.tensor([w, h])).all(1)
        boxes = (boxes[inside] - torch.tensor([x, y, x, y])).clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([w, h, w, h]))
        labels, width, height = labels[inside], w, h
    if random.random() < 0.5:
        image, boxes = (
            image.flip(2),
            torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
        )
    return image, boxes, labels


def with_loop(train: Path, val: Path, arm: str, minutes: float, seed: int) -> dict[str, Any]:
    """The plain loop, for the same CPU seconds; loop:0.001 has another peak rate."""
    torch.manual_seed(seed)
    arm, _, given = arm.partition(":")
    rate = float(given or RATE)
    data = read_labels(train)
    settings = plan.choose_settings(FASTER_RCNN_AUTO, data, "cpu", ())
    size, longest = settings["min_size"][0], settings["max_size"]
    detector = loop_detector(arm, len(data.classes), size, longest, settings["detector.anchor_sizes"])
    detector = detector.to(memory_format=torch.channels_last).train()
    average = torch.optim.swa_utils.AveragedModel(detector, multi_avg_fn=moving_average, use_buffers=True)
    optimizer = torch.optim.AdamW(detector.parameters(), rate, weight_decay=1e-4)
    began, budget, steps = time.process_time(), 60 * minutes, 0
    for batch in batches(data, seed, arm != "scratch"):
        done = (time.process_time() - began) / budget
        if done >= 1:
            break
        warm = min(1, (steps + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + np.cos(np.pi * done))
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(detector(*batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(detector)
        steps += 1
    seconds = time.process_time() - began
    ap, ap50 = measured(average.module.eval(), val)
    speed = round(8 * steps / seconds, 2)
    return {"ap": ap, "ap50": ap50, "steps": steps, "seconds": seconds, "images_a_second": speed, "size": [size]}


@torch.no_grad()
def moving_average(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
    """A decay of 0.99 that begins small, as TensorFlow's and timm's do, so that short runs do not keep their start."""
    share = 1 - min(0.99, (1 + int(count)) / (10 + int(count)))
    for average, value in zip(averages, values, strict=True):
        if value.is_floating_point():
            average.lerp_(value, share)
        else:
            average.copy_(value)


def batches(data: LabelledData, seed: int, strong: bool) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    random = np.random.default_rng(seed)
    rows: list[int] = []
    while True:
        images, targets = [], []
        while len(images) < 8:
            rows = rows or random.permutation(len(data)).tolist()
            labelled = data.images[rows.pop()]
            image = torch.from_numpy(np.array(Image.open(labelled.path).convert("RGB"))).permute(2, 0, 1)
            boxes, labels = torch.from_numpy(labelled.boxes), torch.from_numpy(labelled.labels) + 1
            kept = torch.from_numpy(~labelled.crowd) & ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
            image, boxes, labels = changed(image, boxes[kept], labels[kept], random, strong)
            images.append(image.float() / 255)
            targets.append({"boxes": boxes.view(-1, 4).float(), "labels": labels})
        yield images, targets


@torch.no_grad()
def measured(detector: nn.Module, val: Path) -> tuple[float, float]:
    truth, found = COCO(str(val)), []
    for entry in truth.dataset["images"]:
        pixels = torch.from_numpy(np.array(Image.open(entry["file_name"]).convert("RGB"))).permute(2, 0, 1) / 255
        with torch.autocast("cpu", torch.bfloat16):
            (objects,) = detector([pixels])
        for (x1, y1, x2, y2), label, score in zip(
            objects["boxes"].tolist(), objects["labels"].tolist(), objects["scores"].tolist(), strict=True
        ):
            found.append(
                {"image_id": entry["id"], "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    if not found:
        return 0.0, 0.0
    evaluation = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * float(evaluation.stats[0]), 100 * float(evaluation.stats[1])


def one(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    out = Path(options.cell)
    train, val = draw(Path(options.data), options.set, options.split, options.seed, out)
    if options.arm.startswith("boxless"):
        result = with_boxless(train, val, out / "run", options.arm, options.budget, options.seed)
    else:
        result = with_loop(train, val, options.arm, options.budget, options.seed)
    cell = {"set": options.set, "arm": options.arm, "minutes": options.budget, "seed": options.seed}
    write(out / "result.json", {**cell, "split": options.split, **result, **facts("torch", "torchvision")})


def run(options: argparse.Namespace) -> None:
    """Every cell that is not there yet, `jobs` at a time, each with one thread."""
    seeds = range(options.first, options.first + options.seeds)
    cells = itertools.product(map(float, options.minutes.split(",")), seeds, options.sets.split(","), options.arms)
    running: list[subprocess.Popen[bytes]] = []
    for minutes, seed, name, arm in cells:
        folder = arm.replace(":", "_").replace("/", "_")[-80:]
        cell = Path(options.out) / f"{name}-{options.split}-{folder}-{minutes:g}-{seed}"
        if (cell / "result.json").is_file():
            continue
        while len(running) == options.jobs:
            time.sleep(0.5)
            running = [process for process in running if process.poll() is None]
        cell.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "one", "--data", options.data, "--cell", str(cell), "--set", name]
        command += ["--arm", arm, "--budget", str(minutes), "--seed", str(seed), "--split", options.split]
        with (cell / "log.txt").open("wb") as log:
            running.append(
                subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
            )
    for process in running:
        process.wait()


def table(options: argparse.Namespace) -> None:
    found = [json.loads(file.read_text()) for file in sorted(Path(options.out).glob("*/result.json"))]
    results = [result for result in found if result]
    keys = sorted({(r["set"], r["split"], r["minutes"], r["arm"]) for r in results})
    print("| images | split | minutes | CPU seconds | arm | n | AP | AP50 | steps | images a second |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for key in keys:
        mine = [r for r in results if (r["set"], r["split"], r["minutes"], r["arm"]) == key]

        def cell(name: str, mine: list[dict[str, Any]] = mine) -> str:
            values = [r[name] for r in mine]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.1f}{spread}"

        steps = round(statistics.mean(r["steps"] for r in mine))
        name, split, minutes, arm = key
        size = mine[0]["size"][-1]
        seconds = round(statistics.mean(r["seconds"] for r in mine))
        line = f"| {name}, {size} px | {split} | {minutes:g} | {seconds} | {arm} | {len(mine)} | {cell('ap')} "
        line += f"| {cell('ap50')} "
        print(f"{line}| {steps} | {cell('images_a_second')} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    many = commands.add_parser("run")
    many.add_argument("--data", default=os.environ.get("BOXLESS_DATA", "../shared/data"))
    many.add_argument("--out", default="runs/few")
    many.add_argument("--sets", default=",".join(SETS))
    many.add_argument("--arms", nargs="+", default=["boxless", "loop"])
    many.add_argument("--minutes", default="2,5,10")
    many.add_argument("--seeds", type=int, default=3)
    many.add_argument("--first", type=int, default=0)
    many.add_argument("--split", choices=("report", "choice"), default="report")
    many.add_argument("--jobs", type=int, default=2)
    many.set_defaults(function=run)
    single = commands.add_parser("one")
    for name in ("data", "cell", "set", "arm", "split"):
        single.add_argument(f"--{name}", required=True)
    single.add_argument("--budget", type=float, required=True)
    single.add_argument("--seed", type=int, required=True)
    single.set_defaults(function=one)
    show = commands.add_parser("table")
    show.add_argument("--out", default="runs/few")
    show.set_defaults(function=table)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
