"""Run an export's own lines in another Python, on real images, and compare what they find with what boxless finds."""

import base64
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from boxless.data.detection import DetectionSample, resize
from boxless.data.images import BadImage, decode
from boxless.detectors.detector import BoxDetectorConfig, keep_above
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.export.weights import Export
from boxless.interop import compared, onnx
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe
from boxless.runs.run import Run
from boxless.tasks.detect import load_detector, to_source
from boxless.tasks.labels import validation_labels

IMAGES = 8
"""Images that an export of a detector is tried on."""
_SIZE = (64, 96)
"""Height and width of the image that features are compared on, px."""
_DETECT = """
import json, pathlib, torch
def _plain(found):
    named = [classes[int(label)] for label in found["labels"]]
    return {"boxes": found["boxes"].tolist(), "scores": found["scores"].tolist(), "labels": named}
with torch.no_grad():
    answers = [_plain(detect(path)) for path in json.loads(pathlib.Path("images.json").read_text())]
pathlib.Path("answers.json").write_text(json.dumps(answers))
"""
_FEATURES = """
import json, pathlib, torch
x = torch.tensor(json.loads(pathlib.Path("images.json").read_text()))
model = model.to("cpu").eval()
with torch.no_grad():
    answers = [one.tolist() for one in FEATURES]
pathlib.Path("answers.json").write_text(json.dumps(answers))
"""


class FailedTrial(Exception):
    """The lines ended in an error, whose last line this holds."""


def try_out(run: Run, export: Export, folder: Path) -> str:
    """Run the lines of an export that lies in a folder; returns a few words on the outcome.

    Raises:
        UserError: if they find something else than boxless does, or end in an error though boxless needs that library.
    """
    library = export.library
    if library is None:
        return ""
    if library.module is not None and importlib.util.find_spec(library.module) is None:
        return f"not tried: {library.module} is not installed"
    try:
        apart, what = (_features if library.features else _detections)(run, export, folder)
    except FailedTrial as error:
        if library.module is not None:  # its installation may be broken, and the file may be for another machine
            return f"not tried: the lines of its text end in an error here ({error})"
        raise UserError(
            f"to: the lines for {library.name} end in an error, so nothing was written ({error})"
        ) from error
    if not apart <= compared.LIMIT and library.module is not None:  # it may have rules of its own, see docs/weights.md
        return f"{library.name} does not find quite the same by the lines of its text ({what}: apart by {apart:.0e})"
    if not apart <= compared.LIMIT:
        raise UserError(
            f"to: {library.name} finds something else than boxless by these weights, so nothing was written "
            f"({what}: apart by {apart:.0e}, expected at most {compared.LIMIT:.0e})"
        )
    return f"{library.name} finds the same by the lines of its text ({what}: apart by {apart:.0e})"


