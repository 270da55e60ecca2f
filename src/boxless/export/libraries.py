"""Exports to other libraries: the parts of a run that each has names for, and the lines of Python that load them."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from boxless.detectors.all import DETECTORS
from boxless.detectors.backbones import RESNETS
from boxless.detectors.detector import DetectorConfig
from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.sparse_rcnn import SparseRCNNConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import FasterRCNNConfig
from boxless.errors import UserError
from boxless.export.weights import (
    BODY,
    Export,
    body_tensors,
    detector_tensors,
    numbered,
    of_bytes,
    of_tensors,
    readme,
    trunk_tensors,
)
from boxless.interop import detectron2, mmdetection, onnx, timm, torchvision, transformers
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe, TrainingRecipe
from boxless.runs.run import Run
from boxless.tasks.detect import load_detector, skeleton_of

WHOLE = {"detectron2": detectron2.CONFIGS.keys(), "mmdetection": mmdetection.CONFIGS.keys()}
"""Detectors that a toolbox takes whole."""
BODY_INSTEAD = "export its body with --to torchvision-backbone"
IMPORTS = ["import math", "import torch, torchvision"]


def to_torchvision_backbone(run: Run, file: str) -> Export:
    """The body in the names of torchvision's (or timm's) classifiers."""
    body, trunk = body_tensors(run), run.recipe.trunk
    if trunk.backbone.startswith("timm:"):
        code = [*IMPORTS, *timm.how_to_load(trunk, file).split("\n")[1:]]
        about = f"{trunk.backbone} of {run.path}, in timm's names."
        return of_tensors(timm.from_torchvision(body, trunk), readme(about, trunk, code))
    about = f"{trunk.backbone} of {run.path}, in the names of torchvision.models.{trunk.backbone}."
    return of_tensors(body, readme(about, trunk, [*IMPORTS, *torchvision.backbone_code(trunk, file)]))


def to_torchvision_detector(run: Run, file: str) -> Export:
    """The detector in torchvision's names; of a pretraining the parts that it trained, and the others stay new."""
    recipe = run.recipe
    _check_torchvision(run, recipe)
    if isinstance(recipe, PretrainRecipe):
        about = (
            f"The pretrained parts of {run.path}, in the names of torchvision's FasterRCNN; the other parts are new."
        )
        code = torchvision.pretrained_code(recipe.trunk, file)
        return of_tensors(trunk_tensors(run), readme(about, recipe.trunk, [*IMPORTS, *code]))
    tensors, classes, recipe = detector_tensors(run)
    trunk, config, sizes = recipe.trunk, recipe.detector, (recipe.min_size[-1], recipe.max_size)
    if isinstance(config, RetinaNetConfig | FCOSConfig):
        code = torchvision.one_stage_code(trunk, config, sizes, len(classes), file)
    else:
        assert isinstance(config, FasterRCNNConfig)
        keypoints = len(skeleton_of(run.path).names)
        code = torchvision.detector_code(trunk, config, sizes, len(classes) + 1, keypoints, file)
        classes = ("background", *classes)
    about = (
        f"The detector of {run.path}, in the names of torchvision's {torchvision.CLASSES[type(config)]}.\n"
        "Its labels: " + numbered(classes, 0)
    )
    return of_tensors(tensors, readme(about, trunk, [*IMPORTS, *code]))


def _check_torchvision(run: Run, recipe: TrainingRecipe) -> None:
    trunk = recipe.trunk
    detector = recipe.detector if isinstance(recipe, FinetuneRecipe) else None
    reasons = {
        "torchvision has no DETR": trunk.neck == "transformer",
        "torchvision has no RT-DETR": trunk.neck == "hybrid",
        "torchvision has no such detectors on C4": trunk.neck == "c4",
        f"torchvision has no such detectors on {trunk.backbone}": trunk.backbone not in RESNETS,
        "torchvision has no Sparse R-CNN": isinstance(detector, SparseRCNNConfig),
        "torchvision's FCN has another head": detector is not None and detector.targets == "classes",
        "trained no detector's parts": detector is None and trunk.neck in ("fpn_p3", "none"),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"run {run.path}: {reason}; {BODY_INSTEAD}")


def to_timm(run: Run, file: str) -> Export:
    """The backbone in timm's names."""
    trunk = run.recipe.trunk
    about = f"{trunk.backbone} of {run.path}, in timm's names."
    text = readme(about, trunk, [timm.how_to_load(trunk, file)])
    return of_tensors(timm.from_torchvision(body_tensors(run), trunk), text)


def to_safetensors(run: Run, file: str) -> Export:
    """All weights as they are."""
    about = f"All weights of {run.path}, in torchvision's names (backbone.body.* is the body)."
    code = ["from safetensors.torch import load_file", "", f'tensors = load_file("{file}")']
    return of_tensors(read_tensors(run.weights), readme(about, run.recipe.trunk, code))


def to_detectron2(run: Run, file: str) -> Export:
    """A .pkl for Detectron2."""
    tensors, trunk, config, classes, part = _toolbox_tensors(run, "detectron2")
    named, left = detectron2.from_torchvision(tensors)
    assert not left, left
    about = f"{part} of {run.path}, in Detectron2's names." + _last_row(classes)
    if config:
        about += "\nBoxes may differ by parts of a pixel: torchvision rounds its anchors, Detectron2 does not."
    keypoints = len(skeleton_of(run.path).names) if config else 0
    code = detectron2.how_to_load(trunk, config, len(classes), keypoints, file)
    description = f"{len(named)} tensors ({part.lower()})"
    return of_bytes(detectron2.pickled(named), description, readme(about, trunk, [code]))


