"""`boxless predict`."""

from typing import TYPE_CHECKING

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.tasks.predict import PredictResult


def predict(run: Place, data: Places, out: Place, score: float = 0.5, quiet: bool = False) -> "PredictResult":
    """Find objects in images with a fine-tuned detector, or the class of every pixel with FCN.

    Writes predictions.json, a COCO dict with a score for each object that can be read back as labels, and every image
    with its objects drawn, in images/. Images that cannot be read are listed and left out. For FCN, predictions.json
    names the classes, and class_maps/ has a PNG file for each image whose values are their numbers from 0.

    Args:
        run: Folder that boxless finetune wrote.
        data: Images: files, folders with all folders below them, a list file, a labelled data set (without its
            labels).
        out: Folder for the results; a new or empty one, or one that predict wrote, whose results are replaced.
        score: Least score of an object, 0..1; FCN ignores it.
        quiet: Print nothing.

    Returns:
        How many objects were found, and where they are written.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from boxless.tasks.predict import run_prediction

    run, data, out = as_text(run), as_text(data), as_text(out)
    result = run_prediction(run, data, out, score, quiet)
    if not quiet:
        print(result)
    return result
