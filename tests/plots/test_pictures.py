from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.evaluation.average_precision import Detections
from boxless.evaluation.matching import CORRECT, EXTRA, MISSING, WRONG_CLASS, confusion, match
from boxless.evaluation.precision_recall import precision_recall
from boxless.plots.features import attention_panels, level_maps, pca_colours, pca_panels
from boxless.plots.outcomes import GROUPS, HUES, MatchedImage, examples, outcome_counts, outcome_pairs
from boxless.plots.pairs import (
    RIGHT,
    WRONG,
    ViewPair,
    correlation_matrix,
    cross_correlation,
    transport_plan,
    view_matches,
)
from boxless.plots.proposals import SHOWN, proposal_statistics, proposals_on_images, recall_curves
from boxless.plots.scores import CLASSES, class_gains, confusion_matrix, precision_recall_curves
from boxless.plots.style import blank, read_captions, save
from boxless.plots.views import show_views

RANDOM = np.random.default_rng(0)


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return RANDOM.integers(0, 255, (height, width, 3)).astype(np.uint8)


def laid_out(figure: Figure) -> Figure:
    """The figure as it is drawn: warnings, which are errors here, and layout come only then."""
    figure.draw_without_rendering()
    return figure


def test_captions_lie_beside_their_figures(tmp_path: Path) -> None:
    for name in ("views", "curves", "plain"):
        save(blank(2, 1), tmp_path / name, "" if name == "plain" else f"shows ünïts of {name}")
    save(blank(2, 1), tmp_path / "views", "shows more")
    assert read_captions(tmp_path) == {"views.png": "shows more", "curves.png": "shows ünïts of curves"}
    (tmp_path / "views.png").unlink()
    assert list(read_captions(tmp_path)) == ["curves.png"]
    (tmp_path / "captions.json").write_text("{broken")
    assert read_captions(tmp_path) == {} == read_captions(tmp_path / "nowhere")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_boxes_windows_and_points_are_drawn_where_they_are() -> None:
    source, view = picture(50, 100), picture(40, 40)
    window, box = np.array([[20.0, 10, 60, 50], [0, 0, 100, 50]]), np.array([[30.0, 20, 40, 30]])
    places = [np.array([[50.0, 25.0], [90.0, 5.0]]), np.array([[30.0, 15.0], [np.nan, np.nan]])]
    boxes = [box, box - [20, 10, 20, 10]]  # the window begins at (20, 10) and has the view's size
    seen = [np.array([True]), np.array([True])]
    figure = laid_out(show_views([[source, view]], [boxes], [seen], ["source", "V1"], [places], [window]))
    left, right = figure.axes
    corners = [[30, 40, 40, 30, 30], [20, 20, 30, 30, 20]]
    assert np.array_equal(left.lines[0].get_data(), corners)
    assert np.array_equal(right.lines[0].get_data(), np.array(corners) - [[20], [10]])
    frame = left.get_window_extent()  # data to screen: x grows to the right, y downwards, the image fills the axes
    x, y = left.transData.transform((30, 20))
    assert (x - frame.x0) / frame.width == pytest.approx(0.3) and (frame.y1 - y) / frame.height == pytest.approx(0.4)
    assert [text.get_text() for text in left.texts] == ["1", "1", "2", "V1"]  # the second window is the whole image
    assert [text.get_text() for text in right.texts] == ["1", "1"]  # and the second place is not in the view
    marks = [tuple(line.get_data()) for line in right.lines if line.get_marker() == "o"]
    assert marks == [([30.0], [15.0])] or np.array_equal(np.ravel(marks), [30, 15])


