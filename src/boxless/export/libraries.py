"""Exports to other libraries: the parts of a run that each has names for, and the lines of Python that load them."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from boxless.detectors.all import DETECTORS
from boxless.detectors.backbones import RESNETS
from boxless.detectors.detector import BoxDetectorConfig
from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.sparse_rcnn import SparseRCNNConfig
from boxless.errors import UserError
from boxless.export.weights import (
    BODY,
    Export,
    Library,
    body_tensors,
    detector_tensors,
    numbered,
    of_bytes,
    of_tensors,
    trunk_tensors,
)
from boxless.interop import compared, detectron2, mmdetection, onnx, timm, torchvision, transformers
from boxless.interop.exported import Exported
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe, TrainingRecipe
from boxless.runs.run import Run
from boxless.tasks.detect import load_detector, skeleton_of

WHOLE = {"detectron2": detectron2.CONFIGS.keys(), "mmdetection": mmdetection.CONFIGS.keys()}
"""Detectors that a toolbox takes whole."""
BODY_INSTEAD = "export its body with --to torchvision-backbone"
C5 = "[model(x)]"


def _facts(run: Run, file: str, whole: bool = False) -> Exported:
    """The facts of a run that the lines depend on; `whole`: those of its detector too."""
    recipe = run.recipe
    if not whole:
        return Exported(file, recipe.trunk)
    assert isinstance(recipe, FinetuneRecipe)
    keypoints = len(skeleton_of(run.path).names)
    sizes = (recipe.min_size[-1], recipe.max_size)
    return Exported(file, recipe.trunk, recipe.detector, run.classes, keypoints, sizes, recipe.freeze)


def _with_imports(code: Callable[[Exported], list[str]]) -> Callable[[Exported], str]:
    return lambda facts: "\n".join(["import math", "import torch, torchvision", *code(facts)])


def to_torchvision_backbone(run: Run, file: str) -> Export:
    """The body in the names of torchvision's (or timm's) classifiers."""
    body, trunk, facts = body_tensors(run), run.recipe.trunk, _facts(run, file)
    if trunk.backbone.startswith("timm:"):
        about = f"{trunk.backbone} of {run.path}, in timm's names."
        library = Library("timm", "timm", C5, "C5")
        return Export(of_tensors(timm.from_torchvision(body, trunk)), about, facts, timm.how_to_load, library)
    about = f"{trunk.backbone} of {run.path}, in the names of torchvision.models.{trunk.backbone}."
    lines = _with_imports(torchvision.backbone_code)
    return Export(of_tensors(body), about, facts, lines, Library("torchvision", None, C5, "C5"))


def to_torchvision_detector(run: Run, file: str) -> Export:
    """The detector in torchvision's names; of a pretraining the parts that it trained, and the others stay new."""
    recipe = run.recipe
    _check_torchvision(run, recipe)
    if isinstance(recipe, PretrainRecipe):
        about = (
            f"The pretrained parts of {run.path}, in the names of torchvision's FasterRCNN; the other parts are new."
        )
        library = Library("torchvision", None, "model.backbone(x).values()", "pyramid")
        lines = _with_imports(torchvision.pretrained_code)
        return Export(of_tensors(trunk_tensors(run)), about, _facts(run, file), lines, library)
    tensors, classes, recipe = detector_tensors(run)
    one_stage = isinstance(recipe.detector, RetinaNetConfig | FCOSConfig)
    lines = _with_imports(torchvision.one_stage_code if one_stage else torchvision.detector_code)
    about = (
        f"The detector of {run.path}, in the names of torchvision's {torchvision.CLASSES[type(recipe.detector)]}.\n"
        "Its labels: " + numbered(classes if one_stage else ("background", *classes), 0)
    )
    return Export(of_tensors(tensors), about, _facts(run, file, True), lines, Library("torchvision"))


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
    write = of_tensors(timm.from_torchvision(body_tensors(run), trunk))
    return Export(write, about, _facts(run, file), timm.how_to_load, Library("timm", "timm", C5, "C5"))


def to_safetensors(run: Run, file: str) -> Export:
    """All weights as they are."""
    about = f"All weights of {run.path}, in torchvision's names (backbone.body.* is the body)."
    lines = f"from safetensors.torch import load_file\n\ntensors = load_file({file!r})"
    return Export(of_tensors(read_tensors(run.weights)), about, _facts(run, file), lambda _: lines, None)


def to_detectron2(run: Run, file: str) -> Export:
    """A .pkl for Detectron2."""
    tensors, facts, part = _toolbox_tensors(run, "detectron2", file)
    named, left = detectron2.from_torchvision(tensors)
    assert not left, left
    about = f"{part} of {run.path}, in Detectron2's names." + _last_row(facts)
    library = Library("Detectron2", "detectron2")
    if facts.detector is None:
        pyramid = any(".fpn." in key for key in tensors)
        maps = "model.backbone" if pyramid or facts.trunk.neck == "c4" else "model.backbone.bottom_up"
        library = Library("Detectron2", "detectron2", f"{maps}(x).values()", "pyramid" if pyramid else "body")
    write = of_bytes(detectron2.pickled(named), f"{len(named)} tensors ({part.lower()})")
    return Export(write, about, facts, detectron2.how_to_load, library)


def to_mmdetection(run: Run, file: str) -> Export:
    """A .pth for MMDetection 3."""
    tensors, facts, part = _toolbox_tensors(run, "mmdetection", file)
    if facts.trunk.norm == "group" and isinstance(facts.detector, RetinaNetConfig):
        raise UserError(
            f"run {run.path}: MMDetection has norms behind P6 and P7, which group norms cannot stand in for; "
            "export it with --to detectron2, or its body with --to torchvision-backbone"
        )
    bare = not any(key.startswith(BODY) for key in tensors)
    named, left = mmdetection.from_torchvision({BODY + k: v for k, v in tensors.items()} if bare else tensors)
    assert not left, left
    about = f"{part} of {run.path}, in the names of MMDetection 3." + _last_row(facts)
    library = Library("MMDetection", "mmdet")
    if facts.detector is None:
        maps = "[model.backbone(x)[2]]" if facts.trunk.neck == "c4" else "model.backbone(x)"
        whole = Library("MMDetection", "mmdet", "model.extract_feat(x)", "pyramid")
        library = Library("MMDetection", "mmdet", maps, "body") if bare else whole
    lines = mmdetection.how_to_load_body if bare else mmdetection.how_to_load
    write = of_bytes(mmdetection.saved(named, facts.classes), f"{len(named)} tensors ({part.lower()})")
    return Export(write, about, facts, lines, library)


def _last_row(facts: Exported) -> str:
    return f"\nIts labels: {numbered(facts.classes, 0)}; background is the last row." if facts.classes else ""


def _toolbox_tensors(run: Run, library: str, file: str) -> tuple[dict[str, Tensor], Exported, str]:
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
        tensors, _, recipe = detector_tensors(run)
        return tensors, _facts(run, file, True), f"The whole {recipe.detector.kind}"
    tensors = trunk_tensors(run)
    has_fpn = isinstance(recipe, PretrainRecipe) and trunk.neck in ("fpn", "fpn_p3")
    if has_fpn and not all(key.startswith(BODY) for key in tensors):
        return tensors, _facts(run, file), "The pretrained trunk"
    return body_tensors(run), _facts(run, file), "The backbone alone"


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
    facts = _facts(run, file, True)

    def write(path: Path) -> str:
        path.mkdir(exist_ok=True)
        return f"{transformers.save(path, tensors, facts)} tensors with configuration and image processor"

    about = f"The {kind} of {run.path}, for transformers.\nIts labels: {numbered(classes, 0)}"
    return Export(write, about, facts, transformers.how_to_load, Library("transformers"))


def to_onnx(run: Run, file: str) -> Export:
    """A whole detector, from image to boxes."""
    detector, classes, recipe = load_detector(run.path)
    if recipe.detector.targets == "classes":
        taken = [kind for kind, config in DETECTORS.items() if config.targets != "classes"]
        raise UserError(f"run {run.path}: is a {recipe.detector.kind}; --to onnx takes {', '.join(taken)}")
    onnx.require()
    facts = _facts(run, file, True)
    assert isinstance(recipe.detector, BoxDetectorConfig)
    kept = {
        "shorter_side_px": facts.sizes[0],
        "longest_side_px": facts.sizes[1],
        "mean": facts.trunk.mean,
        "std": facts.trunk.std,
        "score_threshold": recipe.detector.score_threshold,
        "detections": recipe.detector.detections,
    }

    def write(path: Path) -> str:
        names = onnx.export(path, detector, classes, kept)
        apart = onnx.difference(path, detector)
        if not apart <= compared.LIMIT:
            raise UserError(
                f"run {run.path}: onnxruntime finds something else than boxless in drawn images (apart by {apart:.0e}, "
                f"expected at most {compared.LIMIT:.0e}), so nothing was written"
            )
        return f"image -> {', '.join(names)}; in drawn images of {len(onnx.pictures())} sizes apart by {apart:.0e}"

    about = (
        f"The {recipe.detector.kind} of {run.path}, whole, with normalisation, threshold and NMS. Images are resized "
        f"before, keeping their shape: shorter side {facts.sizes[0]} px, longest {facts.sizes[1]} px.\n"
        f"Its labels: {numbered(classes, 1)}\n"
        f"The file's metadata holds these too, as JSON: classes, first_label, input, {', '.join(kept)}."
    )
    return Export(write, about, facts, onnx.how_to_load, Library("ONNX Runtime"), keeps_threshold=True)


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
