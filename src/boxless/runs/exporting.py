"""What a run trained, in torchvision's names, and the lines of Python that load it there."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from boxless.detectors.bodies import RESNETS
from boxless.detectors.one_stage import retinanet_sizes
from boxless.detectors.trunk import TrunkConfig
from boxless.errors import UserError
from boxless.interop.weights import read_tensors
from boxless.recipes.schema import FinetuneRecipe, PretrainRecipe
from boxless.runs.detecting import load_detector, open_run, skeleton_of

BODY = "backbone.body."
HEAD = "box_head.layer4."

_KINDS = {
    "faster_rcnn": "FasterRCNN",
    "mask_rcnn": "MaskRCNN",
    "keypoint_rcnn": "KeypointRCNN",
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
}

_NORMS = {
    "batch": "torch.nn.BatchNorm2d",
    "sync": "torch.nn.BatchNorm2d",
    "frozen": "torchvision.ops.FrozenBatchNorm2d",
    "group": "lambda channels: torch.nn.GroupNorm(math.gcd(32, channels), channels)",
}


def backbone(where: str, file: str) -> tuple[dict[str, Tensor], str]:
    """The body of a run's weights in the names of torchvision's (or timm's) classifiers, and how to load it, as text.

    Args:
        where: the run's folder.
        file: name that the weights will have, for the text.

    Raises:
        UserError: where the run has no weights.
    """
    run, recipe = open_run(where)
    tensors = read_tensors(run.weights)
    body = {key.removeprefix(BODY): value for key, value in tensors.items() if key.startswith(BODY)}
    if recipe.trunk.neck == "c4":  # its box head is the ResNet's last stage
        body |= {f"layer4.{key.partition(HEAD)[2]}": value for key, value in tensors.items() if HEAD in key}
    if not body:
        raise UserError(f"{run.weights}: has no tensors {BODY}*; expected the weights that boxless wrote")
    name = recipe.trunk.backbone
    if name.startswith("timm:"):
        body = {key.removeprefix("model."): value for key, value in body.items()}
        return body, _text(f"{name} of {where}, in timm's names.", recipe.trunk, _timm_code(recipe.trunk, file))
    classifier = {"swin_t": "head", "mobilenet_v2": "classifier"}.get(name, "fc")
    code = [
        *_start(recipe.trunk),
        f"model.{classifier} = torch.nn.Identity()  # a detector's body has no classifier",
        f'model.load_state_dict(load_file("{file}"))',
    ]
    return body, _text(f"{name} of {where}, in the names of torchvision.models.{name}.", recipe.trunk, code)


def detector(where: str, file: str) -> tuple[dict[str, Tensor], str]:
    """A run's weights in the names of torchvision's detectors, and the text that says how to load them.

    Of a pretraining run these are the parts that it trained; the detector's other parts stay new.

    Args:
        where: the run's folder.
        file: name that the weights will have, for the text.

    Raises:
        UserError: where the run has no weights.
    """
    run, recipe = open_run(where)
    if recipe.trunk.neck == "transformer":
        raise UserError(f"run {where}: torchvision has no DETR; export its ResNet with --to torchvision-backbone")
    if recipe.trunk.neck == "hybrid":
        raise UserError(f"run {where}: torchvision has no RT-DETR; export its body with --to torchvision-backbone")
    if recipe.trunk.neck == "c4" or recipe.trunk.backbone not in RESNETS:
        body = "C4" if recipe.trunk.neck == "c4" else recipe.trunk.backbone
        raise UserError(
            f"run {where}: torchvision has no such detectors on {body}; export its backbone with "
            "--to torchvision-backbone"
        )
    if isinstance(recipe, FinetuneRecipe) and recipe.detector.kind == "sparse_rcnn":
        raise UserError(f"run {where}: torchvision has no Sparse R-CNN; export its body with --to torchvision-backbone")
    if isinstance(recipe, FinetuneRecipe) and recipe.detector.kind == "fcn":
        raise UserError(
            f"run {where}: torchvision's FCN has another head; export the body with --to torchvision-backbone"
        )
    if isinstance(recipe, PretrainRecipe):
        if recipe.trunk.neck in ("fpn_p3", "none"):
            raise UserError(f"run {where}: trained no detector's parts; export its body with --to torchvision-backbone")
        tensors = {_in_detector(key): value for key, value in read_tensors(run.weights).items()}
        about = f"The pretrained parts of {where}, in the names of torchvision's FasterRCNN; the other parts are new."
        return tensors, _text(about, recipe.trunk, _pretrained_code(recipe.trunk, file))
    trained, classes, recipe = load_detector(where)
    one_stage = recipe.trunk.neck == "fpn_p3"
    names = classes if one_stage else ("background", *classes)
    about = (
        f"The detector of {where}, in the names of torchvision's {_KINDS[recipe.detector.kind]}.\n"
        "Its labels: " + ", ".join(f"{k} {name}" for k, name in enumerate(names))
    )
    if one_stage:
        code = _one_stage_code(recipe, len(classes), file)
    else:
        code = _detector_code(recipe, len(classes) + 1, len(skeleton_of(run.path).names), file)
    tensors = {key: value for key, value in trained.state_dict().items() if key != "head.positives"}  # of the loss
    return tensors, _text(about, recipe.trunk, code)


def write(path: Path, tensors: dict[str, Tensor], text: str) -> Path:
    """Write tensors as .safetensors and, beside it, the text; returns the text's path."""
    readme = path.with_suffix(".README.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({key: value.contiguous() for key, value in tensors.items()}, metadata={"format": "pt"})
    for target, data in ((path, content), (readme, text.encode())):
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(data)
        partial.replace(target)
    return readme


def _in_detector(key: str) -> str:
    return f"roi_heads.{key}" if key.startswith("box_head.") else key


def _text(about: str, trunk: TrunkConfig, code: list[str]) -> str:
    seen = f"It has seen RGB in 0..1, minus {list(trunk.mean)}, divided by {list(trunk.std)}."
    return "\n".join([about, seen, "", "import math", "import torch, torchvision", *code, ""])


def _timm_code(trunk: TrunkConfig, file: str) -> list[str]:
    grouped = ["from boxless.detectors.norms import convert_norms", 'convert_norms(model, "group", "this model")']
    return [
        "import timm",
        "from safetensors.torch import load_file",
        "",
        f'model = timm.create_model("{trunk.backbone.removeprefix("timm:")}", num_classes=0)',
        *(grouped if trunk.norm == "group" else []),
        f'missing, unexpected = model.load_state_dict(load_file("{file}"), strict=False)  # a body lacks the head',
        "assert not unexpected",
    ]


def _start(trunk: TrunkConfig) -> list[str]:
    return [
        "from safetensors.torch import load_file",
        "",
        f"norm = {_NORMS[trunk.norm]}",
        f"model = torchvision.models.{trunk.backbone}({'' if trunk.backbone == 'swin_t' else 'norm_layer=norm'})",
    ]


def _one_stage_code(recipe: FinetuneRecipe, classes: int, file: str) -> list[str]:
    trunk, settings, retinanet = recipe.trunk, recipe.detector, recipe.detector.kind == "retinanet"
    into_p6 = "widths[-1]" if retinanet else str(trunk.fpn_channels)
    anchors = f"AnchorGenerator({retinanet_sizes(settings)}, ((0.5, 1.0, 2.0),) * 5)"
    return [
        "from torchvision.models.detection import FCOS, RetinaNet",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
        "from torchvision.ops.feature_pyramid_network import LastLevelP6P7",
        *_start(trunk),
        'levels = {"layer2": "0", "layer3": "1", "layer4": "2"}',
        "widths = [model.inplanes // 4, model.inplanes // 2, model.inplanes]",
        f"extra = LastLevelP6P7({into_p6}, {trunk.fpn_channels})",
        f"backbone = BackboneWithFPN(model, levels, widths, {trunk.fpn_channels}, extra, norm)",
        f"model = {_KINDS[settings.kind]}(",
        "    backbone,",
        f"    {classes},",
        *([f"    anchor_generator={anchors},"] if retinanet else []),
        f"    score_thresh={settings.score_threshold},",
        f"    detections_per_img={settings.detections},",
        *(f"    {option}," for option in _sizes(recipe)),
        ")",
        f'model.load_state_dict(load_file("{file}"))',
    ]


def _sizes(recipe: FinetuneRecipe) -> list[str]:
    return [
        f"image_mean={list(recipe.trunk.mean)}",
        f"image_std={list(recipe.trunk.std)}",
        f"min_size={recipe.min_size[-1]}",
        f"max_size={recipe.max_size}",
    ]


def _parts(trunk: TrunkConfig) -> list[str]:
    """Lines that build `backbone` and `box_head`."""
    width, head = trunk.fpn_channels, trunk.box_head_width
    box_head = {
        "4conv1fc": f"FastRCNNConvFCHead(({width}, 7, 7), [{width}] * 4, [{head}], norm)",
        "2fc": f"TwoMLPHead({width} * 49, {head})",
    }
    return [
        "from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN",
        "from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead",
        "from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor",
        "from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor",
        *_start(trunk),
        'levels = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}',
        "widths = [model.inplanes // 8, model.inplanes // 4, model.inplanes // 2, model.inplanes]",
        f"backbone = BackboneWithFPN(model, levels, widths, {width}, norm_layer=norm)",
        f"box_head = {box_head[trunk.box_head]}",
    ]


_POOLING = (
    "# boxless pools with half-pixel alignment (Detectron2's ROIAlignV2) and torchvision without. For the very same",
    "# numbers add box_roi_pool=RoIPool() (and, with keypoints, keypoint_roi_pool=RoIPool(14)), after",
    "# `from boxless.detectors.trunk import RoIPool`.",
)


def _pretrained_code(trunk: TrunkConfig, file: str) -> list[str]:
    return [
        *_parts(trunk),
        "classes = 91  # yours, background included",
        *_POOLING,
        f"box_predictor = FastRCNNPredictor({trunk.box_head_width}, classes)",
        "model = FasterRCNN(backbone, box_head=box_head, box_predictor=box_predictor)",
        f'missing, unexpected = model.load_state_dict(load_file("{file}"), strict=False)',
        "assert not unexpected",
    ]


def _detector_code(recipe: FinetuneRecipe, classes: int, keypoints: int, file: str) -> list[str]:
    """The constructor with what differs from torchvision's defaults at test; sizes of training are left out."""
    trunk, width, settings = recipe.trunk, recipe.trunk.fpn_channels, recipe.detector
    proposals = max(settings.rpn_proposals // 2, settings.detections)
    options = [
        f"rpn_anchor_generator=AnchorGenerator({tuple((s,) for s in settings.anchor_sizes)}, ((0.5, 1.0, 2.0),) * 5)",
        f"rpn_pre_nms_top_n_test={proposals}",
        f"rpn_post_nms_top_n_test={proposals}",
        "box_head=box_head",
        f"box_predictor=FastRCNNPredictor({trunk.box_head_width}, {classes})",
        f"box_score_thresh={settings.score_threshold}",
        f"box_detections_per_img={settings.detections}",
        *_sizes(recipe),
    ]
    if settings.kind == "keypoint_rcnn":
        options += [
            f"keypoint_head=KeypointRCNNHeads({width}, ({2 * width},) * 8)",
            f"keypoint_predictor=KeypointRCNNPredictor({2 * width}, {keypoints})",
        ]
    if settings.kind == "mask_rcnn":
        options += [
            f"mask_head=MaskRCNNHeads({width}, ({width},) * 4, 1{', norm' if settings.mask_norm else ''})",
            f"mask_predictor=MaskRCNNPredictor({width}, {width}, {classes})",
        ]
    return [
        *_parts(trunk),
        *_POOLING,
        f"model = {_KINDS[settings.kind]}(",
        "    backbone,",
        *(f"    {option}," for option in options),
        ")",
        f'model.load_state_dict(load_file("{file}"))',
    ]