def test_proposals_and_their_statistics() -> None:
    boxes = [np.array([[1.0, 2, 30, 20]] * 40), np.zeros((0, 4))]
    first, second = laid_out(proposals_on_images([picture(), picture()], boxes)).axes
    assert len(first.lines) == SHOWN and first.get_title("left") == f"{SHOWN} of 40"
    assert np.array_equal(first.lines[0].get_data(), [[1, 30, 30, 1, 1], [2, 2, 20, 20, 2]]) and not second.lines
    counts, sides = np.array([3, 5, 5, 9]), RANDOM.uniform(10, 90, 22)
    for axes, values in zip(laid_out(proposal_statistics(counts, sides)).axes, (counts, sides), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == len(values)
    laid_out(proposal_statistics(np.zeros(0), np.zeros(0)))
    best = np.array([0.0, 0.4, 0.5, 0.95])
    (axes,) = laid_out(recall_curves({"all": best, "small": best[:0]}, 7.0)).axes
    ious, shares = axes.lines[0].get_data()
    assert np.allclose(shares, [100 * np.mean(best >= iou) for iou in ious]) and len(axes.lines) == 2


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(3, 12), st.floats(0.1, 50))
def test_pca_colours_depend_on_distances_alone(seed: int, channels: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    spread = random.gamma(1.0, 1.0, (90, channels)) * 2.0 ** -np.arange(channels)  # skewed, and no two directions alike
    maps = [spread[:60].reshape(6, 10, channels), spread[60:].reshape(5, 6, channels)]
    turn = np.linalg.qr(random.normal(size=(channels, channels)))[0]
    before = pca_colours([each.astype(np.float64) for each in maps])
    after = pca_colours([scale * each @ turn + 3 for each in maps])
    for own, turned, each in zip(before, after, maps, strict=True):
        assert own.shape == (*each.shape[:2], 3) and own.min() >= 0 and own.max() <= 1
        np.testing.assert_allclose(own, turned, atol=1e-3)


def test_maps_cover_their_images() -> None:
    images = [picture(32, 64), picture(64, 32)]
    levels = [{"P2": RANDOM.random((8, 16)), "P3": RANDOM.random((4, 8))}] * 2
    vectors = {"a": [RANDOM.random((4, 8, 5)), RANDOM.random((8, 4, 5))], "b": [np.ones((4, 8, 2)), np.ones((8, 4, 2))]}
    strengths = {"a": [RANDOM.random((4, 8)), np.zeros((8, 4))]}
    drawn = level_maps(images, levels), pca_panels(images, vectors), attention_panels(images, strengths)
    for figure, rows in zip(drawn, (2, 2, 1), strict=True):
        grid = np.reshape(laid_out(figure).axes, (1 + rows, 2))
        for axes in grid.T.flatten():
            height, width = images[0 if axes in grid[:, 0] else 1].shape[:2]
            assert all(tuple(shown.get_extent()) == (0, width, height, 0) for shown in axes.images)
    assert [axes.get_title("left") for axes in drawn[0].axes[2::2]] == ["P2, 4 px a cell", "P3, 8 px a cell"]
    assert len(drawn[2].axes[2].images) == 2  # the image under its map


def test_cross_correlation_is_numpys_and_the_histograms_are_whole() -> None:
    first, second = RANDOM.normal(size=(30, 6)), RANDOM.normal(size=(30, 6))
    second[:, 0], second[:, 5] = -3 * first[:, 0] + 1, 7.0
    matrix = cross_correlation(first, second)
    np.testing.assert_allclose(matrix[:, :5], np.corrcoef(first.T, second[:, :5].T)[:6, 6:], atol=1e-12)
    assert matrix[0, 0] == pytest.approx(-1) and (matrix[:, 5] == 0).all()
    figure = laid_out(correlation_matrix(matrix, 30, "embeddings"))
    assert np.array_equal(figure.axes[0].images[0].get_array(), matrix)
    laid_out(correlation_matrix(np.eye(300), 64, "embeddings"))


def test_matches_are_lines_between_the_views_and_right_ones_are_counted() -> None:
    places, truth = np.array([[10.0, 10], [30, 30]]), np.array([[15.0, 5], [35, 20]])
    found = {"good": truth + np.array([[4, -4], [0, 5]]), "bad": truth + np.array([[6, 0], [0, -9]])}
    pair = ViewPair(picture(40, 50), picture(40, 50), places, truth, found, 5.0)
    assert pair.right("good").all() and not pair.right("bad").any()
    true, good, bad = laid_out(view_matches([pair])).axes
    assert [axes.get_title("left") for axes in (good, bad)] == ["good: 2 of 2 found", "bad: 0 of 2 found"]
    for axes, ends, hue in ((true, truth, RIGHT), (good, found["good"], RIGHT), (bad, found["bad"], WRONG)):
        for line, place, end in zip(axes.lines[1::2], places, ends, strict=True):
            offset = axes.images[1].get_extent()[0]
            assert line.get_color() == hue
            assert np.allclose(line.get_xydata(), [place, end + np.array([offset, 0])])
    none = ViewPair(picture(), picture(), places[:0], truth[:0], {"x": truth[:0]}, 5.0)
    assert "share no cell" in laid_out(view_matches([none])).axes[0].texts[0].get_text()


def test_the_plan_that_is_drawn_sums_to_the_marginals() -> None:
    plan = RANDOM.random((3, 4, 3, 4))
    plan /= plan.sum()
    cells = [0, 7, 11]
    place = np.array([10.0, 10, 20, 20])
    corners = np.array([[10.0 * x - 5, 10.0 * y - 5] for y in range(3) for x in range(4)])  # the first ones reach out
    boxes = np.concatenate([corners, corners + 10], 1)
    figure = laid_out(transport_plan(picture(30, 40), picture(30, 40), plan, boxes, cells, [place, None, None]))
    rows = plan.sum((2, 3)).ravel()
    for (left, middle, flows), cell in zip(np.reshape(figure.axes, (3, 3)), cells, strict=True):
        drawn = np.asarray(middle.images[1].get_array())
        assert drawn.sum() == pytest.approx(rows[cell])
        assert middle.images[1].get_extent() == [-5, 35, 25, -5] and middle.get_xlim() == (0, 40)
        assert float(left.get_title("left").removeprefix("weight ")) == pytest.approx(12 * rows[cell], abs=0.006)
        widths = np.array([line.get_linewidth() for line in flows.lines[2::2]])  # after the cell's box; rims between
        shares = np.sort(drawn.ravel() / drawn.sum())
        assert np.allclose(widths, np.maximum(0.6, 14 * shares[shares >= 0.01]))
    drawn = [figure.axes[row].lines[0].get_xydata()[[0, 2]].tolist() for row in (0, 3)]
    assert drawn == [[[0, 0], [5, 5]], [[25, 5], [35, 15]]]  # cells 0 and 7, as far as the view shows them
    assert len(figure.axes[1].lines) == 1 and not figure.axes[4].lines  # where it truly is, if anywhere


@pytest.fixture
def judged() -> tuple[LabelledData, list[Detections], list]:
    """Two images: one object each is found, mistaken, missed; and one detection too many."""
    boxes = np.array([[0, 0, 20, 20], [30, 0, 50, 20], [0, 25, 15, 40]], np.float32)
    images = tuple(
        LabelledImage(Path(f"{n}.jpg"), n, 60, 40, boxes, np.array([0, 1, 2]), np.zeros(3, bool)) for n in (1, 2)
    )
    extra = np.array([[40, 25, 58, 38]], np.float32)
    found = Detections(np.concatenate([boxes[:2], extra]), np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 2, 1]))
    data = LabelledData("here", ("cat", "dog", "cow"), (1, 2, 3), images)
    return data, [found, found], [match(image, found, 0.5) for image in images]


