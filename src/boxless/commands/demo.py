"""`boxless demo`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxless.files import Place, as_text

if TYPE_CHECKING:
    from boxless.tasks.compare import Comparison

DEFAULT_RECIPE = "demo"


def demo(out: Place = "runs/demo", seeds: int = 3, recipe: Place = DEFAULT_RECIPE, **overrides: Any) -> "Comparison":
    """Run the whole workflow on built-in data, without any download: a detector, and what unlabelled images add to it.

    Draws scenes of real handwritten digits on real photographs, trains detectors on few labelled ones from ImageNet
    weights, with and without self-training on those without labels, and ends with the table, the figure and drawn
    detections.

    Args:
        out: Folder for the scenes and the comparison. An unfinished demo in it is resumed.
        seeds: Fine-tunings per start.
        recipe: Name of a shipped recipe (see boxless recipes) or a YAML file.
        **overrides: Keys of the recipe, such as finetune.iterations.

    Returns:
        The comparison; printed, it is the table.

    Raises:
        UserError: If the package of the ImageNet weights is not installed.
    """
    from boxless.commands.compare import compare
    from boxless.commands.evaluate import evaluate
    from boxless.data.scenes import make_scenes

    recipe = as_text(recipe)
    folder = Path(out)
    scenes = folder / "scenes"
    make_scenes(scenes, unlabelled=600, train=200, val=150, size=96)
    annotations = scenes / "annotations"
    start = "imagenet+unlabelled"
    comparison = compare(
        data=str(scenes / "images" / "unlabelled"),
        labels=str(annotations / "train.json"),
        val=str(annotations / "val.json"),
        out=str(folder / "comparison"),
        methods=f"imagenet,{start}",
        label_fraction="0.5",
        seeds=seeds,
        recipe=recipe,
        jobs=min(4, os.cpu_count() or 1),
        **overrides,
    )
    detector = comparison.cells[0].detector  # --finetune.detector.kind may name another
    run = comparison.path / "finetune" / detector / start / "labels-0.5" / "seed-0"
    drawn = evaluate(str(run), str(annotations / "val.json"), str(folder / "detections"), quiet=True)
    print(f"detections, labels left and what the detector found right: {drawn.path}/examples.png")
    print(f"report: {folder / 'comparison' / 'report.html'}")
    return comparison
