"""`boxless evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from boxless.data.annotations.read import LabelledData
    from boxless.evaluation.average_precision import Detections, Scores
    from boxless.evaluation.mean_iou import SegmentationScores
    from boxless.recipes.schema import FinetuneRecipe

FILE = "evaluation.json"
EXAMPLES = 6


@dataclass(frozen=True)
class EvaluationResult:
    """What a detector is worth on labels.

    Attributes:
        path: folder with evaluation.json, detections.json and examples.png.
        images: how many were measured.
        scores: of boxes ("bbox") and, where detector and labels have them, of masks ("segm") or "keypoints"; of FCN
            "segments".
        unlabelled: classes of the detector that the labels have no object of (of FCN: that neither labels nor
            predictions have); they are in no mean.
        skipped: file -> reason of the images that could not be read; their objects count as missed, their pixels not.
        report: the page that shows all of it; see boxless report.
    """

    path: Path
    images: int
    scores: "dict[str, Scores] | dict[str, SegmentationScores]"
    unlabelled: tuple[str, ...]
    skipped: dict[str, str]
    report: Path

    def __str__(self) -> str:
        from boxless.tasks.evaluate import score_table

        lines = [f"{self.images} images, in percent:", score_table(self.scores)]
        if self.unlabelled:
            lines.append(f"without labelled objects, in no mean: {_listed(self.unlabelled)}")
        if self.skipped:
            counted = "they count nowhere" if "segments" in self.scores else "their objects count as missed"
            lines.append(f"{len(self.skipped)} images could not be read, {counted}:")
            lines += [f"  {file}: {reason}" for file, reason in list(self.skipped.items())[:20]]
        if len(self.skipped) > 20:
            lines.append(f"  and {len(self.skipped) - 20} more, in evaluation.json")
        return "\n".join([*lines, f"written to {self.path}", f"report: {self.report}"])


def evaluate(run: str, data: str, out: str | None = None, quiet: bool = False) -> EvaluationResult:
    """Measure a fine-tuned detector against labels: AP by the metric of its recipe, FCN's mIoU.

    Writes evaluation.json (the scores), detections.json (COCO results; not of FCN), examples.png and .svg (labels and
    detections side by side), and gallery.json, which boxless report shows.

    Args:
        run: Folder that boxless finetune wrote.
        data: Labels to measure with: COCO JSON, a Pascal VOC folder, a YOLO data.yaml; :split picks a split.
            Several sets, with + between them, become one.
        out: Folder for the results, a new or empty one or that of the same evaluation; by default evaluation-NAME in
            the run's folder, NAME as the data is called.
        quiet: Print nothing.

    Returns:
        The scores, each 0..1; printed, they are the table.

    Raises:
        UserError: For anything that the caller can mend.
    """
    from boxless.evaluation.average_precision import coco_results
    from boxless.files import write_text
    from boxless.runs.run import begin_results, write_json
    from boxless.tasks.detect import check_keypoints, detect_labelled, load_detector, scores, skeleton_of
    from boxless.tasks.gallery import write_gallery

    detector, classes, recipe = load_detector(run)
    if recipe.detector.kind == "fcn":
        result = _evaluate_classes(detector, classes, recipe, run, data, out, quiet)
        if not quiet:
            print(result)
        return result
    labels = _labels(data, classes, quiet)
    check_keypoints(labels, skeleton_of(run), recipe)
    folder = _folder(run, data, out)
    found, skipped = detect_labelled(detector, labels, recipe)
    result = EvaluationResult(
        path=folder,
        images=len(labels),
        scores=scores(labels, found, recipe),
        unlabelled=tuple(name for k, name in enumerate(classes) if not _has_class(labels, k)),
        skipped=skipped,
        report=_page(run, folder),
    )
    begin_results(folder, FILE)
    write_text(folder / "detections.json", _lines(coco_results(labels, found)))
    _draw_examples(folder / "examples", labels, found, skipped)
    write_gallery(folder, labels, found, skipped)
    write_json(folder / FILE, {**_inputs(run, data), **_summary(result)})
    _write_page(result)
    if not quiet:
        print(result)
    return result


def _evaluate_classes(
    detector: "nn.Module",
    classes: tuple[str, ...],
    recipe: "FinetuneRecipe",
    run: str,
    data: str,
    out: str | None,
    quiet: bool,
) -> EvaluationResult:
    """As `evaluate`, of FCN."""
    from boxless.data.images import decode
    from boxless.plots.class_maps import class_pairs
    from boxless.plots.style import save
    from boxless.runs.run import begin_results, write_json
    from boxless.tasks.labels import validation_labels
    from boxless.tasks.segment import measure_labelled, segment_labelled

    labels = validation_labels(data, classes, quiet, segments=True)
    folder = _folder(run, data, out)
    scores, skipped = measure_labelled(detector, labels, recipe)
    absent = tuple(name for name, share in scores["segments"].per_class.items() if share != share)
    result = EvaluationResult(folder, len(labels), scores, absent, skipped, _page(run, folder))
    begin_results(folder, FILE)
    rows = _spread([row for row, image in enumerate(labels.images) if str(image.path) not in skipped])
    shown = [each for each in segment_labelled(detector, labels.subset(rows), recipe) if each[0].skipped is None]
    if shown:
        images = [decode(labels.images[rows[sample.row]].path) for sample, _ in shown]
        truths, found = [sample.target["classes"].numpy() for sample, _ in shown], [each for _, each in shown]
        save(class_pairs(images, truths, found, classes), folder / "examples")
    write_json(folder / FILE, {**_inputs(run, data), **_summary(result)})
    _write_page(result)
    return result


def _page(run: str, folder: Path) -> Path:
    """Where the page goes: that of the run, where the results are in its folder."""
    inside = folder.resolve().parent == Path(run).resolve() and folder.name.startswith("evaluation-")
    return (Path(run) if inside else folder) / "report.html"


def _write_page(result: EvaluationResult) -> None:
    from boxless.report.build import write_report

    write_report([str(result.report.parent)], result.report)


def _labels(data: str, classes: tuple[str, ...], quiet: bool) -> "LabelledData":
    """Labels in the detector's classes; at least one object is of them."""
    from boxless.data.annotations.read import read_labels
    from boxless.errors import UserError
    from boxless.tasks.labels import validation_labels

    labels = validation_labels(data, classes, quiet)
    if any(not image.crowd.all() for image in labels.images):
        return labels
    theirs = read_labels(data, "val").classes
    raise UserError(
        f"data {data}: no object of the detector's classes ({_listed(classes)}); its own classes are "
        f"{_listed(theirs)}; names must agree to the letter"
    )


