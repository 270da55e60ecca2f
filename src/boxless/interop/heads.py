"""Load RPN and heads of a detector from a file of another one, rows of classes by the classes' names.

A part is taken over if the file has exactly its tensors, in its shapes, and what comes before it was loaded too: an RPN
that meets the features of a new pyramid is worth nothing. Of the layers with rows of classes, the rows of known names
and of background are copied. The others stay new; rows that regress boxes begin as the mean of all known ones, which
hardly depends on the class.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from boxless.detectors.trunk import Trunk
from boxless.interop.files import read_tensors
from boxless.interop.names import Tensors
from boxless.interop.weights import WeightsReport, check_finite, named_as_trunk

BACKGROUND = "\0background"
"""Row of background or of no object, which no class can be called."""


class Part(NamedTuple):
    """A part of a detector behind its trunk: name, pattern of its modules, and the part that must be loaded too."""

    name: str
    pattern: str
    needs: str = ""


class ClassRows(NamedTuple):
    """A layer with rows of classes.

    Attributes:
        name: the part that it belongs to.
        pattern: pattern of the module's name.
        needs: the part that must be loaded too.
        background: place of background's row.
        inner: neighbouring rows of a class; rows of several anchors are not neighbours.
        mean: true if new rows begin as the mean of the known ones.
    """

    name: str
    pattern: str
    needs: str
    background: str = "none"
    inner: int = 1
    mean: bool = False


PARTS = (
    Part("P6 and P7", r"backbone\.fpn\.extra_blocks\..*"),
    Part("RPN", r"rpn\..*"),
    Part("norm of the RoI head", r"roi_heads\.box_head\..*", "RoI head"),
    Part("mask head", r"roi_heads\.(mask_head|mask_predictor)\..*"),
    Part("keypoint head", r"roi_heads\.keypoint_head\..*"),
    Part("keypoint predictor", r"roi_heads\.keypoint_predictor\..*", "keypoint head"),
    Part("box branch", r"head\.regression_head\..*"),
    Part("class branch", r"head\.classification_head\..*"),
    Part("loss average", r"head\.positives"),
    Part("learned proposals", r"proposal_.*"),
    Part("stages", r"stages\..*"),
    Part("decoder", r"rt_detr\..*"),
    Part("segmentation head", r"(head|auxiliary)\..*"),
)
CLASS_ROWS = (
    ClassRows("predictor", r"roi_heads\.box_predictor\.cls_score", "RoI head", "first"),
    ClassRows("predictor", r"roi_heads\.box_predictor\.bbox_pred", "RoI head", "first", 4, mean=True),
    ClassRows("mask predictor", r"roi_heads\.mask_predictor\.mask_fcn_logits", "mask head", "first"),
    ClassRows("predictor", r"head\.classification_head\.cls_logits", "class branch"),
    ClassRows("predictor", r"stages\.\d+\.class_logits", "stages"),
    ClassRows("predictor", r"rt_detr\.(enc_score_head|decoder\.class_embed\.\d+)", "decoder"),
    ClassRows("predictor", r"rt_detr\.denoising_class_embed", "decoder", "last"),
    ClassRows("predictor", r"class_labels_classifier", "transformer", "last"),
    ClassRows("predictor", r"head\.2|head\.classifier\.1|auxiliary\.2", "segmentation head"),
)
KINDS = {
    "two-stage": r"rpn\.",
    "FCOS": r"head\.regression_head\.bbox_ctrness\.",
    "RetinaNet": r"head\.regression_head\.",
    "Sparse R-CNN": r"stages\.0\.",
    "RT-DETR": r"rt_detr\.",
    "DETR": r"class_labels_classifier\.",
    "FCN": r"head\.(2|classifier\.1)\.",
}
"""Kinds of detectors in order, each with the start of a name that only it and those after it have."""

_OLD = (
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(.*)", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"),
)
_OLD_TOWER = re.compile(r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)")


@dataclass(frozen=True)
class Names:
    """Names that rows are matched by; None where they are not known.

    Attributes:
        classes: without background.
        keypoints: names of the keypoints of an object.
    """

    classes: Sequence[str] | None = None
    keypoints: Sequence[str] = ()


def kind_of(names: Mapping[str, object]) -> str:
    """The kind of detector that tensors are of, "" if they are of a trunk or backbone."""
    return next((kind for kind, start in KINDS.items() if any(re.match(start, name) for name in names)), "")


def load_heads(
    detector: nn.Module, trunk: Trunk, loaded: WeightsReport, minimum: float, own: Names, given: Names
) -> WeightsReport:
    """Load what lies behind the trunk and report on the whole detector.

    Args:
        detector: is changed in place.
        trunk: inside of it, loaded already.
        loaded: the report on the trunk, which names the file.
        minimum: share of a part of the trunk, 0..1, from which on it counts as loaded.
        own: names of the detector's rows.
        given: names of the file's rows.

    Returns:
        The report on the trunk if the file is of none but a trunk, else that on all of the detector.
    """
    path = Path(loaded.origin)
    tensors = _named_as_detector(named_as_trunk(read_tensors(path), trunk, path)[1])
    state = detector.state_dict(keep_vars=True)
    of_trunk = {id(value) for value in trunk.state_dict(keep_vars=True).values()}
    heads = {
        key: value.detach() for key, value in state.items() if id(value) not in of_trunk or ".extra_blocks." in key
    }
    kind, wanted = kind_of(tensors), kind_of(heads)
    if not kind:
        return loaded
    transfer = _Transfer(heads, tensors, dict(loaded.shares), minimum, own, given)
    lost = [part for part, share in loaded.shares.items() if share < minimum and part != "RoI head"]
    if kind != wanted:
        transfer.notes.append(f"the file is of another kind of detector ({kind}), so that all heads are new ({wanted})")
    elif lost:
        transfer.notes.append(f"{', '.join(lost)} new, so that all heads are new too")
    else:
        transfer.run()
    check_finite(transfer.taken, path)
    detector.load_state_dict(transfer.taken, strict=False)
    return _whole(transfer, trunk, loaded)


class _Transfer:
    """Heads on their way from a file into a detector.

    Attributes:
        taken: tensors to load.
        kept: number of values that come from the file, by name of the tensor.
        words: part -> what became of it, where a share does not say it.
        notes: lines for the report.
    """

    def __init__(
        self, heads: Tensors, file: Tensors, shares: dict[str, float], minimum: float, own: Names, given: Names
    ) -> None:
        self.heads, self.file, self.shares, self.minimum = heads, file, shares, minimum
        self.own, self.given = own, given
        self.taken: Tensors = {}
        self.kept: dict[str, int] = {}
        self.words: dict[str, str] = {}
        self.notes: list[str] = []

    def run(self) -> None:
        """Take over the parts and then the rows of classes."""
        for part in PARTS:
            own, given = ({k: t for k, t in one.items() if _part(k) == part.name} for one in (self.heads, self.file))
            if own and self._has(part.needs):
                self._take_part(part.name, own, given)
        for key in self.heads:
            rows = _class_rows(key)
            if rows is not None and key in self.file and self._has(rows.needs):
                self._take_rows(rows, key)

    def _has(self, part: str) -> bool:
        return not part or self.shares.get(part, 0) >= self.minimum

    def _take_part(self, name: str, own: Tensors, given: Tensors) -> None:
        if name == "keypoint predictor" and tuple(self.own.keypoints) != tuple(self.given.keypoints):
            return
        wanted, found = ({k: tuple(t.shape) for k, t in one.items() if _counts(k)} for one in (own, given))
        if wanted == found:
            self.taken |= {key: given[key] for key in own if key in given}
            self.kept |= {key: own[key].numel() for key in wanted}
            self.shares[name] = 1.0
        elif found:
            key = next(k for k in (*wanted, *found) if wanted.get(k) != found.get(k))
            self.notes.append(f"{name}: {key} is {_shape(found, key)} in the file, {_shape(wanted, key)} here")

    def _take_rows(self, rows: ClassRows, key: str) -> None:
        own, given = self.heads[key], self.file[key]
        names = _with_background(list(self.own.classes or ()), rows.background)
        outer = len(own) // (len(names) * rows.inner)
        if given.shape[1:] != own.shape[1:] or len(given) % (outer * rows.inner):
            return
        theirs = _names_in_file(len(given) // (outer * rows.inner), rows.background, self.given.classes)
        places = _matches(names, theirs)
        result = own.clone().view(outer, len(names), rows.inner, *own.shape[1:])
        source = given.to(own).view(outer, len(theirs), rows.inner, *own.shape[1:])
        if rows.mean:
            trained = [place for place, name in enumerate(theirs) if name not in (BACKGROUND, "N/A")]
            result[:] = source[:, trained].mean(1, keepdim=True)
        result[:, list(places)] = source[:, list(places.values())]
        self.taken[key] = result.view_as(own)
        self.kept[key] = own.numel() if rows.mean else own.numel() * len(places) // len(names)
        known = sum(names[place] != BACKGROUND for place in places)
        self.words[rows.name] = f"{known} of {len(self.own.classes or ())} classes by name"
        unknown = f"the file does not name its {len(theirs) - (rows.background != 'none')} classes, so all are new"
        if not any(name not in ("", BACKGROUND) for name in theirs) and unknown not in self.notes:
            self.notes.append(unknown)


def _whole(transfer: _Transfer, trunk: Trunk, loaded: WeightsReport) -> WeightsReport:
    """The report on all of a detector."""
    sizes = {key: value.numel() for key, value in transfer.heads.items() if _counts(key)}
    in_trunk = {key: value for key, value in trunk.state_dict().items() if ".extra_blocks." not in key}
    of_trunk = sum(value.numel() for key, value in in_trunk.items() if _counts(key))
    shares: dict[str, float] = {}
    for name in dict.fromkeys(_name(key) for key in sizes):
        own = [key for key in sizes if _name(key) == name]
        shares[name] = sum(transfer.kept.get(key, 0) for key in own) / sum(sizes[key] for key in own)
    kept = loaded.parameter_share * of_trunk + sum(transfer.kept.values())
    whole = [key for key in transfer.taken if transfer.kept.get(key, sizes.get(key, 0)) == sizes.get(key, 0)]
    return replace(
        loaded,
        loaded=loaded.loaded + len(whole),
        total=loaded.total + len(transfer.heads),
        shares={**loaded.shares, **shares},
        parameter_share=kept / (of_trunk + sum(sizes.values())),
        unused=tuple(key for key in loaded.unused if _in_detector(key) not in transfer.taken),
        words=transfer.words,
        notes=(*loaded.notes, *transfer.notes),
    )


def _named_as_detector(file: Tensors) -> Tensors:
    """Tensors of a file in the names of a detector: the box head in its RoI heads, and nothing named as in torchvision
    before 0.13."""
    tensors = {_in_detector(key): value for key, value in file.items()}
    if kind_of(tensors) == "RetinaNet":
        tower = {key: _OLD_TOWER.fullmatch(key) for key in tensors}
        tensors = {
            f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}" if (m := tower[key]) else key: value for key, value in tensors.items()
        }
    return tensors


def _in_detector(key: str) -> str:
    if key.startswith("box_head."):
        return f"roi_heads.{key}"
    for old, new in _OLD:
        key = re.sub(rf"^{old}$", new, key)
    return key


def _class_rows(key: str) -> ClassRows | None:
    module = key.rpartition(".")[0]
    return next((rows for rows in CLASS_ROWS if re.fullmatch(rows.pattern, module)), None)


def _part(key: str) -> str:
    """The part that a tensor without rows of classes belongs to, else ""."""
    if _class_rows(key) is not None:
        return ""
    return next((part.name for part in PARTS if re.fullmatch(part.pattern, key)), "")


def _name(key: str) -> str:
    rows = _class_rows(key)
    return rows.name if rows is not None else _part(key)


def _counts(key: str) -> bool:
    return "num_batches" not in key


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str) -> str:
    return str(shapes[key]) if key in shapes else "missing"


def _with_background(names: list[str], place: str) -> list[str]:
    return {"first": [BACKGROUND, *names], "last": [*names, BACKGROUND]}.get(place, names)


def _names_in_file(count: int, background: str, classes: Sequence[str] | None) -> list[str]:
    """Names of a layer's rows: the run's, else COCO's if there are as many, with ids of no class or without them."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if classes is not None:
        known = _with_background(list(classes), background)
    elif count == len(coco):
        known = [BACKGROUND, *coco[1:]] if background == "first" else ["N/A", *coco[1:]]
    else:
        known = _with_background([name for name in coco[1:] if name != "N/A"], background)
    return known if len(known) == count else _with_background([""] * (count - (background != "none")), background)


def _matches(own: Sequence[str], given: Sequence[str]) -> dict[int, int]:
    """Own places of the names that are in `given`, with their places there; case counts only if it must."""
    places = {name.casefold(): place for place, name in enumerate(given)} | {n: p for p, n in enumerate(given)}
    found = {place: places.get(name, places.get(name.casefold())) for place, name in enumerate(own)}
    unnamed = ("", "N/A")
    return {place: there for place, there in found.items() if there is not None and given[there] not in unnamed}
