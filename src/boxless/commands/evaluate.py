"""`boxless evaluate`."""

from typing import TYPE_CHECKING

from boxless.files import Place, as_text

if TYPE_CHECKING:
    from boxless.tasks.evaluate import EvaluationResult


def evaluate(run: Place, data: Place, out: Place | None = None, quiet: bool = False) -> "EvaluationResult":
    """Measure a fine-tuned detector against labels: AP by the metric of its recipe, or FCN's mIoU.

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
        UserError: If the caller can fix the cause.
    """
    from boxless.report.build import write_report
    from boxless.tasks.evaluate import run_evaluation

    run, data, out = as_text(run), as_text(data), as_text(out)
    result = run_evaluation(run, data, out, quiet)
    write_report([str(result.report.parent)], result.report)
    if not quiet:
        print(result)
    return result
