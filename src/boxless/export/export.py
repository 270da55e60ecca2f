"""Export of trained weights for other libraries, with the lines of Python that load them there."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from boxless.detectors.backbones import RESNETS
from boxless.detectors.one_stage import FCOSConfig, RetinaNetConfig
from boxless.detectors.sparse_rcnn import SparseRCNNConfig
from boxless.detectors.two_stage import TwoStageConfig
from boxless.errors import UserError
from boxless.export.files import Export, listed, of_tensors, text_of
from boxless.export.tensors import body_of, detector_of, trunk_of_file
from boxless.export.toolboxes import to_detectron2, to_mmdetection, to_onnx, to_transformers
from boxless.interop import timm, torchvision
from boxless.interop.files import read_tensors
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.tasks.detect import open_run, skeleton_of


def export_run(where: str, path: Path, to: str) -> Export:
    """A run's weights as another library takes them; `MAKERS` has the names.

    Args:
        where: the run's folder.
        path: path of the new file or folder.
        to: which library.

    Raises:
        UserError: if the run has no weights, or that library no place for them.
    """
    return MAKERS[to](where, path.name)


def backbone(where: str, file: str) -> tuple[dict[str, Tensor], str]:
    """The body of a run's weights in the names of torchvision's (or timm's) classifiers, and how to load it, as text.

    Args:
        where: the run's folder.
        file: name that the weights will have, for the text.

    Raises:
        UserError: if the run has no weights.
    """
    body, trunk = body_of(where)
    if trunk.backbone.startswith("timm:"):
        code = ["import math", "import torch, torchvision", *timm.how_to_load(trunk, file).split("\n")[1:]]
        about = f"{trunk.backbone} of {where}, in timm's names."
        return timm.from_torchvision(body, trunk), text_of(about, trunk, code)
    code = ["import math", "import torch, torchvision", *torchvision.backbone_code(trunk, file)]
    about = f"{trunk.backbone} of {where}, in the names of torchvision.models.{trunk.backbone}."
    return body, text_of(about, trunk, code)


def detector(where: str, file: str) -> tuple[dict[str, Tensor], str]:
    """A run's weights in the names of torchvision's detectors, and the text that says how to load them.

    Of a pretraining run these are the parts that it trained; the detector's other parts stay new.

    Args:
        where: the run's folder.
        file: name that the weights will have, for the text.

    Raises:
        UserError: if the run has no weights, or torchvision no such detector.
    """
    run, recipe = open_run(where)
    _check_torchvision(where, recipe)
    start = ["import math", "import torch, torchvision"]
    if isinstance(recipe, PretrainRecipe):
        about = f"The pretrained parts of {where}, in the names of torchvision's FasterRCNN; the other parts are new."
        code = [*start, *torchvision.pretrained_code(recipe.trunk, file)]
        return trunk_of_file(run.weights), text_of(about, recipe.trunk, code)
    tensors, classes, recipe = detector_of(where)
    one_stage = isinstance(recipe.detector, RetinaNetConfig | FCOSConfig)
    names = classes if one_stage else ("background", *classes)
    about = (
        f"The detector of {where}, in the names of torchvision's {torchvision.CLASSES[type(recipe.detector)]}.\n"
        "Its labels: " + listed(names, 0)
    )
    sizes = (recipe.min_size[-1], recipe.max_size)
    if isinstance(recipe.detector, RetinaNetConfig | FCOSConfig):
        code = torchvision.one_stage_code(recipe.trunk, recipe.detector, sizes, len(classes), file)
    else:
        assert isinstance(recipe.detector, TwoStageConfig)
        keypoints = len(skeleton_of(run.path).names)
        code = torchvision.detector_code(recipe.trunk, recipe.detector, sizes, len(classes) + 1, keypoints, file)
    return tensors, text_of(about, recipe.trunk, [*start, *code])


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
    if isinstance(recipe, FinetuneRecipe) and isinstance(recipe.detector, SparseRCNNConfig):
        raise UserError(f"run {where}: torchvision has no Sparse R-CNN; {body}")
    if isinstance(recipe, FinetuneRecipe) and recipe.detector.targets == "classes":
        raise UserError(
            f"run {where}: torchvision's FCN has another head; export the body with --to torchvision-backbone"
        )
    if isinstance(recipe, PretrainRecipe) and trunk.neck in ("fpn_p3", "none"):
        raise UserError(f"run {where}: trained no detector's parts; {body}")


def _to_torchvision_backbone(where: str, file: str) -> Export:
    return of_tensors(*backbone(where, file))


def _to_torchvision_detector(where: str, file: str) -> Export:
    return of_tensors(*detector(where, file))


def _to_timm(where: str, file: str) -> Export:
    body, trunk = body_of(where)
    text = text_of(f"{trunk.backbone} of {where}, in timm's names.", trunk, [timm.how_to_load(trunk, file)])
    return of_tensors(timm.from_torchvision(body, trunk), text)


def _to_safetensors(where: str, file: str) -> Export:
    run, recipe = open_run(where)
    about = f"All weights of {where}, in torchvision's names (backbone.body.* is the body)."
    code = ["from safetensors.torch import load_file", "", f'tensors = load_file("{file}")']
    return of_tensors(read_tensors(run.weights), text_of(about, recipe.trunk, code))


MAKERS: dict[str, Callable[[str, str], Export]] = {
    "torchvision-backbone": _to_torchvision_backbone,
    "torchvision-detector": _to_torchvision_detector,
    "timm": _to_timm,
    "detectron2": to_detectron2,
    "mmdetection": to_mmdetection,
    "transformers": to_transformers,
    "safetensors": _to_safetensors,
    "onnx": to_onnx,
}
