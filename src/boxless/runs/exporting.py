"""What a run trained, as other libraries take it, and the lines of Python that load it there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from boxless.detectors.bodies import RESNETS
from boxless.detectors.trunk import TrunkConfig
from boxless.detectors.two_stage import DetectorConfig
from boxless.errors import UserError
from boxless.interop import detectron2, mmdetection, onnx, timm, torchvision, transformers
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.detecting import load_detector, open_run, skeleton_of

BODY = "backbone.body."
HEAD = "box_head.layer4."
LICENCE = """\
The weights are yours: boxless is under the Apache License 2.0 and claims nothing in what it trained. The images and the
weights that this training started from may have terms of their own."""

_WHOLE = {
    "detectron2": ("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet"),
    "mmdetection": ("faster_rcnn", "mask_rcnn", "retinanet"),
}


@dataclass(frozen=True)
class Export:
    """Weights for another library.

    Attributes:
        write: puts them at a path and returns what to say of it.
        text: how they are loaded there.
    """

    write: Callable[[Path], str]
    text: str


def export_run(where: str, path: Path, to: str) -> Export:
    """A run's weights as another library takes them; `MAKERS` has the names.

    Args:
        where: the run's folder.
        path: that the file, or the folder, will have.
        to: which library.

    Raises:
        UserError: where the run has no weights, or that library no place for them.
    """
    return MAKERS[to](where, path.name)


def backbone(where: str, file: str) -> tuple[dict[str, Tensor], str]:
    """The body of a run's weights in the names of torchvision's (or timm's) classifiers, and how to load it, as text.

    Args:
        where: the run's folder.
        file: name that the weights will have, for the text.

    Raises:
        UserError: where the run has no weights.
    """
    body, trunk = _body(where)
    if trunk.backbone.startswith("timm:"):
        code = ["import math", "import torch, torchvision", *timm.how_to_load(trunk, file).split("\n")[1:]]
        return timm.from_torchvision(body, trunk), _text(f"{trunk.backbone} of {where}, in timm's names.", trunk, code)
    code = ["import math", "import torch, torchvision", *torchvision.backbone_code(trunk, file)]
    about = f"{trunk.backbone} of {where}, in the names of torchvision.models.{trunk.backbone}."
    return body, _text(about, trunk, code)


def detector(where: str, file: str) -> tuple[dict[str, Tensor], str]:
    """A run's weights in the names of torchvision's detectors, and the text that says how to load them.

    Of a pretraining run these are the parts that it trained; the detector's other parts stay new.

    Args:
        where: the run's folder.
        file: name that the weights will have, for the text.

    Raises:
        UserError: where the run has no weights, or torchvision no such detector.
    """
    run, recipe = open_run(where)
    _check_torchvision(where, recipe)
    start = ["import math", "import torch, torchvision"]
    if isinstance(recipe, PretrainRecipe):
        about = f"The pretrained parts of {where}, in the names of torchvision's FasterRCNN; the other parts are new."
        code = [*start, *torchvision.pretrained_code(recipe.trunk, file)]
        return _trunk_tensors(run.weights), _text(about, recipe.trunk, code)
    tensors, classes, recipe = _detector(where)
    one_stage = recipe.trunk.neck == "fpn_p3"
    names = classes if one_stage else ("background", *classes)
    about = (
        f"The detector of {where}, in the names of torchvision's {torchvision.KINDS[recipe.detector.kind]}.\n"
        "Its labels: " + _listed(names, 0)
    )
    sizes = (recipe.min_size[-1], recipe.max_size)
    if one_stage:
        code = torchvision.one_stage_code(recipe.trunk, recipe.detector, sizes, len(classes), file)
    else:
        keypoints = len(skeleton_of(run.path).names)
        code = torchvision.detector_code(recipe.trunk, recipe.detector, sizes, len(classes) + 1, keypoints, file)
    return tensors, _text(about, recipe.trunk, [*start, *code])


def write(path: Path, export: Export) -> tuple[str, Path]:
    """Write weights and the text on how to load them, whole or not at all.

    The text lies beside a file as NAME.README.txt, and in a folder as README.txt.

    Returns:
        What to say of the weights, and the text's path.

    Raises:
        UserError: where a folder is not empty.
    """
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"out {path}: is a folder with files in it; name an empty or a new one")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    said = export.write(partial)
    partial.replace(path)
    readme = path / "README.txt" if path.is_dir() else path.with_suffix(".README.txt")
    partial = readme.with_name(readme.name + ".partial")
    partial.write_text(export.text)
    partial.replace(readme)
    return said, readme


def _body(where: str) -> tuple[dict[str, Tensor], TrunkConfig]:
    """A run's body, in torchvision's or timm's names for a classifier, timm's behind `model.`."""
    run, recipe = open_run(where)
    tensors = read_tensors(run.weights)
    body = {key.removeprefix(BODY): value for key, value in tensors.items() if key.startswith(BODY)}
    if recipe.trunk.neck == "c4":  # its box head is the ResNet's last stage
        body |= {f"layer4.{key.partition(HEAD)[2]}": value for key, value in tensors.items() if HEAD in key}
    if not body:
        raise UserError(f"{run.weights}: has no tensors {BODY}*; expected the weights that boxless wrote")
    return body, recipe.trunk


def _trunk_tensors(weights: Path) -> dict[str, Tensor]:
    named = read_tensors(weights).items()
    return {f"roi_heads.{key}" if key.startswith("box_head.") else key: value for key, value in named}


def _detector(where: str) -> tuple[dict[str, Tensor], tuple[str, ...], FinetuneRecipe]:
    trained, classes, recipe = load_detector(where)
    tensors = trained.state_dict()
    return {key: value for key, value in tensors.items() if key != "head.positives"}, classes, recipe  # of the loss


def _check_torchvision(where: str, recipe: PretrainRecipe | FinetuneRecipe) -> None:
    trunk, body = recipe.trunk, "export its body with --to torchvision-backbone"
    if trunk.neck == "transformer":
        raise UserError(f"run {where}: torchvision has no DETR; export its ResNet with --to torchvision-backbone")
    if trunk.neck == "hybrid":
        raise UserError(f"run {where}: torchvision has no RT-DETR; {body}")
    if trunk.neck == "c4" or trunk.backbone not in RESNETS:
        name = "C4" if trunk.neck == "c4" else trunk.backbone
        raise UserError(
            f"run {where}: torchvision has no such detectors on {name}; export its backbone with "
            "--to torchvision-backbone"
        )
    if isinstance(recipe, FinetuneRecipe) and recipe.detector.kind == "sparse_rcnn":
        raise UserError(f"run {where}: torchvision has no Sparse R-CNN; {body}")
    if isinstance(recipe, FinetuneRecipe) and recipe.detector.kind == "fcn":
        raise UserError(
            f"run {where}: torchvision's FCN has another head; export the body with --to torchvision-backbone"
        )
    if isinstance(recipe, PretrainRecipe) and trunk.neck in ("fpn_p3", "none"):
        raise UserError(f"run {where}: trained no detector's parts; {body}")


def _to_torchvision_backbone(where: str, file: str) -> Export:
    return _safetensors(*backbone(where, file))


def _to_torchvision_detector(where: str, file: str) -> Export:
    return _safetensors(*detector(where, file))


def _to_timm(where: str, file: str) -> Export:
    body, trunk = _body(where)
    text = _text(f"{trunk.backbone} of {where}, in timm's names.", trunk, [timm.how_to_load(trunk, file)])
    return _safetensors(timm.from_torchvision(body, trunk), text)


def _to_safetensors(where: str, file: str) -> Export:
    run, recipe = open_run(where)
    about = f"All weights of {where}, in torchvision's names (backbone.body.* is the body)."
    code = ["from safetensors.torch import load_file", "", f'tensors = load_file("{file}")']
    return _safetensors(read_tensors(run.weights), _text(about, recipe.trunk, code))


def _to_detectron2(where: str, file: str) -> Export:
    tensors, trunk, config, classes, note = _for_toolbox(where, "detectron2")
    named, left = detectron2.from_torchvision(tensors)
    assert not left, left
    keypoints = len(skeleton_of(where).names) if config else 0
    code = detectron2.how_to_load(trunk, config, len(classes), keypoints, file)
    about = f"{note} of {where}, in Detectron2's names."
    about += f"\nIts labels: {_listed(classes, 0)}; background is the last row." if classes else ""
    about += "\nBoxes may differ by parts of a pixel: torchvision rounds its anchors, Detectron2 does not." * bool(
        config
    )
    return _bytes(detectron2.pickled(named), f"{len(named)} tensors ({note.lower()})", _text(about, trunk, [code]))


def _to_mmdetection(where: str, file: str) -> Export:
    tensors, trunk, config, classes, note = _for_toolbox(where, "mmdetection")
    if trunk.norm == "group" and config and config.kind == "retinanet":
        raise UserError(
            f"run {where}: MMDetection has norms behind P6 and P7, which group norms cannot stand in for; "
            "export it with --to detectron2, or its body with --to torchvision-backbone"
        )
    bare = not any(key.startswith(BODY) for key in tensors)
    named, left = mmdetection.from_torchvision({BODY + k: v for k, v in tensors.items()} if bare else tensors)
    assert not left, left
    about = f"{note} of {where}, in the names of MMDetection 3."
    about += f"\nIts labels: {_listed(classes, 0)}; background is the last row." if classes else ""
    load, load_body = mmdetection.how_to_load, mmdetection.how_to_load_body
    code = load_body(trunk, file) if bare else load(trunk, config, len(classes), file)
    said = f"{len(named)} tensors ({note.lower()})"
    return _bytes(mmdetection.saved(named, classes), said, _text(about, trunk, [code]))


def _for_toolbox(
    where: str, library: str
) -> tuple[dict[str, Tensor], TrunkConfig, DetectorConfig | None, tuple[str, ...], str]:
    """What Detectron2 or MMDetection has names for: tensors in torchvision's, and what they are, for people."""
    run, recipe = open_run(where)
    trunk = recipe.trunk
    if trunk.backbone not in RESNETS:
        raise UserError(f"run {where}: {library} names no {trunk.backbone}; export it with --to torchvision-backbone")
    if isinstance(recipe, FinetuneRecipe) and recipe.detector.kind in _WHOLE[library]:
        tensors, classes, recipe = _detector(where)
        return tensors, trunk, recipe.detector, classes, f"The whole {recipe.detector.kind}"
    tensors = _trunk_tensors(run.weights)
    parts = isinstance(recipe, PretrainRecipe) and trunk.neck in ("fpn", "fpn_p3")
    if parts and not all(key.startswith(BODY) for key in tensors):
        return tensors, trunk, None, (), "The pretrained trunk"
    body, _ = _body(where)
    return body, trunk, None, (), "The backbone alone"


def _to_transformers(where: str, file: str) -> Export:
    tensors, classes, recipe = _detector(where)
    kind, trunk = recipe.detector.kind, recipe.trunk
    if kind not in ("detr", "rt_detr"):
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

    about = f"The {kind} of {where}, for transformers.\nIts labels: {_listed(classes, 0)}"
    return Export(make, _text(about, trunk, [transformers.how_to_load(recipe.detector, file)]))


def _to_onnx(where: str, file: str) -> Export:
    trained, classes, recipe = load_detector(where)
    if recipe.detector.kind not in onnx.KINDS:
        raise UserError(f"run {where}: is a {recipe.detector.kind}; --to onnx takes {', '.join(onnx.KINDS)}")
    onnx.require()

    def make(path: Path) -> str:
        names = onnx.export(path, trained, classes)
        found = onnx.difference(path, trained)
        return f"image -> {', '.join(names)}; onnxruntime finds the same to {found:.0e} (relative)"

    about = (
        f"The {recipe.detector.kind} of {where}, whole, with normalisation. Images keep their size, so resize them as "
        f"in training: shorter side {recipe.min_size[-1]} px, longest {recipe.max_size} px.\n"
        f"Its labels: {_listed(classes, 1)}"
    )
    return Export(make, _text(about, recipe.trunk, [onnx.how_to_load(file)]))


def _safetensors(tensors: dict[str, Tensor], text: str) -> Export:
    content = save({key: value.contiguous() for key, value in tensors.items()}, metadata={"format": "pt"})
    return _bytes(content, f"{len(tensors)} tensors", text)


def _bytes(content: bytes, said: str, text: str) -> Export:
    def make(path: Path) -> str:
        path.write_bytes(content)
        return said

    return Export(make, text)


def _listed(classes: tuple[str, ...], first: int) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(classes, first))


def _text(about: str, trunk: TrunkConfig, code: list[str]) -> str:
    seen = f"It has seen RGB in 0..1, minus {list(trunk.mean)}, divided by {list(trunk.std)}."
    return "\n".join([about, seen, LICENCE, "", *code, ""])


MAKERS: dict[str, Callable[[str, str], Export]] = {
    "torchvision-backbone": _to_torchvision_backbone,
    "torchvision-detector": _to_torchvision_detector,
    "timm": _to_timm,
    "detectron2": _to_detectron2,
    "mmdetection": _to_mmdetection,
    "transformers": _to_transformers,
    "safetensors": _to_safetensors,
    "onnx": _to_onnx,
}
