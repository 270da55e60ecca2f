"""Write docs/gallery.md and the small pictures in docs/figures/gallery/ from figures that `boxless figures` has drawn.

python docs/make_gallery.py RUNS

RUNS is a folder with the runs that ENTRIES name, each with its figures/. Where one is missing nothing is written.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from boxless.plots.style import read_captions

HERE = Path(__file__).parent
WIDTH, COLOURS = 720, 192
"""Of the small pictures: px, and the size of their palettes."""
LIMIT = 2**20
"""Bytes of all pictures together."""

HEAD = """# Gallery

Written by `python docs/make_gallery.py`. Each picture is drawn by its command and then made smaller. The command also
writes it as SVG, and a description in words to `captions.json`. `boxless figures --run RUN --data DATA` draws
everything that the run and the data allow.

The runs are small, minutes on two CPU cores, with ResNet-18: 150 steps of 8 images of 64 px (Barlow Twins 96 of 16)
from 256 of COCO's images; on steel surfaces (NEU-DET), 150 steps of 8 at 96 px from a tenth of the labels. The pictures
show what can be drawn, not how good the methods are: [results.md](results.md) has the measurements.
"""


@dataclass(frozen=True)
class Entry:
    """A picture: its title, the run's folder and the file in its figures/, the command, and one sentence."""

    title: str
    run: str
    file: str
    command: str
    sentence: str


COCO, NEU = "--data coco256/images", "--data NEU:val"
ENTRIES = (
    Entry(
        "Views, as the network sees them",
        "soco",
        "views",
        f"boxless pretrain {COCO} --recipe soco-small --out runs/soco --preview",
        "SoCo's three views of each image with the boxes that it compares; nothing is trained.",
    ),
    Entry(
        "Proposals",
        "soco",
        "proposals",
        f"boxless figures --run runs/soco {COCO} --kinds proposals",
        "Boxes from selective search, up to twelve per image (SoCo, fig. 2).",
    ),
    Entry(
        "Numbers and sizes of proposals",
        "soco",
        "proposals-statistics",
        f"boxless figures --run runs/soco {COCO} --kinds proposals",
        "The number of boxes per image and their sizes, within SoCo's limits (SoCo, fig. 3).",
    ),
    Entry(
        "Recall of proposals",
        "soco",
        "proposals-recall",
        "boxless figures --run runs/soco --data coco256/annotations/instances_val.json --kinds proposals",
        "The data are labels here. SoCo's limits leave large objects, of which three quarters are covered at IoU 0.5.",
    ),
    Entry(
        "Curves",
        "soco",
        "curves",
        "boxless figures --run runs/soco --kinds curves",
        "Loss and terms, gradients, learning rates, the target's momentum, and the four health measures.",
    ),
    Entry(
        "Feature maps",
        "soco",
        "maps",
        f"boxless figures --run runs/soco {COCO} --kinds maps",
        "The strength of the features at each place on each level of the pyramid (course report, fig. 2a).",
    ),
    Entry(
        "Features as colours",
        "soco",
        "pca",
        f"boxless figures --run runs/soco {COCO} --kinds pca",
        "Three principal components of P3 as red, green and blue, compared with random weights.",
    ),
    Entry(
        "Attention, two methods",
        "densecl",
        "attention",
        f"boxless figures --run runs/densecl runs/moco {COCO} --kinds attention",
        "The places where C5 responds most strongly (DetCo, fig. 4).",
    ),
    Entry(
        "Correspondence of two views",
        "densecl",
        "correspondence",
        f"boxless figures --run runs/densecl runs/moco {COCO} --kinds correspondence",
        "True matches above, found ones below, right or wrong (LC-loss, fig. 4); runs this short find few.",
    ),
    Entry(
        "Correspondence under flip and colour",
        "densecl",
        "correspondence-flip",
        f"boxless figures --run runs/densecl runs/moco {COCO} --kinds correspondence",
        "The cells of an image that are found in its mirrored, recoloured copy (LC-loss, fig. 5).",
    ),
    Entry(
        "Accuracy of correspondence",
        "densecl",
        "correspondence-accuracy",
        "boxless figures --run runs/densecl runs/moco --data coco256/images --kinds correspondence",
        "The mean over 32 images, with a 95 % interval and the level of guessing (LC-loss, fig. 4).",
    ),
    Entry(
        "Cross-correlation",
        "barlow",
        "correlation",
        f"boxless figures --run runs/barlow {COCO} --kinds correlation",
        "The correlation of two views' embeddings, which Barlow Twins makes the identity (course report, fig. 2b).",
    ),
    Entry(
        "Transport plan",
        "self-emd",
        "emd",
        f"boxless figures --run runs/self-emd {COCO} --kinds emd",
        "The mass of three cells, transported to another crop, as heat maps and as flows (Self-EMD, fig. 5).",
    ),
    Entry(
        "Detections, sorted",
        "neu-soco",
        "detections",
        f"boxless figures --run runs/neu-soco {NEU} --kinds detections",
        "Labels left, detections right, sorted by outcome (course report, fig. 1).",
    ),
    Entry(
        "Outcomes by class and IoU",
        "neu-soco",
        "detections-counts",
        f"boxless figures --run runs/neu-soco {NEU} --kinds detections",
        "The number of objects of each class that were found, confused or missed, and how well detections fit.",
    ),
    Entry(
        "Precision and recall",
        "neu-soco",
        "precision-recall",
        f"boxless figures --run runs/neu-soco {NEU} --kinds precision-recall",
        "Curves for each class, with COCO's interpolation; the areas are AP50 and AP75.",
    ),
    Entry(
        "Confusion",
        "neu-soco",
        "confusion",
        f"boxless figures --run runs/neu-soco {NEU} --kinds confusion",
        "Objects by detected class, missed objects, and detections where nothing is labelled.",
    ),
    Entry(
        "Gain by class",
        "neu-soco",
        "gain",
        "boxless figures --run runs/neu-soco runs/neu-none --kinds gain",
        "The gain over the same detector from scratch, one run each; a comparison shows a dot for each seed.",
    ),
    Entry(
        "Label efficiency",
        "neu",
        "label-efficiency",
        "boxless figures --run runs/neu --kinds label-efficiency",
        "AP over the number of labels, from a comparison (`boxless compare`) with two seeds of 80 steps at 64 px.",
    ),
)


def main(runs: Path) -> None:
    """Write the page and its pictures."""
    missing = [f"{entry.run}/figures/{entry.file}.png" for entry in ENTRIES if not _source(runs, entry).is_file()]
    if missing:
        raise SystemExit("missing: " + ", ".join(missing))
    folder = HERE / "figures" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    parts = [HEAD]
    for entry in ENTRIES:
        small = _shrink(_source(runs, entry), folder / entry.file)
        alt = read_captions(_source(runs, entry).parent)[f"{entry.file}.png"].replace("[", "(").replace("]", ")")
        picture = f"![{alt}](figures/gallery/{small.name})"
        parts.append(f"## {entry.title}\n\n{entry.sentence}\n\n```\n{entry.command}\n```\n\n{picture}\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    (HERE / "gallery.md").write_text("\n".join(parts))
    print(f"{len(ENTRIES)} pictures, {size / 1024:.0f} KiB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT} bytes: lower WIDTH or COLOURS")


def _source(runs: Path, entry: Entry) -> Path:
    return runs / entry.run / "figures" / f"{entry.file}.png"


def _shrink(source: Path, target: Path) -> Path:
    """Write a small copy: lines on white as PNG with a palette, photographs as JPEG."""
    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    white = small.histogram()[255] / (small.width * small.height)
    if white > 0.5:
        written = target.with_suffix(".png")
        small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(written, optimize=True)
    else:
        written = target.with_suffix(".jpg")
        small.save(written, quality=78, optimize=True)
    return written


if __name__ == "__main__":
    main(Path(sys.argv[1]))
