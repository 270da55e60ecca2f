"""`boxless probe`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.tasks.probe_result import ProbeResult


def probe(
    weights: Places,
    data: Places,
    out: Place,
    val: Place | None = None,
    kind: Literal["linear", "knn", "svm", "low_shot", "few_shot", "correspondence"] = "linear",
    size: int | None = None,
    preset: Literal["sweep", "moco", "barlow", "vicreg", "detco", "fair", "vissl"] | None = None,
    crops: bool = False,
    level: Literal["C5", "P2", "P3", "P4", "P5"] | None = None,
    backbone: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    quiet: bool = False,
) -> "ProbeResult":
    """Measure the frozen features of pretrained weights and compare them with those of random weights.

    The feature of an image is the mean of the backbone's last map (C5). Features are computed once per weights and kept
    in the output folder, for the next probe too. KIND.md, KIND.csv and figures/KIND.png are written there.

    linear, knn: accuracy of a linear classifier or of the nearest neighbours. svm: mAP of one linear SVM per class, as
    on VOC07; low_shot: the same from 1 to 96 images per class; both on C5 in 2 x 2 parts. few_shot: 5 classes, 5
    examples each. correspondence: share of an image's cells that are found in a mirrored copy in other colours.
    docs/probes.md gives the sources of the settings and says when to believe the results.

    Args:
        weights: Runs, weights files in torchvision's names, or none; random weights are always measured too.
        data: A folder with one folder of images per class, or labels for detection (COCO JSON, a Pascal VOC folder, a
            YOLO data.yaml; :split picks a split): then each object is an example, for svm and low_shot each image. For
            correspondence any images, shown whole.
        out: Folder for features, tables and figures.
        val: Images to measure on, in the same forms; few_shot draws from both, correspondence takes none.
        kind: Probe to run.
        size: Size of the views, px; by default 224, for correspondence 225: at 32 k + 1 the cells of a ResNet lie
            symmetrically. An image of a class folder is resized to 8/7 of it and its centre cut out (svm, low_shot:
            all of it is shown); objects are cut out with a tenth of margin, as squares.
        preset: Settings by paper. For linear: learning rate, decay and schedule; by default (sweep) Barlow Twins', with
            a learning rate chosen for each of the weights on a fifth of the training examples. For svm: the costs to
            choose from, by default detco's.
        crops: Learn linear from a new random crop of each example in each of the 100 epochs, as the papers do, instead
            of from one view.
        level: Map of the FPN for correspondence, if the weights have one; by default C5.
        backbone: Backbone of random weights and of weights that are no run; by default the first run's, or else
            resnet50.
        seed: Seed for random weights, draws and colours.
        workers: Processes that decode images and fit SVMs; by default one a core, at most 8.
        quiet: Print nothing.

    Returns:
        The scores, each 0..1; printed, they are the table.

    Raises:
        UserError: If the caller can fix the cause, as an argument that has no effect on the kind.
    """
    from boxless.errors import UserError
    from boxless.tasks.feature_extractor import load_feature_extractors
    from boxless.tasks.features import MAPS
    from boxless.tasks.probe import PRESETS, run_probe
    from boxless.tasks.probe_result import NOTES, ProbeSettings
    from boxless.training.device import worker_count

    weights, data, out, val = as_text(weights), as_text(data), as_text(out), as_text(val)
    known = (("kind", kind, NOTES), ("level", level or "C5", MAPS))
    for name, value, choices in known:
        if value not in choices:
            raise UserError(f"{name}: {value!r}; expected {', '.join(choices)}")
    presets = PRESETS.get(kind, ())
    if preset is not None and preset not in presets:
        raise UserError(f"preset: {preset!r}; kind {kind} takes {', '.join(presets) or 'none'}")
    if crops and kind != "linear":
        raise UserError(f"crops: kind {kind} learns from one view of each example; only linear takes crops")
    if level is not None and kind != "correspondence":
        raise UserError(f"level: kind {kind} measures C5; only correspondence takes a level")
    if val is not None and kind == "correspondence":
        raise UserError("val: kind correspondence takes none: it compares each image of --data with a copy of it")
    if size is None:
        size = 225 if kind == "correspondence" else 224
    if size < 32 or min(workers or 0, seed) < 0:
        raise UserError(f"size={size}, workers={workers}, seed={seed}: expected a size of 32 px or more, others from 0")
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"out {out}: is a file; name a folder")
    networks = load_feature_extractors([weights] if isinstance(weights, str) else weights, backbone, seed)
    if not quiet:
        print("\n".join(f"{network.name}: {network.report}" for network in networks), file=sys.stderr, flush=True)
    settings = ProbeSettings(
        kind, data, val, size, preset or next(iter(presets), ""), crops, level or "C5", seed, worker_count(workers, 8)
    )
    result = run_probe(networks, settings, Path(out), quiet)
    if not quiet:
        print(f"\n{result}\n\nwritten: {out}/{kind}.md, {kind}.csv, figures/{kind}.png")
    return result