def _folder(run: str, data: str, out: str | None) -> Path:
    """Where the results go, made at once, since measuring may take long; never over what is not of this evaluation."""
    import json

    from boxless.errors import UserError
    from boxless.files import make_folder
    from boxless.runs.run import check_results

    inputs = _inputs(run, data)
    path = Path(data)
    name = path.stem if path.suffix in (".json", ".yaml", ".yml", ".txt") else path.resolve().name.replace(":", "-")
    folder = Path(out) if out is not None else Path(run) / f"evaluation-{name}"
    if (folder / "recipe.yaml").is_file():
        raise UserError(f"out {folder}: is the folder of a run, which has a gallery.json of its own; name a new folder")
    check_results(folder, FILE)
    if (folder / FILE).is_file():
        try:
            known = dict(json.loads((folder / FILE).read_text()))
        except (ValueError, TypeError):
            known = {}
        moved = out is None  # a run's own folder holds evaluations of that run only, wherever it has been moved
        if known.get("data") != inputs["data"] or (known.get("run") != inputs["run"] and not moved):
            raise UserError(
                f"out {folder}: holds the evaluation of {known.get('run')} on {known.get('data')}; name another folder"
            )
    make_folder(folder)
    return folder


def _inputs(run: str, data: str) -> dict[str, str]:
    return {"run": str(Path(run).resolve()), "data": str(Path(data).resolve())}


def _draw_examples(path: Path, labels: "LabelledData", found: "Sequence[Detections]", skipped: dict[str, str]) -> None:
    """A few images with objects, spread over the data; LVIS's without what its labels say nothing of."""
    from boxless.data.detection import decode_labelled
    from boxless.evaluation.average_precision import judged
    from boxless.evaluation.matching import balanced_score
    from boxless.plots.detections import detection_pairs
    from boxless.plots.style import save

    found = judged(labels, found)
    usable = [row for row, image in enumerate(labels.images) if len(image.boxes) and str(image.path) not in skipped]
    if not usable:
        return
    rows = _spread(usable)
    images = [decode_labelled(labels.images[row]) for row in rows]
    truths = [labels.images[row] for row in rows]
    threshold = min(0.5, balanced_score(labels, found))
    save(detection_pairs(images, truths, [found[row] for row in rows], labels.classes, threshold), path)


def _spread(rows: list[int]) -> list[int]:
    """A few of the rows, from the first to the last."""
    import numpy as np

    return [rows[k] for k in np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)]


def _summary(result: EvaluationResult) -> dict[str, Any]:
    """The result as JSON has it: null where there is nothing to measure (JSON has no nan)."""

    def plain(values: dict[str, float]) -> dict[str, float | None]:
        return {name: None if value != value else value for name, value in values.items()}

    return {
        "images": result.images,
        "scores": {kind: plain(scores.as_dict()) for kind, scores in result.scores.items()},
        "per_class": {kind: plain(scores.per_class) for kind, scores in result.scores.items()},
        "unlabelled": list(result.unlabelled),
        "skipped": result.skipped,
    }


def _has_class(labels: "LabelledData", number: int) -> bool:
    return any(((image.labels == number) & ~image.crowd).any() for image in labels.images)


def _lines(results: list[dict[str, Any]]) -> str:
    import json

    return "[" + ",\n".join(map(json.dumps, results)) + "]\n"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