def _answers(lines: str, question: str, about: object, folder: Path) -> Any:
    """Answers of lines of Python, run in a process of their own, which sees no GPU."""
    (folder / "images.json").write_text(json.dumps(about))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines + "\n" + question],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    answers = folder / "answers.json"
    if done.returncode or not answers.is_file():
        raise FailedTrial((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    result = json.loads(answers.read_text())
    answers.unlink()
    return result


@torch.no_grad()
def _features(run: Run, export: Export, folder: Path) -> tuple[float, str]:
    """The largest difference of maps of an image, as a share of each map's largest value."""
    assert export.library is not None
    image = torch.rand(1, 3, *_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    question = _FEATURES.replace("FEATURES", export.library.features)
    theirs = [torch.tensor(one) for one in _answers(export.lines(export.facts), question, image.tolist(), folder)]
    ours = _maps(run, export, image)
    if any(one.shape != other.shape for one, other in zip(theirs, ours, strict=False)):
        return float("inf"), "features"
    shares = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(theirs, ours, strict=False)]
    return max(shares), "features"


def _maps(run: Run, export: Export, image: Tensor) -> list[Tensor]:
    assert export.library is not None
    config = run.recipe.trunk
    trunk = Trunk(config)
    tensors = {key.removeprefix("roi_heads."): value for key, value in read_tensors(run.weights).items()}
    trunk.load_state_dict({key: tensors[key] for key in trunk.state_dict() if key in tensors}, strict=False)
    maps = list(trunk.eval().backbone.body(image).values())
    if export.library.part == "C5":
        last = trunk.box_head.get_submodule("layer4")(maps[0]) if config.neck == "c4" else maps[-1]
        return [last.mean((2, 3))]
    return list(trunk.backbone(image).values()) if export.library.part == "pyramid" else maps


@torch.no_grad()
def _detections(run: Run, export: Export, folder: Path) -> tuple[float, str]:
    """The difference of boxes (source px), scores and labels, see `compared.difference`."""
    detector, classes, recipe = load_detector(run.path)
    paths, kind = images_of(run, folder)
    facts, expected = export.facts, [_found(detector, path, recipe, classes) for path in paths]
    if not any(len(one["scores"]) for one in expected) and not export.keeps_threshold:
        assert isinstance(facts.detector, BoxDetectorConfig)
        keep_above(detector, 0.0)
        facts = replace(facts, detector=replace(facts.detector, score_threshold=0.0))
        expected = [_found(detector, path, recipe, classes) for path in paths]
    answers = _answers(export.lines(facts), _DETECT, [str(path.resolve()) for path in paths], folder)
    found = [{key: np.array(value) for key, value in one.items()} for one in answers]
    found = [{**one, "boxes": one["boxes"].reshape(-1, 4)} for one in found]
    count = sum(len(one["scores"]) for one in expected)
    return compared.difference(found, expected), f"{count} objects in {len(paths)} {kind}"


def _found(detector: nn.Module, path: Path, recipe: FinetuneRecipe, classes: Sequence[str]) -> compared.Found:
    source = decode(path)
    size = (source.shape[1], source.shape[0])
    image, from_source = resize(source, recipe.min_size[-1], recipe.max_size)
    (output,) = detector([image.float() / 255])
    boxes = {key: output[key] for key in ("boxes", "scores", "labels")}
    found = to_source(boxes, DetectionSample(image, from_source, {}, 0, size))
    return {"boxes": found.boxes, "scores": found.scores, "labels": np.array([classes[k] for k in found.labels])}


def images_of(run: Run, folder: Path, count: int = IMAGES) -> tuple[list[Path], str]:
    """Images to try a run's detector on, and what they are: of its validation data, of its page, or drawn ones.

    Args:
        run: fine-tuned.
        folder: a place to write images that lie in no file.
        count: largest number of images.
    """
    found = _spread(_validation_images(run), count)
    if found:
        return found, "validation images"
    embedded = [entry.get("jpeg") for entry in run.read("gallery.json").get("shown", ()) if isinstance(entry, dict)]
    for number, content in enumerate(_spread([each for each in embedded if isinstance(each, str)], count)):
        path = folder / f"image-{number}.jpg"
        path.write_bytes(base64.b64decode(content))
        found.append(path)
    if found:
        return found, "images of its page: its validation images are not where they were"
    for number, picture in enumerate(onnx.pictures()):
        path = folder / f"image-{number}.png"
        to_pil_image((picture * 255).round().byte()).save(path)
        found.append(path)
    return found, "drawn images: its validation images are not where they were"


def _validation_images(run: Run) -> list[Path]:
    where = run.inputs.get("val")
    if not where:
        return []
    try:
        labels = validation_labels(where, run.classes, quiet=True)
    except UserError:
        return []
    paths = [Path(image.path) for image in labels.images if len(image.boxes)]
    return [path for path in _spread(paths, 2 * IMAGES) if _is_readable(path)]


def _is_readable(path: Path) -> bool:
    try:
        decode(path)
    except BadImage:
        return False
    return True


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """A few, from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places]
