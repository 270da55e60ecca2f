"""`boxless propose`: boxes without labels for every image, in one Parquet file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.data.index import ImageIndex
    from boxless.proposals.generate import Method, Produced
    from boxless.proposals.recall import Recall


@dataclass(frozen=True)
class ProposeResult:
    """Contents of the table that `propose` wrote.

    Attributes:
        path: the table.
        images: images of the data.
        computed: images that this run computed.
        boxes_per_image: median over the usable images.
        seconds_per_image: wall time per computed image, nan if there was nothing to do.
        fallback: images that no box fitted, so that limits were given up.
        missing: images without a row (only with `boxes_from`); training uses the whole image.
        skipped: (key, reason) of the images that could not be used.
        recall: share of labelled objects covered, where asked for.
    """

    path: Path
    images: int
    computed: int
    boxes_per_image: float
    seconds_per_image: float
    fallback: int
    missing: int
    skipped: list[tuple[str, str]]
    recall: "Recall | None" = None

    def __str__(self) -> str:
        from boxless.data.images import skipped_report

        time = f", {self.seconds_per_image:.3f} s per image" if self.computed else ""
        lines = [f"{self.path}: {self.images} images, {self.boxes_per_image:g} boxes per image (median){time}"]
        if self.fallback:
            lines.append(f"{self.fallback} images where no box kept all limits: see `fallback` in the table")
        if self.missing:
            lines.append(f"{self.missing} images are not in the given file: they count as one box, the whole image")
        if self.skipped:
            what = "images could not be used (to try them again, delete the table)"
            lines.append(skipped_report(self.skipped, what, ", under `skipped` in the table"))
        return "\n".join([*lines, str(self.recall)] if self.recall else lines)


def propose(
    data: Places,
    out: Place,
    method: Literal["selective_search", "grid", "random"] | None = None,
    preset: Literal["fast", "paper", "official-code"] | None = None,
    max_side: int | None = None,
    boxes_from: Place | None = None,
    recall: Place | None = None,
    workers: int | None = None,
    engine: Literal["local", "ray"] | None = None,
    ray_address: str | None = None,
    quiet: bool = False,
) -> ProposeResult:
    """Propose boxes for all images and write them to one Parquet file.

    A run that is stopped goes on when the same command is given again. Where the file is complete nothing is done;
    where the data has grown only the new images are computed.

    Args:
        data: Images: a folder, a list file, a labelled data set (labels are not used), or several of these.
        out: The Parquet file to write or to complete.
        method: Algorithm that draws the boxes, selective_search by default; grid and random are baselines.
        preset: Settings of selective search alone. fast, the default: three colour spaces at 256 px; paper: SoCo's
            appendix; official-code: SoCo's released script. The last two use one colour space at full size.
        max_side: Longer side that images are shrunk to for selective search, px; 0 keeps their size. Default: the
            preset's.
        boxes_from: COCO JSON file whose boxes are taken instead of drawing any; method, preset, max_side, workers and
            engine are then refused.
        recall: Labels to compare with, e.g. a COCO JSON file of some of the images.
        workers: Processes; default one per core.
        engine: local, the default: this machine; ray: a Ray cluster that is running, whose machines all see the images
            under the same paths (pip install 'boxless[ray]').
        ray_address: HOST:PORT of the cluster's head; default $RAY_ADDRESS, or a cluster on this machine.
        quiet: Print nothing.

    Raises:
        UserError: for data, labels or an output file that cannot be used, and arguments that would have no effect.
    """
    from boxless.data.open import index_images
    from boxless.errors import UserError

    data, out, boxes_from, recall = as_text(data), as_text(out), as_text(boxes_from), as_text(recall)
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: expected 1 or more")
    if Path(out).is_dir() or Path(out).suffix != ".parquet":
        raise UserError(f"out={out}: expected a file name that ends in .parquet")
    if boxes_from is not None:
        from boxless.proposals.from_coco import take_from_coco

        drawing = {"method": method, "preset": preset, "max_side": max_side, "workers": workers, "engine": engine}
        _refuse(drawing | {"ray_address": ray_address}, f"the boxes are those of boxes_from={boxes_from}")
        index = index_images(data)
        made = take_from_coco(index, out, boxes_from)
    else:
        from boxless.parallel import chosen_engine
        from boxless.proposals.generate import make_proposals

        chosen = _method(method, preset, max_side)
        index = index_images(data)
        with chosen_engine("local" if engine is None else engine, ray_address, workers) as cluster:
            made = make_proposals(index, out, chosen, workers, quiet, cluster)
    result = _result(made, index, recall)
    if not quiet:
        print(result)
    return result


def _refuse(ignored: dict[str, object], reason: str) -> None:
    from boxless.errors import UserError

    for name, value in ignored.items():
        if value is not None:
            raise UserError(f"{name}={value}: has no effect, because {reason}; leave it out")


def _method(method: str | None, preset: str | None, max_side: int | None) -> "Method":
    from dataclasses import replace

    from boxless.errors import UserError
    from boxless.proposals.baselines import Grid, RandomBoxes
    from boxless.proposals.selective_search import PRESETS

    baselines: dict[str, Method] = {"grid": Grid(), "random": RandomBoxes()}
    if method in baselines:
        _refuse({"preset": preset, "max_side": max_side}, f"method={method} is no selective search")
        return baselines[method]
    if method not in (None, "selective_search"):
        raise UserError(f"method={method}: expected {', '.join(['selective_search', *baselines])}")
    preset = "fast" if preset is None else preset
    if preset not in PRESETS:
        raise UserError(f"preset={preset}: expected {', '.join(PRESETS)}")
    return PRESETS[preset] if max_side is None else replace(PRESETS[preset], max_side=max_side or None)


def _result(made: "Produced", index: "ImageIndex", labels: str | None) -> ProposeResult:
    import numpy as np

    table = made.table
    boxes = table.counts()[table.sizes[:, 0] > 0]
    return ProposeResult(
        path=made.path,
        images=len(index),
        computed=made.computed,
        boxes_per_image=float(np.median(boxes)) if len(boxes) else 0.0,
        seconds_per_image=made.seconds / made.computed if made.computed else float("nan"),
        fallback=int((table.fallback > 0).sum()),
        missing=int((table.rows_of(index) < 0).sum()),
        skipped=table.skipped_images(),
        recall=_recall(made, index, labels) if labels else None,
    )


def _recall(made: "Produced", index: "ImageIndex", labels: str) -> "Recall":
    from boxless.data.annotations.read import read_labels
    from boxless.proposals.recall import labelled_pairs, recall

    return recall(labelled_pairs(made.table.aligned_to(index), index, read_labels(labels, "val")))
