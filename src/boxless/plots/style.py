"""The common style of all figures, and writing figures to disk."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from boxless.files import make_folder, write_text, written
from boxless.untrusted import parse_json

# Okabe and Ito, "Color Universal Design" (2008), told apart by colour-blind readers; without its yellow, which
# vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#222222"
MUTED = "#6B6B6B"
GRID = "#E2E2E2"

HEAT = "viridis"  # grows in lightness alone, so that it also reads in grey
DIVERGING = "RdBu_r"

CAPTIONS = "captions.json"

_SETTINGS: Any = {  # matplotlib types the keys as one long Literal
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that text has the same size on every machine
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 14,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $5_$
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
    "lines.linewidth": 2.5,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
    "svg.hashsalt": "boxless",  # the same figure gives the same file
}


@contextmanager
def styled() -> Iterator[None]:
    """Inside, matplotlib draws in this style; the caller's own settings are back afterwards. Also a decorator."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def blank(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that is bound to no window and to no pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colour(index: int) -> str:
    """Colour of the index-th thing; colours repeat after the palette's seven."""
    return PALETTE[index % len(PALETTE)]


def name_lines(axes: Axes) -> None:
    """The names of all lines, right of the axes; of itself matplotlib leaves out those that begin with _."""
    lines = axes.get_lines()
    names = [str(line.get_label()) for line in lines]
    axes.legend(lines, names, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def note(figure: Figure, text: str) -> None:
    """Add a note below the figure, in a lighter colour than the data."""
    figure.supxlabel(text, fontsize=13, color=MUTED)


def rows_under(images: Sequence[npt.NDArray[np.uint8]], rows: int) -> tuple[Figure, Any]:
    """A figure with the images (H, W, 3) side by side and `rows` rows under them, wide as a slide is.

    Its axes are (1 + rows, images), each as wide as its image needs; they have no ticks.
    """
    ratios = [min(2.0, max(0.5, image.shape[1] / image.shape[0])) for image in images]
    height = min(3.2, 13 / sum(ratios))
    figure = blank(max(6.0, height * sum(ratios)), 0.6 + (height + 0.35) * (1 + rows))
    grid = figure.subplots(1 + rows, len(images), squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid[0], images, strict=True):
        show_image(axes, image)
    return figure, grid


def show_image(axes: Axes, image: npt.NDArray[np.uint8]) -> None:
    """Show (H, W, 3) uint8 RGB in the frame of our boxes: continuous pixels, [0, W] x [0, H], no axis."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest" if width < 200 else "antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_anchor("N")  # images of one row start at one height, whatever their shapes


def draw_box(axes: Axes, box: npt.NDArray[Any], hue: str, tag: str = "", dashed: bool = False) -> None:
    """Outline one box (4,), px, xyxy, with an optional tag on its top left corner."""
    x0, y0, x1, y1 = (float(side) for side in box)
    xs, ys = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
    # the white rim keeps a dark line readable on a dark image
    rim = [withStroke(linewidth=4, foreground="white", alpha=0.8)]
    axes.plot(xs, ys, color=hue, linewidth=2, linestyle="--" if dashed else "-", path_effects=rim)
    if not tag:
        return
    bottom, top = axes.get_ylim()  # y grows downwards
    above = y0 - top > 0.07 * (bottom - top)  # there is room, and the tag hides nothing of the object
    left, right = axes.get_xlim()
    inwards = x0 > left + 0.7 * (right - left)  # a tag that begins further right would leave the image
    axes.annotate(
        tag,
        (min(x1, right) if inwards else max(x0, left), max(y0, top)),
        xytext=(0, 1 if above else -1),
        textcoords="offset points",
        ha="right" if inwards else "left",
        va="bottom" if above else "top",
        fontsize=10,
        color="white",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": hue, "edgecolor": "none"},
    )


def save(figure: Figure, path: Path | str, caption: str = "") -> tuple[Path, Path]:
    """Write `<path>.png` and `<path>.svg`, each whole or not at all, and the caption beside them; returns both paths.

    `caption`: what the figure shows, in words, for who does not see it; see `boxless.figures`.
    """
    stem = Path(path)
    make_folder(stem.parent)
    files = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        target = stem.with_name(stem.name + suffix)
        with styled(), written(target, alone=False) as half:
            figure.savefig(half, format=suffix[1:], metadata=metadata)
        files.append(target)
    if caption:
        _write_caption(files[0], caption)
    return files[0], files[1]


def read_captions(folder: Path | str) -> dict[str, str]:
    """The captions of a folder's figures by the names of their PNG files; of files that exist, in order of writing."""
    try:
        known = parse_json((Path(folder) / CAPTIONS).read_text())
    except (OSError, ValueError):
        return {}
    captions = known.items() if isinstance(known, dict) else ()
    return {name: str(text) for name, text in captions if (Path(folder) / name).is_file()}


def _write_caption(picture: Path, caption: str) -> None:
    captions = {**read_captions(picture.parent), picture.name: caption}
    write_text(picture.with_name(CAPTIONS), json.dumps(captions, indent=2, ensure_ascii=False) + "\n")
