from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from boxless.data.annotations.read import LabelledImage
from boxless.errors import UserError
from boxless.evaluation.average_precision import Detections, masks_to_rle
from boxless.evaluation.correspondence import Pair
from boxless.evaluation.precision_recall import IOUS, PrecisionRecall
from boxless.evaluation.probes import Score
from boxless.plots.curves import training_curves
from boxless.plots.detections import detection_pairs
from boxless.plots.label_efficiency import label_efficiency
from boxless.plots.probes import match_panels, score_curves
from boxless.plots.scores import class_gains, precision_recall_curves
from boxless.plots.style import PALETTE, save, show_image, styled
from boxless.plots.views import show_views


def runs(
    fractions: list[float], seeds: int = 3, methods: tuple[str, ...] = ("from scratch", "pretrained")
) -> list[dict]:
    return [
        {
            "method": name,
            "fraction": share,
            "images": round(400 * share),
            "seed": seed,
            "AP": 0.1 * rank + share / 10 + seed / 100,
        }
        for rank, name in enumerate(methods, 1)
        for share in fractions
        for seed in range(seeds)
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def written(figure: Figure, folder: Path) -> None:
    paths = save(figure, folder / "figure.of 10")
    assert [path.name for path in paths] == ["figure.of 10.png", "figure.of 10.svg"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG" and b"<svg" in paths[1].read_bytes()[:1000]
    assert sorted(folder.iterdir()) == sorted(paths)


def test_label_efficiency_lines(tmp_path: Path) -> None:
    figure = label_efficiency(runs([0.1, 1.0, 0.02]))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2 %\n8", "10 %\n40", "100 %\n400"]
    assert axes.get_xscale() == "log"
    scratch, pretrained = axes.lines
    assert list(scratch.get_xdata()) == [0.02, 0.1, 1.0]
    np.testing.assert_allclose(scratch.get_ydata(), [11.2, 12, 21])  # mean of seeds 0, 1, 2 hundredths apart
    bands, dots = axes.collections[::2], axes.collections[1::2]
    np.testing.assert_allclose(np.unique(bands[0].get_paths()[0].vertices[:, 1])[[0, -1]], [10.2, 22])
    assert [len(each.get_offsets()) for each in dots] == [9, 9]
    assert texts(figure) == ["from scratch", "pretrained"] and axes.get_legend() is None
    assert [text.get_color() for text in axes.texts] == [scratch.get_color(), pretrained.get_color()]
    assert "3 seeds" in axes.get_title(loc="left")
    written(figure, tmp_path)


def test_label_efficiency_names_do_not_overlap() -> None:
    figure = label_efficiency(runs([0.5, 1.0], methods=("a", "b")) + runs([0.5, 1.0], methods=("c", "d", "e")))
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_label_efficiency_of_one_fraction_has_no_lines_over_labels(tmp_path: Path) -> None:
    figure = label_efficiency(runs([0.1]))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["from scratch", "pretrained"]  # worst at the bottom
    assert [line.get_xdata() for line in axes.lines] == [pytest.approx([12, 12]), pytest.approx([22, 22])]
    assert texts(figure) == ["12.0", "22.0"]
    assert "10 % of the labels (40 images)" in axes.get_title(loc="left")
    written(figure, tmp_path)


def test_label_efficiency_of_counts_and_of_one_seed() -> None:
    rows = [{"method": "m", "fraction": count, "seed": 0, "AP": 0.2} for count in (10, 1000)]
    (axes,) = label_efficiency(rows).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "1,000"]
    assert "no spread is known" in axes.get_title(loc="left")


@pytest.mark.parametrize(("rows", "words"), [([], "at least one run"), ([{"method": "m", "AP": 1}], "fraction, seed")])
def test_label_efficiency_names_what_is_missing(rows: list[dict], words: str) -> None:
    with pytest.raises(UserError, match=words):
        label_efficiency(rows)


def test_detection_pairs_show_labels_left_and_sure_detections_right(tmp_path: Path) -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    boxes = np.array([[5, 5, 40, 50], [50, 20, 53, 30]], np.float32)
    ring = [[5.0, 5.0, 40.0, 5.0, 40.0, 50.0, 5.0, 50.0]]
    truth = LabelledImage(Path("a.jpg"), 1, 80, 60, boxes, np.array([0, 1]), np.array([False, True]), (ring, None))
    mask = np.zeros((2, 60, 80), bool)
    mask[:, 5:50, 5:40] = True
    found = Detections(boxes[[0, 0]], np.array([0.9, 0.2], np.float32), np.array([0, 1]), masks_to_rle(mask))
    figure = detection_pairs([picture], [truth], [found], ["cat", "dog"], score_threshold=0.5)
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["cat"]  # the second box is too narrow for a tag
    assert [line.get_linestyle() for line in left.lines] == ["-", "--"]
    assert [text.get_text() for text in right.texts] == ["cat 90"] and len(right.lines) == 1
    assert left.lines[0].get_color() == right.lines[0].get_color()
    for axes in (left, right):
        layer = np.asarray(axes.images[1].get_array())
        assert (layer[..., 3] > 0).sum() == 35 * 45 and to_hex(layer[20, 20]) == PALETTE[0].lower()
    written(figure, tmp_path)
    figure = detection_pairs([picture], [truth], [replace(found, masks=None)], ["cat", "dog"])  # a detector of boxes
    assert [len(axes.images) for axes in figure.axes] == [1, 1]


def test_detection_pairs_of_nothing() -> None:
    nothing = np.zeros((0, 4), np.float32)
    truth = LabelledImage(Path("a.jpg"), 1, 8, 6, nothing, np.zeros(0, int), np.zeros(0, bool))
    found = Detections(nothing, np.zeros(0, np.float32), np.zeros(0, int))
    figure = detection_pairs([np.zeros((6, 8, 3), np.uint8)], [truth], [found], ["cat"])
    assert not texts(figure) and all(len(axes.images) == 1 and not axes.lines for axes in figure.axes)


def test_views_show_an_object_in_one_colour_and_only_where_it_is_visible(tmp_path: Path) -> None:
    images = [[np.zeros((40, 40, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)], [np.zeros((40, 60, 3), np.uint8)]]
    boxes = [
        [np.array([[2, 2, 20, 20], [10, 10, 30, 35]]), np.array([[0, 0, 0, 0], [5, 5, 15, 17]])],
        [np.zeros((0, 4))],
    ]
    visible = [[np.array([True, True]), np.array([False, True])], [np.zeros(0, bool)]]
    figure = show_views(images, boxes, visible, ["view 1", "view 2"])
    first, second, third, empty = figure.axes
    assert [text.get_text() for text in first.texts] == ["1", "2"]
    assert [text.get_text() for text in second.texts] == ["2"]
    assert first.lines[1].get_color() == second.lines[0].get_color() != first.lines[0].get_color()
    assert not third.lines and not empty.images
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["view 1", "view 2"]
    written(figure, tmp_path)


def test_curves_are_smoothed_where_noisy_and_mark_what_is_not_finite(tmp_path: Path) -> None:
    steps = np.arange(200)
    loss = 3 + np.random.default_rng(0).normal(0, 0.2, 200)
    loss[50] = np.nan
    rate = 0.1 * np.cos(steps / 200)
    metrics = {
        "loss": (steps, loss),
        "learning rate": (steps, rate),
        "AP": ([0, 100], [0.1, 0.2]),
        "last": ([0], [1.0]),
    }
    figure = training_curves(metrics)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == list(metrics)
    raw, smooth, mark = panels[0].lines
    assert np.std(smooth.get_ydata()) < np.std(raw.get_ydata()) / 2
    assert np.mean(smooth.get_ydata()) == pytest.approx(np.nanmean(loss), abs=0.02)
    assert mark.get_xdata() == [50, 50]
    (line,) = panels[1].lines
    np.testing.assert_array_equal(line.get_ydata(), rate)
    assert [axes.get_xlabel() for axes in panels] == ["", "step", "step", "step"]
    written(figure, tmp_path)
    with pytest.raises(UserError, match="at least one metric"):
        training_curves({})


def test_names_of_classes_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["$5_$", "_background_"]
    shape = (len(IOUS), 101, len(names))
    curves = PrecisionRecall(np.linspace(0, 1, 101), np.full(shape, 0.5))
    figure = precision_recall_curves(curves, names)
    legend = figure.axes[-1].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == [*names, "mean"]
    written(figure, tmp_path / "curves")
    written(class_gains({name: [0.1] for name in names}, "new", "from scratch"), tmp_path / "gain")
    probed = score_curves([Score("_run", f"mAP, k = {k}", 0.3, 0.2, 0.4, 5) for k in (1, 2)], 0.1)
    legend = probed.axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["_run", "guessing"]


def test_style_leaves_the_callers_settings_alone_and_files_repeat(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    first, second = (save(label_efficiency(runs([0.1, 1.0])), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert dict(matplotlib.rcParams) == before


@styled()
def test_images_are_shown_in_the_frame_of_boxes() -> None:
    axes = Figure().subplots()
    show_image(axes, np.zeros((30, 50, 3), np.uint8))
    assert axes.images[0].get_extent() == [0, 50, 30, 0] and axes.get_ylim() == (30, 0)


def test_matches_are_marked_where_the_cells_look() -> None:
    image = torch.zeros(3, 33, 97)
    truth, found = np.array([3, 2, 1, 0, 7, 6, 5, 4]), np.array([3, 2, 1, 0, 7, 6, 5, 0])
    _, panel = match_panels(Pair(0, image, image), {"x": found}, columns=4).axes[:2]
    marks = [tuple(float(value) for (value,) in line.get_data()) for line in panel.lines]
    assert marks == [(32 * (cell % 4) + 0.5, 32 * (cell // 4) + 0.5) for cell in truth]
    (arrow,) = panel.texts
    assert (arrow.xyann, arrow.xy) == ((0.5, 32.5), (0.5, 0.5))
