"""The section "Every detector learns" of docs/results.md, from what benchmarks/overfit.py measured."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]

WANTED = 0.8
BEGIN, END = "<!-- written by benchmarks/overfit.py table -->", "<!-- end of benchmarks/overfit.py table -->"
KINDS = {
    "faster_rcnn": "Faster R-CNN, FPN",
    "faster_rcnn_c4": "Faster R-CNN, C4",
    "mask_rcnn": "Mask R-CNN, FPN",
    "keypoint_rcnn": "Keypoint R-CNN, FPN (points made from outlines)",
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "detr": "DETR",
    "sparse_rcnn": "Sparse R-CNN",
    "rt_detr": "RT-DETRv2",
    "fcn": "FCN-16s",
}
"""What the detectors are called, in the order of the tables."""
MEASURES = {"bbox": "boxes", "segm": "masks", "segments": "mIoU"}


def put(file: Path, text: str) -> None:
    """Put a text between the marks of a page.

    Raises:
        SystemExit: where the page lacks them.
    """
    page = file.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{file}: expected the lines {BEGIN!r} and {END!r}, between which the tables go")
    partial = file.with_name(file.name + ".partial")
    partial.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    partial.replace(file)


def section(content: dict[str, Rows]) -> str:
    """Both tables, in Markdown, each with what was done."""
    learned, tuned = content.get("learn", {}), content.get("finetune", {})
    first = (
        "`python benchmarks/overfit.py learn --data coco256/annotations/instances_train.json`: each kind over-fits "
        "eight real images from scratch (ResNet-18, group norm, 112 px; FCN 144 px). The scores are on the very images "
        f"that were learned from; a sound detector reaches {WANTED}. {_conditions(learned)}"
    )
    second = (
        "`python benchmarks/overfit.py finetune --weights RUN`, on coco256's two splits: each kind starts from a short "
        "pretraining, learns a little from all labelled images, and `boxless evaluate` measures it on others. This "
        "shows which parts a kind takes over, and that it can be trained and measured from there. So few steps make no "
        f"detector: scores stay near 0 and say nothing about the pretraining. {_conditions(tuned)}"
    )
    return "\n\n".join(
        [
            _wrapped(first),
            _table(("kind", "AP50", "AP", f"{WANTED} seen at step", "steps", "CPU seconds"), _learned(learned)),
            _wrapped(second),
            _table(("kind", "from", "loaded", "loss, first to last", "AP50, %", "CPU seconds"), _tuned(tuned)),
        ]
    )


def _learned(rows: Rows) -> Iterator[Sequence[object]]:
    for kind in KINDS:
        row = rows.get(kind)
        if row is None:
            yield KINDS[kind], "not measured", "", "", "", ""
            continue
        curve = {int(step): value for step, value in row["curve"].items()}
        curve[row["steps"]] = min(row["reached"].values())
        first = next((step for step, value in curve.items() if value >= WANTED), "never")
        reached, precision = _spelled(row["reached"], ".2f"), _spelled(row["AP"], ".2f")
        yield KINDS[kind], reached, precision, first, row["steps"], row["cpu_seconds"]


def _tuned(rows: Rows) -> Iterator[Sequence[object]]:
    for kind in KINDS:
        for row in (row for row in rows.values() if row["kind"] == kind):
            loaded = row["weights"].removeprefix("weights: ").split(" (from")[0]
            percent = _spelled({name: 100 * value for name, value in row["AP50"].items()}, ".2f")
            yield KINDS[kind], row["from"], loaded, " to ".join(map(str, row["loss"])), percent, row["cpu_seconds"]


def _spelled(values: dict[str, float], form: str) -> str:
    """One number alone where it is that of boxes, else each with what it is of."""
    if list(values) == ["bbox"]:
        return format(values["bbox"], form)
    return ", ".join(f"{MEASURES.get(name, name)} {value:{form}}" for name, value in values.items())


def _conditions(rows: Rows) -> str:
    """What the rows were measured on, and what was not controlled."""
    if not rows:
        return "Not measured."
    loads = [row["load"][0] for row in rows.values()]
    steps = [row["steps"] for row in rows.values()]
    first = next(iter(rows.values()))
    threads = "one thread" if first["threads"] == 1 else f"{first['threads']} threads"
    return (
        f"One run each (seed 0), {_span(steps, 'd')} steps, {threads} of {first['gpu'] or first['processor']}, PyTorch "
        f"{first['torch']}; not controlled: other programs on the machine (load {_span(loads, '.1f')} at the end)."
    )


def _span(values: Sequence[float], form: str) -> str:
    least, most = format(min(values), form), format(max(values), form)
    return least if least == most else f"{least} to {most}"


def _table(head: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
