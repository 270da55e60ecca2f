"""What README and docs show: commands, Python, and the world of small files in which all of it runs."""

import json
import re
import shlex
import shutil
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.models import resnet18

from boxless.data.scenes import CLASSES, make_scenes
from boxless.recipes.overrides import keys
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

LAUNCHERS = ("torchrun", "srun")
"""They start several processes of boxless: the flags behind them are checked."""
OTHER_PROGRAMS = {
    "make": "starts the whole suite, or runs for minutes; its targets are looked up",
    "pip": "installs into an environment",
    "ray": "needs a cluster",
}
NOT_RUN = {
    "boxless demo": "takes ten minutes; `make demo` is its test",
    "--ray-address": "needs a cluster; test_parallel.py has one",
    "hf://": "needs the network; test_publish.py has a hub of its own",
    "--weights imagenet": "needs a package of weights; test_imagenet.py has every command",
    "coco/train2017": "needs COCO",
    "--data coco ": "needs COCO: scores of tests/commands/test_protocols.py",
    "person_keypoints": "needs COCO's keypoints; test_kinds.py has others",
    "lvis_v1": "needs LVIS; test_protocols.py has a small one",
    "--data cityscapes": "needs Cityscapes; test_cityscapes.py has a small one",
    "VOC2012:trainaug": "needs VOC's class maps; test_segmentation_command.py has others",
    "faster-rcnn-r50-fpn-voc": "a protocol of its own; the one beside it runs",
    "--out runs/neu --methods": "README's comparison runs; this one is longer",
    "--out runs/detectors": "README's comparison runs; this one is longer",
    "studies/steel.yaml": "hours; README's comparison runs",
    "runs/scenes/cluttered": "needs studies/scenes.py's images; another pretraining runs",
    "--out runs/mine": "README's comparison runs; this one is longer",
    "--out runs/adapted": "README's comparison runs; this one is longer",
    "--methods none,densecl,soco --label-fraction 0.1 ": "README's comparison runs; this one is longer",
    "--kinds correspondence": "draws for seconds; test_figures_command.py draws it",
    "--kinds label-efficiency": "of a comparison; README's draws it",
    "--kinds attention": "draws for seconds; test_figures_command.py draws it",
    "--out runs/digits": "the same kinds run on other names; test_probe.py has all",
    "--out runs/neu --kind": "the same kinds run on other names; test_probe.py has all",
    "--out runs/objects": "the same kinds run on other names; test_probe.py has all",
    "coco256/images --recipe soco-small --out runs/soco --preview": "another preview runs",
}
"""Parts of commands that cannot run here or would take long, with the reason. Their flags and recipes are checked."""
PYTHON_NOT_RUN = {"webdataset.WebDataset": "names 13 shards; test_shards.py reads some by webdataset"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its commands, or its Python, or neither."""

    page: Path
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """Command lines as words, continuation lines joined."""
        if self.language not in ("", "bash"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines if re.match(rf"({'|'.join(PROGRAMS)}) ", line)]
        return [words for words in found if words]


PROGRAMS = ("boxless", *LAUNCHERS, *OTHER_PROGRAMS)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(), re.M | re.S):
        yield Block(page, found[1], found[2])


def reason(words: list[str]) -> str | None:
    """Why a command of boxless is not run, or None."""
    line = shlex.join(words) + " "
    return next((why for part, why in NOT_RUN.items() if part in line), None)


# ---- settings that make any run small

SMALL_TRUNK = {
    "trunk.backbone": "resnet18",
    "trunk.fpn_channels": "32",
    "trunk.box_head_width": "32",
    "trunk.transformer.width": "16",
    "trunk.transformer.heads": "2",
    "trunk.transformer.encoder_layers": "1",
    "trunk.transformer.decoder_layers": "1",
    "trunk.transformer.feedforward": "16",
    "trunk.transformer.queries": "8",
    "trunk.hybrid.heads": "2",
    "trunk.hybrid.feedforward": "16",
}
SMALL_METHOD = {
    "size": "64",
    "small_size": "32",
    "fourth_size": "48",
    "local_size": "32",
    "local_crops": "1",
    "hidden": "32",
    "output": "16",
    "queue_length": "8",
    "norm_groups": "2",
    "prototypes": "16",
    "patches": "2",
    "patch_size": "32",
    "cell_size": "40",
}
SMALL_PRETRAINING = {"proposals.method": "grid", "epochs": "1", "batch_size": "4"}
SMALL_FINETUNING = {
    "iterations": "2",
    "batch_size": "2",
    "min_size": "64",
    "max_size": "96",
    "evaluate_every": "1000000",
    "precise_norms": "0",
    "freeze": "0",
    "detector.rpn_samples": "16",
    "detector.rpn_proposals": "20",
    "detector.roi_samples": "8",
    "detector.learned_proposals": "8",
    "detector.queries": "8",
    "detector.layers": "1",
    "detector.denoising": "4",
    "detector.detections": "5",
}
ANY = {"workers": "0", "precision": "32-true"}


def small(command: str, recipe: object, weights: bool) -> dict[str, str]:
    """The keys that make a run of this recipe small; a run's weights bring their own trunk."""
    if isinstance(recipe, CompareRecipe):
        others = ("precise_norms", "evaluate_every")  # the latter is for the comparison to say
        cells = {f"finetune.{key}": value for key, value in SMALL_FINETUNING.items() if key not in others}
        start = {f"pretrain.{key}": value for key, value in (SMALL_TRUNK | SMALL_PRETRAINING | ANY).items()}
        start |= _method({key.removeprefix("pretrain."): each for key, each in keys(recipe).items()}, "pretrain.")
        return start | cells | {"finetune.workers": "0", "view_size": "64", "seeds": "1", "label_fraction": "0.5"}
    if isinstance(recipe, PretrainRecipe):
        return SMALL_TRUNK | SMALL_PRETRAINING | ANY | _method(keys(recipe))
    if isinstance(recipe, FinetuneRecipe):
        return SMALL_FINETUNING | ANY | ({} if weights else SMALL_TRUNK)
    return {
        "probe": {"size": "64", "workers": "0"},
        "propose": {"method": "grid", "workers": "1"},
        "pack": {"workers": "1"},
        "statistics": {"workers": "1"},
    }.get(command, {})


def _method(known: object, prefix: str = "") -> dict[str, str]:
    named = [key for key in known if key.startswith("method.")]  # type: ignore[attr-defined]
    ends = {key: SMALL_METHOD.get(key.rpartition(".")[2]) for key in named}
    return {prefix + key: value for key, value in ends.items() if value and not key.startswith("method.local.out")}


# ---- the files that the pages name

STARTS = {
    "soco": "soco-small",
    "soco-c4": "soco-c4-small",
    "byol": "byol-small",
    "moco": "moco-small",
    "densecl": "densecl-small",
    "barlow": "barlow-small",
    "self-emd": "self-emd-small",
    "up-detr": "up-detr-small",
}
"""Runs of pretraining that pages take for granted, with the recipe that they are made by."""
DETECTORS = {
    "few": "faster-rcnn-fpn",
    "neu-soco": "faster-rcnn-fpn",
    "neu-none": "faster-rcnn-fpn",
    "detr": "detr-small",
}
"""Runs of fine-tuning that pages take for granted."""


def make_world(folder: Path) -> None:
    """Fill a folder with all names that the pages use but runs."""
    scenes = folder / "scenes"
    make_scenes(scenes, unlabelled=4, train=4, val=2, size=64)
    images = scenes / "images"
    shutil.copytree(images / "val", folder / "more_images")
    for name, source in zip(("photo.jpg", "other.jpg"), sorted((images / "val").iterdir()), strict=True):
        shutil.copy(source, folder / name)
    shutil.copytree(ROOT / "studies", folder / "studies")  # recipes of pages that are read from a checkout
    for part in ("train", "val"):
        labels = json.loads((scenes / "annotations" / f"{part}.json").read_text())
        for image in labels["images"]:
            image["file_name"] = f"{part}-{image['file_name']}"
        for place, name in (
            (folder, f"{part}.json"),
            (folder / "labels", f"{part}.json"),
            (folder / "coco256" / "annotations", f"instances_{part}.json"),
        ):
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(json.dumps(labels))
        for place in (folder / "images", folder / "labels" / "images", folder / "coco256" / "images" / part):
            place.mkdir(parents=True, exist_ok=True)
            for image in (images / part).iterdir():
                shutil.copy(image, place / f"{part}-{image.name}")
        for number in range(2):
            for label in CLASSES[:2]:
                place = folder / "digits" / part / label
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(images / "unlabelled" / f"{number + 2 * int(label):06d}.jpg", place / f"{number}.jpg")
    shutil.copy(folder / "train.json", folder / "eight.json")
    for root, splits in (("NEU", ("train", "val")), ("VOCdevkit/VOC2007", ("trainval", "test"))):
        write_voc(folder / root, folder / "labels", splits)
    write_voc(folder / "VOCdevkit" / "VOC2012", folder / "labels", ("trainval",), "2012_")
    queries = {f"module.encoder_q.{name}": value for name, value in resnet18().state_dict().items()}
    torch.save({"state_dict": queries}, folder / "moco.pth")
    torch.save({"model": resnet18().state_dict(), "args": Namespace(batch=1)}, folder / "pixpro.pth")


def write_voc(root: Path, labels: Path, splits: tuple[str, ...], prefix: str = "") -> None:
    """A Pascal VOC set of the labels train.json (the first split) and val.json (the second)."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for split, source in zip(splits, ("train", "val"), strict=False):
        data = json.loads((labels / f"{source}.json").read_text())
        names = {category["id"]: category["name"] for category in data["categories"]}
        for image in data["images"]:
            stem = prefix + Path(image["file_name"]).stem
            shutil.copy(labels / "images" / image["file_name"], root / "JPEGImages" / f"{stem}.jpg")
            objects = [each for each in data["annotations"] if each["image_id"] == image["id"]]
            (root / "Annotations" / f"{stem}.xml").write_text(_xml(stem, objects, names))
        stems = [prefix + Path(image["file_name"]).stem for image in data["images"]]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))


def _xml(stem: str, objects: list[dict[str, object]], names: dict[object, str]) -> str:
    entries = []
    for each in objects:
        x, y, width, height = each["bbox"]  # type: ignore[misc]
        box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
        entries.append(f"<object><name>{names[each['category_id']]}</name><bndbox>{box}</bndbox></object>")
    size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
    return f"<annotation><filename>{stem}.jpg</filename>{size}{''.join(entries)}</annotation>"