def to_mmdetection(run: Run, file: str) -> Export:
    """A .pth for MMDetection 3."""
    tensors, trunk, config, classes, part = _toolbox_tensors(run, "mmdetection")
    if trunk.norm == "group" and isinstance(config, RetinaNetConfig):
        raise UserError(
            f"run {run.path}: MMDetection has norms behind P6 and P7, which group norms cannot stand in for; "
            "export it with --to detectron2, or its body with --to torchvision-backbone"
        )
    bare = not any(key.startswith(BODY) for key in tensors)
    named, left = mmdetection.from_torchvision({BODY + k: v for k, v in tensors.items()} if bare else tensors)
    assert not left, left
    about = f"{part} of {run.path}, in the names of MMDetection 3." + _last_row(classes)
    load, load_body = mmdetection.how_to_load, mmdetection.how_to_load_body
    code = load_body(trunk, file) if bare else load(trunk, config, len(classes), file)
    description = f"{len(named)} tensors ({part.lower()})"
    return of_bytes(mmdetection.saved(named, classes), description, readme(about, trunk, [code]))


def _last_row(classes: tuple[str, ...]) -> str:
    return f"\nIts labels: {numbered(classes, 0)}; background is the last row." if classes else ""


def _toolbox_tensors(
    run: Run, library: str
) -> tuple[dict[str, Tensor], TrunkConfig, DetectorConfig | None, tuple[str, ...], str]:
    """The tensors that Detectron2 or MMDetection has names for, in torchvision's names, and the part in words."""
    recipe = run.recipe
    trunk = recipe.trunk
    if trunk.backbone not in RESNETS:
        raise UserError(
            f"run {run.path}: {library} names no {trunk.backbone}; export it with --to torchvision-backbone"
        )
    if trunk.neck == "c4" and trunk.backbone in ("resnet18", "resnet34"):
        raise UserError(
            f"run {run.path}: {library}'s detectors on C4 have the last stage of a resnet50 or a larger one for a "
            f"head, this is {trunk.backbone}; {BODY_INSTEAD}, a whole detector with --to onnx"
        )
    if isinstance(recipe, FinetuneRecipe) and type(recipe.detector) in WHOLE[library]:
        tensors, classes, recipe = detector_tensors(run)
        return tensors, trunk, recipe.detector, classes, f"The whole {recipe.detector.kind}"
    tensors = trunk_tensors(run)
    has_fpn = isinstance(recipe, PretrainRecipe) and trunk.neck in ("fpn", "fpn_p3")
    if has_fpn and not all(key.startswith(BODY) for key in tensors):
        return tensors, trunk, None, (), "The pretrained trunk"
    return body_tensors(run), trunk, None, (), "The backbone alone"


def to_transformers(run: Run, file: str) -> Export:
    """A folder that from_pretrained of transformers takes."""
    tensors, classes, recipe = detector_tensors(run)
    kind, trunk = recipe.detector.kind, recipe.trunk
    if type(recipe.detector) not in transformers.MODELS:
        raise UserError(f"run {run.path}: is a {kind}; --to transformers takes detr and rt_detr")
    if trunk.backbone not in RESNETS or trunk.norm == "group":
        raise UserError(
            f"run {run.path}: transformers' {kind} is written on ResNets with batch norms, this is {trunk.backbone} "
            f"with norm {trunk.norm}; {BODY_INSTEAD}"
        )
    sizes = (recipe.min_size[-1], recipe.max_size)

    def write(path: Path) -> str:
        path.mkdir(exist_ok=True)
        count = transformers.save(path, tensors, trunk, recipe.detector, classes, sizes)
        return f"{count} tensors with configuration and image processor"

    about = f"The {kind} of {run.path}, for transformers.\nIts labels: {numbered(classes, 0)}"
    return Export(write, readme(about, trunk, [transformers.how_to_load(recipe.detector, file)]))


def to_onnx(run: Run, file: str) -> Export:
    """A whole detector, from image to boxes."""
    detector, classes, recipe = load_detector(run.path)
    if recipe.detector.targets == "classes":
        taken = [kind for kind, config in DETECTORS.items() if config.targets != "classes"]
        raise UserError(f"run {run.path}: is a {recipe.detector.kind}; --to onnx takes {', '.join(taken)}")
    onnx.require()

    def write(path: Path) -> str:
        names = onnx.export(path, detector, classes)
        difference = onnx.difference(path, detector)
        return f"image -> {', '.join(names)}; onnxruntime finds the same to {difference:.0e} (relative)"

    about = (
        f"The {recipe.detector.kind} of {run.path}, whole, with normalisation. Images keep their size, so resize them "
        f"as in training: shorter side {recipe.min_size[-1]} px, longest {recipe.max_size} px.\n"
        f"Its labels: {numbered(classes, 1)}"
    )
    return Export(write, readme(about, recipe.trunk, [onnx.how_to_load(file)]))


LIBRARIES: dict[str, Callable[[Run, str], Export]] = {
    "torchvision-backbone": to_torchvision_backbone,
    "torchvision-detector": to_torchvision_detector,
    "timm": to_timm,
    "detectron2": to_detectron2,
    "mmdetection": to_mmdetection,
    "transformers": to_transformers,
    "safetensors": to_safetensors,
    "onnx": to_onnx,
}
