"""COCO's and LVIS's average precision of detections against labels, computed by faster-coco-eval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask

from boxless.data.annotations.keypoints import to_coco
from boxless.data.annotations.read import LabelledData
from boxless.errors import UserError

LVIS_DETECTIONS = 300  # per image, all classes together
FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}  # LVIS's classes in 1 to 10, to 100 and more training images
SIGMA = 0.1  # of keypoints that are not COCO's 17; those of a person have 0.025 (eyes) to 0.107 (hips)


@dataclass(frozen=True)
class Detections:
    """Detections in one image.

    boxes: (N, 4) float32, source px, xyxy; scores: (N,) in 0..1; labels: (N,) 0-based class; masks: N COCO RLE
    dicts of the source image's size, or None; keypoints: (N, K, 2) float32, source px, or None.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: list[dict[str, Any]] | None = None
    keypoints: npt.NDArray[np.float32] | None = None

    def subset(self, rows: npt.NDArray[np.intp]) -> "Detections":
        """Return the detections at `rows`, in their order."""
        return Detections(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            None if self.masks is None else [self.masks[row] for row in rows],
            None if self.keypoints is None else self.keypoints[rows],
        )


@dataclass(frozen=True)
class Scores:
    """COCO's summary, each 0..1 and nan if there is no ground truth; `per_class` has each class's AP.

    Small objects are those below 32 x 32 source px, large ones those from 96 x 96. By keypoints COCO scores 20
    detections per image and class, not 100, and leaves small objects out. `by_frequency`: LVIS's APr, APc and APf.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float
    per_class: dict[str, float]
    by_frequency: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """The summary numbers under COCO's short names: AP, AP50, AP75, APs, APm, APl, AR100; and LVIS's."""
        return {
            "AP": self.ap,
            "AP50": self.ap50,
            "AP75": self.ap75,
            "APs": self.ap_small,
            "APm": self.ap_medium,
            "APl": self.ap_large,
            "AR100": self.ar100,
            **self.by_frequency,
        }


def average_precision(
    truth: LabelledData,
    detections: Sequence[Detections],
    kind: Literal["bbox", "segm", "keypoints"] = "bbox",
    federated: bool = False,
) -> Scores:
    """Score detections, one entry per image of `truth` in its order, by boxes, by masks or by keypoints.

    Crowd regions count neither for nor against; nor, by masks or keypoints, do objects labelled with a box only. A
    class without ground truth has AP nan and stays out of the means. How far off a keypoint may be is a matter of its
    sigma: COCO's own where there are as many as COCO has, 17, and else 0.1 for each.

    `federated`: by LVIS's rules (arXiv:1908.03195): the 300 most confident detections of an image count, those of a
    class only in images that are known to show it or not to show it, and those that hit nothing only where all of its
    objects are labelled. AR100 is then nan, being defined for 100 detections.

    Raises:
        UserError: `federated` and the labels are not LVIS's; `kind="segm"` and the labels have no mask at all or a
            detection has none; `kind="keypoints"` and labels and detections do not have the same number of them.
    """
    if federated:
        check_federated(truth)
    result = _summary(*precision_tables(truth, detections, kind, federated), truth.classes)
    return replace(result, ar100=math.nan, by_frequency=_by_frequency(truth, result)) if federated else result


def verified(truth: LabelledData, detections: Sequence[Detections]) -> list[Detections]:
    """Detections, one entry per image of `truth` in its order, without those of which its labels say nothing.

    Such are in LVIS's labels, and in no others, those of a class that an image is neither known to show nor known not
    to show. Those of a class of which not every object is labelled stay, for they may be right.
    """
    if not truth.frequencies:
        return list(detections)
    return [
        found.subset(np.flatnonzero(np.isin(found.labels, [*image.labels, *image.negative])))
        for found, image in zip(detections, truth.images, strict=True)
    ]


def precision_tables(
    truth: LabelledData,
    detections: Sequence[Detections],
    kind: Literal["bbox", "segm", "keypoints"] = "bbox",
    federated: bool = False,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Sequence[str]]:
    """The precisions that `average_precision` averages; see there for arguments and errors.

    Returns:
        Precision (IoUs 0.5 to 0.95, 101 recalls, classes, areas, limits), recall (the same without the 101), each -1
        for classes without objects, and the names of the areas.
    """
    if federated:
        detections = verified(truth, [_surest(found) for found in detections])
    results = coco_results(truth, detections)
    labels = truth.as_coco()
    if kind == "segm":
        _score_masks(labels, results, truth.origin)
    count = len(truth.skeleton.names)
    if kind == "keypoints":
        _score_keypoints(results, count, truth.origin)
    coco = COCO(labels)
    sigmas = None if count == 17 else [SIGMA] * count
    evaluation = COCOeval_faster(
        coco,
        coco.loadRes(results),
        iouType=kind,
        print_function=_silent,
        kpt_oks_sigmas=sigmas,
        lvis_style=federated,
    )
    if federated:
        for category in labels["categories"]:  # the library wants a group for each, also for those without objects
            category["frequency"] = category["frequency"] or "f"
        evaluation.params.maxDets = [LVIS_DETECTIONS]
    evaluation.params.imgIds = _image_ids(truth)
    precision, recall = _tables(evaluation, truth.category_ids)
    # The library sorts categories by id; the labels' own order need not be sorted.
    rows = np.argsort(np.argsort(truth.category_ids))
    return precision[:, :, rows], recall[:, rows], evaluation.params.areaRngLbl


def check_federated(truth: LabelledData) -> None:
    """Refuse labels that do not say how frequent their classes are, as LVIS's do.

    Raises:
        UserError: naming them.
    """
    shown = {int(label) for image in truth.images for label in image.labels}
    if not truth.frequencies or any(not truth.frequencies[label] for label in shown):
        raise UserError(f"{truth.origin}: metric=lvis needs LVIS's labels (categories with 'frequency' r, c or f)")


def _tables(
    evaluation: COCOeval_faster, category_ids: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Precision and recall, classes in ascending order of their ids; see `precision_tables`."""
    ids, parts = sorted(category_ids), []
    for first in range(0, len(ids), 128):  # the library keeps every pair of image and class: 30 GB for LVIS at once
        evaluation.params.catIds = ids[first : first + 128]
        evaluation.evaluate()
        evaluation.accumulate()
        parts.append((evaluation.eval["precision"], evaluation.eval["recall"]))
    return np.concatenate([part for part, _ in parts], 2), np.concatenate([part for _, part in parts], 1)


