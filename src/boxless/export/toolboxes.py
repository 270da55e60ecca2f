"""Exports to Detectron2, MMDetection, transformers and ONNX: what of a run they have names for, and its settings."""

from pathlib import Path

from torch import Tensor

from boxless.detectors.all import DETECTORS
from boxless.detectors.backbones import RESNETS
from boxless.detectors.detector import DetectorConfig
from boxless.detectors.one_stage import RetinaNetConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.errors import UserError
from boxless.export.files import Export, listed, of_bytes, text_of
from boxless.export.tensors import BODY, body_of, detector_of, trunk_of_file
from boxless.interop import detectron2, mmdetection, onnx, transformers
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.tasks.detect import load_detector, open_run, skeleton_of

_WHOLE = {"detectron2": detectron2.CONFIGS.keys(), "mmdetection": mmdetection.CONFIGS.keys()}


def to_detectron2(where: str, file: str) -> Export:
    """A .pkl for Detectron2; raises as `export_run` does."""
    tensors, trunk, config, classes, note = _for_toolbox(where, "detectron2")
    named, left = detectron2.from_torchvision(tensors)
    assert not left, left
    keypoints = len(skeleton_of(where).names) if config else 0
    code = detectron2.how_to_load(trunk, config, len(classes), keypoints, file)
    about = f"{note} of {where}, in Detectron2's names."
    about += f"\nIts labels: {listed(classes, 0)}; background is the last row." if classes else ""
    about += "\nBoxes may differ by parts of a pixel: torchvision rounds its anchors, Detectron2 does not." * bool(
        config
    )
    return of_bytes(detectron2.pickled(named), f"{len(named)} tensors ({note.lower()})", text_of(about, trunk, [code]))


def to_mmdetection(where: str, file: str) -> Export:
    """A .pth for MMDetection 3; raises as `export_run` does."""
    tensors, trunk, config, classes, note = _for_toolbox(where, "mmdetection")
    if trunk.norm == "group" and isinstance(config, RetinaNetConfig):
        raise UserError(
            f"run {where}: MMDetection has norms behind P6 and P7, which group norms cannot stand in for; "
            "export it with --to detectron2, or its body with --to torchvision-backbone"
        )
    bare = not any(key.startswith(BODY) for key in tensors)
    named, left = mmdetection.from_torchvision({BODY + k: v for k, v in tensors.items()} if bare else tensors)
    assert not left, left
    about = f"{note} of {where}, in the names of MMDetection 3."
    about += f"\nIts labels: {listed(classes, 0)}; background is the last row." if classes else ""
    load, load_body = mmdetection.how_to_load, mmdetection.how_to_load_body
    code = load_body(trunk, file) if bare else load(trunk, config, len(classes), file)
    said = f"{len(named)} tensors ({note.lower()})"
    return of_bytes(mmdetection.saved(named, classes), said, text_of(about, trunk, [code]))


def _for_toolbox(
    where: str, library: str
) -> tuple[dict[str, Tensor], TrunkConfig, DetectorConfig | None, tuple[str, ...], str]:
    """Tensors for which Detectron2 or MMDetection has names, in torchvision's, and a description of them."""
    run, recipe = open_run(where)
    trunk = recipe.trunk
    if trunk.backbone not in RESNETS:
        raise UserError(f"run {where}: {library} names no {trunk.backbone}; export it with --to torchvision-backbone")
    if trunk.neck == "c4" and trunk.backbone in ("resnet18", "resnet34"):
        raise UserError(
            f"run {where}: {library}'s detectors on C4 have the last stage of a resnet50 or a larger one for a head, "
            f"this is {trunk.backbone}; export its body with --to torchvision-backbone, a whole detector with --to onnx"
        )
    if isinstance(recipe, FinetuneRecipe) and type(recipe.detector) in _WHOLE[library]:
        tensors, classes, recipe = detector_of(where)
        return tensors, trunk, recipe.detector, classes, f"The whole {recipe.detector.kind}"
    tensors = trunk_of_file(run.weights)
    parts = isinstance(recipe, PretrainRecipe) and trunk.neck in ("fpn", "fpn_p3")
    if parts and not all(key.startswith(BODY) for key in tensors):
        return tensors, trunk, None, (), "The pretrained trunk"
    body, _ = body_of(where)
    return body, trunk, None, (), "The backbone alone"


def to_transformers(where: str, file: str) -> Export:
    """A folder for transformers; raises as `export_run` does."""
    tensors, classes, recipe = detector_of(where)
    kind, trunk = recipe.detector.kind, recipe.trunk
    if type(recipe.detector) not in transformers.MODELS:
        raise UserError(f"run {where}: is a {kind}; --to transformers takes detr and rt_detr")
    if trunk.backbone not in RESNETS or trunk.norm == "group":
        raise UserError(
            f"run {where}: transformers' {kind} is written on ResNets with batch norms, this is {trunk.backbone} with "
            f"norm {trunk.norm}; export its body with --to torchvision-backbone"
        )
    sizes = (recipe.min_size[-1], recipe.max_size)

    def make(path: Path) -> str:
        path.mkdir(exist_ok=True)
        count = transformers.save(path, tensors, trunk, recipe.detector, classes, sizes)
        return f"{count} tensors with configuration and image processor"

    about = f"The {kind} of {where}, for transformers.\nIts labels: {listed(classes, 0)}"
    return Export(make, text_of(about, trunk, [transformers.how_to_load(recipe.detector, file)]))


def to_onnx(where: str, file: str) -> Export:
    """A whole detector in ONNX; raises as `export_run` does."""
    trained, classes, recipe = load_detector(where)
    if recipe.detector.targets == "classes":
        taken = [kind for kind, each in DETECTORS.items() if each.targets != "classes"]
        raise UserError(f"run {where}: is a {recipe.detector.kind}; --to onnx takes {', '.join(taken)}")
    onnx.require()

    def make(path: Path) -> str:
        names = onnx.export(path, trained, classes)
        found = onnx.difference(path, trained)
        return f"image -> {', '.join(names)}; onnxruntime finds the same to {found:.0e} (relative)"

    about = (
        f"The {recipe.detector.kind} of {where}, whole, with normalisation. Images keep their size, so resize them as "
        f"in training: shorter side {recipe.min_size[-1]} px, longest {recipe.max_size} px.\n"
        f"Its labels: {listed(classes, 1)}"
    )
    return Export(make, text_of(about, recipe.trunk, [onnx.how_to_load(file)]))