def test_outcomes_have_their_colours_and_counts(judged) -> None:
    data, found, matches = judged
    assert [examples(matches, found, group, 1) for group in GROUPS] == [[1]] * 4
    shown = MatchedImage(picture(), data.images[0].boxes, data.images[0], found[0].boxes, found[0], matches[0])
    figure = laid_out(outcome_pairs({group: [shown] for group in GROUPS}, data.classes))
    left, right = figure.axes[:2]
    assert [line.get_color() for line in left.lines] == [HUES[CORRECT], HUES[WRONG_CLASS], HUES[MISSING]]
    assert [line.get_color() for line in right.lines] == [HUES[EXTRA], HUES[WRONG_CLASS], HUES[CORRECT]]
    assert "cow 80" in [text.get_text() for text in right.texts]
    laid_out(outcome_pairs({group: [] for group in GROUPS}, data.classes))
    bars, histogram = laid_out(outcome_counts(data, found, matches, np.array([1.0, 1.0, 0.0] * 2))).axes
    widths = {container.get_label(): [bar.get_width() for bar in container] for container in bars.containers}
    assert sorted(name for name, each in widths.items() for width in each if width) == [*sorted(GROUPS)]
    assert {abs(width) for each in widths.values() for width in each} == {0, 2}
    assert sum(bar.get_height() for bar in histogram.patches) == 6


def test_confusion_shows_counts_and_the_classes_that_are_mixed_up(judged) -> None:
    data, found, matches = judged
    counts = confusion(data, found, matches)
    axes = laid_out(confusion_matrix(counts, data.classes, 0.5)).axes[0]
    assert {text.get_position(): int(text.get_text()) for text in axes.texts} == {
        (column, row): count for (row, column), count in np.ndenumerate(counts) if count
    }
    many = np.zeros((1204, 1204), np.int64)
    many[700, 900], many[:1203, 1203] = 5, 1
    axes = laid_out(confusion_matrix(many, [f"c{n}" for n in range(1203)], 0.5)).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert {"c700", "c900"} <= set(names) and len(names) == CLASSES + 1 and names[-1] == "nothing"


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_scores_by_class_of_few_and_many_classes(judged, classes: int) -> None:
    data, found, _ = judged
    names = tuple(f"class {n}" for n in range(classes))
    images = tuple(LabelledImage(i.path, i.image_id, 60, 40, i.boxes, i.labels % classes, i.crowd) for i in data.images)
    labelled = LabelledData("here", names, tuple(range(1, classes + 1)), images)
    detections = [Detections(each.boxes, each.scores, each.labels % classes) for each in found]
    curves = precision_recall(labelled, detections)
    panels = laid_out(precision_recall_curves(curves, names)).axes
    for axes, means in zip(panels, curves.means, strict=True):
        assert np.allclose(axes.lines[-1].get_ydata(), 100 * means)
        assert f"{100 * means.mean():.1f}" in axes.get_title("left")
    gains = {name: [0.01 * n - 0.1, 0.01 * n - 0.12] for n, name in enumerate(names)}
    (axes,) = laid_out(class_gains(gains, "soco", "from scratch")).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == sorted(widths, reverse=True) and len(widths) == min(classes, CLASSES)
    best = classes - 1
    assert widths[0] == pytest.approx(best - 11)