def _surest(found: Detections) -> Detections:
    """The most confident detections of an image, as many as LVIS takes, in their order."""
    return found.subset(np.sort(np.argsort(-found.scores, kind="stable")[:LVIS_DETECTIONS]))


def _by_frequency(truth: LabelledData, result: Scores) -> dict[str, float]:
    values = np.array([result.per_class[name] for name in truth.classes])
    groups = np.array(truth.frequencies)
    return {name: _mean(values[(groups == group) & ~np.isnan(values)]) for group, name in FREQUENCIES.items()}


def coco_results(truth: LabelledData, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections as COCO's results list: ids as in `truth.as_coco()`, `bbox` as coco_xywh, source px."""
    results: list[dict[str, Any]] = []
    for image_id, found in zip(_image_ids(truth), detections, strict=True):
        corners = np.asarray(found.boxes, np.float64).reshape(-1, 4)
        coco_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        for row, box in enumerate(coco_xywh):
            result = {
                "image_id": image_id,
                "category_id": int(truth.category_ids[int(found.labels[row])]),
                "bbox": box.tolist(),
                "score": float(found.scores[row]),
            }
            if found.masks is not None:
                result["segmentation"] = found.masks[row]
            if found.keypoints is not None:
                result |= visible_keypoints(found.keypoints[row])
            results.append(result)
    return results


def visible_keypoints(places: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Convert detected keypoints (K, 2) to keys of a COCO result."""
    return to_coco(np.concatenate([places, np.full((len(places), 1), 2, np.float32)], 1))


def _image_ids(truth: LabelledData) -> list[int]:
    return [image["id"] for image in truth.as_coco()["images"]]  # it numbers the images where ids are not integers


def masks_to_rle(masks: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Boolean masks (N, H, W) as N compressed COCO RLE dicts, `counts` as text so that JSON can hold them."""
    if not len(masks):
        return []
    encoded = coco_mask.encode(np.asfortranarray(np.transpose(masks, (1, 2, 0)), dtype=np.uint8))
    return [{"size": [int(side) for side in rle["size"]], "counts": _text(rle["counts"])} for rle in encoded]


def _text(counts: bytes | str) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")


def _score_masks(labels: dict[str, Any], results: list[dict[str, Any]], origin: str) -> None:
    """Prepare labels and results, in place, for scoring by masks."""
    if not any("segmentation" in annotation for annotation in labels["annotations"]):
        raise UserError(f"{origin}: expected masks to score against, found boxes only; use kind='bbox'")
    if not all("segmentation" in result for result in results):
        raise UserError("detections: expected a mask for every detection, found boxes only; use kind='bbox'")
    for annotation in labels["annotations"]:
        if "segmentation" not in annotation:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotation["iscrowd"] = 1
    for result in results:
        del result["bbox"]  # else a detection's area, which sorts it into small to large, is that of its box


def _score_keypoints(results: list[dict[str, Any]], count: int, origin: str) -> None:
    if not count:
        raise UserError(f"{origin}: expected keypoints to score against, found none; use kind='bbox'")
    for result in results:
        found = len(result.get("keypoints", ())) // 3
        if found != count:
            raise UserError(f"detections: expected {count} keypoints each, as in {origin}, found {found}")
        del result["bbox"]  # else a detection's area is that of its box, where COCO's is that around its keypoints


def _silent(*_: object) -> None:
    """The library prints its progress unless it is given something else to call."""


def _summary(
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
    areas: Sequence[str],
    classes: Sequence[str],
) -> Scores:
    """The means of what `precision_tables` returns."""

    def ap(threshold: int | slice = slice(None), area: str = "all") -> float:
        return _mean(precision[threshold, ..., areas.index(area), -1]) if area in areas else math.nan

    return Scores(
        ap=ap(),
        ap50=ap(0),
        ap75=ap(5),
        ap_small=ap(area="small"),
        ap_medium=ap(area="medium"),
        ap_large=ap(area="large"),
        ar100=_mean(recall[..., 0, -1]),
        per_class={name: _mean(precision[:, :, row, 0, -1]) for row, name in enumerate(classes)},
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan
