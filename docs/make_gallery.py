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

Made by `python docs/make_gallery.py`. Each picture is what its command draws, made smaller; the command also writes it
as SVG, and what it shows in words to `captions.json`. `boxless figures --run RUN --data DATA` draws everything that run
and data allow.

The runs are small ones, minutes on two CPU cores, with ResNet-18: 150 steps of 8 images of 64 px (Barlow Twins 96 of
16) from 256 of COCO's images; on steel surfaces (NEU-DET), 150 steps of 8 at 96 px from a tenth of the labels. The
pictures show what is drawn, not what the methods are worth: [results.md](results.md) has what was measured.
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
        "What selective search found, up to twelve boxes of each image (SoCo, fig. 2).",
    ),
    Entry(
        "Their numbers and sizes",
        "soco",
        "proposals-statistics",
        f"boxless figures --run runs/soco {COCO} --kinds proposals",
        "How many boxes an image has and how large they are, within SoCo's limits (SoCo, fig. 3).",
    ),
    Entry(
        "What they cover",
        "soco",
        "proposals-recall",
        "boxless figures --run runs/soco --data coco256/annotations/instances_val.json --kinds proposals",
        "With labels as data: SoCo's limits leave large objects, of which three quarters are covered at IoU 0.5.",
    ),
    Entry(
        "Curves",
        "soco",
        "curves",
        "boxless figures --run runs/soco --kinds curves",
        "Loss and terms, gradients, rates, the target's momentum, and the four measures of health.",
    ),
    Entry(
        "Feature maps",
        "soco",
        "maps",
        f"boxless figures --run runs/soco {COCO} --kinds maps",
        "How strongly each place answers on each level of the pyramid (course report, fig. 2a).",
    ),
    Entry(
        "Features as colours",
        "soco",
        "pca",
        f"boxless figures --run runs/soco {COCO} --kinds pca",
        "Three principal components of P3 as red, green and blue, beside random weights.",
    ),
    Entry(
        "Attention, two methods",
        "densecl",
        "attention",
        f"boxless figures --run runs/densecl runs/moco {COCO} --kinds attention",
        "Where C5 answers most strongly (DetCo, fig. 4).",
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
        "Which cells of an image are found in its mirrored copy in other colours (LC-loss, fig. 5).",
    ),
    Entry(
        "Accuracy of correspondence",
        "densecl",
        "correspondence-accuracy",
        "boxless figures --run runs/densecl runs/moco --data coco256/images --kinds correspondence",
        "Over 32 images, with a 95 % interval and what guessing finds (LC-loss, fig. 4).",
    ),
    Entry(
        "Cross-correlation",
        "barlow",
        "correlation",
        f"boxless figures --run runs/barlow {COCO} --kinds correlation",
        "Of two views' embeddings, which Barlow Twins wants to be the identity (course report, fig. 2b).",
    ),
    Entry(
        "Transport plan",
        "self-emd",
        "emd",
        f"boxless figures --run runs/self-emd {COCO} --kinds emd",
        "Where the mass of three cells goes in another crop, as heat maps and as flows (Self-EMD, fig. 5).",
    ),
    Entry(
        "Detections, sorted",
        "neu-soco",
        "detections",
        f"boxless figures --run runs/neu-soco {NEU} --kinds detections",
        "Labels left, detections right, by what became of them (course report, fig. 1).",
    ),
    Entry(
        "Outcomes by class and IoU",
        "neu-soco",
        "detections-counts",
        f"boxless figures --run runs/neu-soco {NEU} --kinds detections",
        "How many objects of each class were found, mistaken or missed, and how well detections fit.",
    ),
    Entry(
        "Precision and recall",
        "neu-soco",
        "precision-recall",
        f"boxless figures --run runs/neu-soco {NEU} --kinds precision-recall",
        "By class, with COCO's interpolation; the areas are AP50 and AP75.",
    ),
    Entry(
        "Confusion",
        "neu-soco",
        "confusion",
        f"boxless figures --run runs/neu-soco {NEU} --kinds confusion",
        "What is taken for what, what is missed, and what is found where nothing is labelled.",
    ),
    Entry(
        "Gain by class",
        "neu-soco",
        "gain",
        "boxless figures --run runs/neu-soco runs/neu-none --kinds gain",
        "Over the same detector from scratch, one run each; of a comparison, a dot for each seed.",
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
