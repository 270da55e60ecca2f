import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import boxless
from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.figures import features as picture_features
from boxless.figures import pairs as picture_pairs
from boxless.geometry.affine import compose
from boxless.plots import style
from boxless.plots.style import read_captions
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.feature_extractor import load_feature_extractors


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small maps and few pixels: most of the time goes into writing them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style._SETTINGS, "savefig.dpi", 60)
        patch.setattr(picture_features, "LONGEST", 96)
        patch.setattr(picture_pairs, "PAIR_SIZE", 97)
        patch.setattr(picture_pairs, "FLIPPED", 3)
        yield


@pytest.fixture(scope="module")
def drawn(small, digits, runs, tmp_path_factory):
    """A pretraining's and a detector's folder, each with all its figures."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("pretrained", "boxes"):
        shutil.copytree(getattr(runs, name), folder / name)
    results = {
        "pretrained": boxless.figures(str(folder / "pretrained"), digits.val, quiet=True),
        "boxes": boxless.figures(str(folder / "boxes"), digits.val, quiet=True),
    }
    return folder, results


EXPECTED = {
    "pretrained": "curves views proposals proposals-statistics proposals-recall maps pca attention correspondence "
    "correspondence-flip correspondence-accuracy correlation",
    "boxes": "curves maps pca attention detections detections-counts precision-recall confusion",
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_every_figure_of_a_run_is_there_with_words_and_can_be_opened(drawn, name):
    folder, results = drawn[0] / name / "figures", drawn[1][name]
    names = EXPECTED[name].split()
    assert [Path(file).stem for file in results.written] == names
    captions = read_captions(folder)
    assert list(captions) == [f"{each}.png" for each in names] and all(len(text) > 30 for text in captions.values())
    for each in names:
        with Image.open(folder / f"{each}.png") as image:
            assert min(image.size) > 100 and len(np.unique(np.asarray(image.convert("L")))) > 5
        assert (folder / f"{each}.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert {file.suffix for file in folder.iterdir()} == {".png", ".svg", ".json"}
    left_out = " ".join(results.left_out)
    assert ("emd: is of method self-emd" in left_out) == (name == "pretrained") and "label-efficiency" in left_out


def test_counts_in_words_are_those_of_the_detections(drawn, digits):
    said = read_captions(drawn[0] / "boxes" / "figures")
    objects = len(json.loads(Path(digits.val).read_text())["annotations"])
    right, wrong, missed = (
        int(said["confusion.png"].split(word)[0].split()[-1]) for word in (" of their", " of another", " missed")
    )
    assert right + wrong + missed == objects
    assert f"{missed} missing" in said["detections.png"] and f"{right} correct" in said["detections.png"]


def test_gain_over_a_reference_and_of_a_comparison(runs, tmp_path):
    shutil.copytree(runs.boxes, tmp_path / "own")
    result = boxless.figures([str(tmp_path / "own"), runs.masks], kinds="gain,curves", quiet=True)
    assert [Path(file).name for file in result.written] == ["gain.png", "curves.png"]
    ours, theirs = (
        json.loads((Path(run) / "summary.json").read_text())["per_class"]["bbox"] for run in (runs.boxes, runs.masks)
    )
    both = [name for name in ours if None not in (ours[name], theirs[name])]
    mean = 100 * sum(ours[name] - theirs[name] for name in both) / len(both)
    assert f"{mean:+.1f} points in the mean of {len(both)} classes" in next(iter(result.written.values()))
    for start, run in (("none", runs.masks), ("soco", runs.boxes)):
        shutil.copytree(run, tmp_path / "compared" / "finetune" / "faster_rcnn" / start / "labels-0.1" / "seed-0")
    rows = [
        "detector,method,fraction,images,seed,AP,seconds",
        *(f"faster_rcnn,{name},0.1,4,0,0.1,9" for name in ("none", "soco")),
    ]
    for older in (False, True):  # a table of before there was a choice of detectors
        table = [row.partition(",")[2] if older else row for row in rows]
        (tmp_path / "compared" / "comparison.csv").write_text("\n".join(table) + "\n")
        result = boxless.figures(str(tmp_path / "compared"), quiet=True)
        assert [Path(file).name for file in result.written] == ["gain-soco.png", "label-efficiency.png"]
        name = "detector" if older else "faster_rcnn"
        said = f"AP of {name} against the number of labelled images, for from scratch, soco;"
        assert list(result.written.values())[1].startswith(said)
    (tmp_path / "compared" / "comparison.csv").write_text("name,value\nx,1\n")
    with pytest.raises(UserError, match=r"comparison\.csv: is not a table of boxless compare \('method'\)"):
        boxless.figures(str(tmp_path / "compared"), kinds="label-efficiency", quiet=True)


def test_a_preview_shows_the_views_and_trains_nothing(digits, tmp_path, capsys):
    settings = {"trunk.backbone": "resnet18", "method.size": 64, "batch_size": 4, "workers": 0}
    out = tmp_path / "run"
    boxless.pretrain(digits.unlabelled, str(out), "byol-small", preview=True, **settings)
    assert "leave out --preview" in capsys.readouterr().out
    assert sorted(file.name for file in out.rglob("*") if file.is_file()) == ["captions.json", "views.png", "views.svg"]
    assert "nine places" in read_captions(out / "figures")["views.png"]


def test_the_plan_shows_cells_and_their_true_places_where_a_resnet_looks(digits, tmp_path, monkeypatch):
    make_views, shown = picture_pairs.make_views, []

    def moved_by_a_cell(*arguments):
        given = make_views(*arguments)
        across = compose(torch.tensor([[[1.0, 0, -32], [0, 1, 0]]]), given.views[0].from_source)
        return replace(given, views=(given.views[0], given.views[0]._replace(from_source=across)))

    monkeypatch.setattr(picture_pairs, "make_views", moved_by_a_cell)
    monkeypatch.setattr(picture_pairs, "transport_plan", lambda *given: shown.append(given))
    recipe, (network,) = load("self-emd-small", PretrainRecipe), load_feature_extractors(["none"], "resnet18", seed=0)
    picture_pairs.draw_emd(tmp_path, recipe, network, index_images(digits.unlabelled), seed=0)
    ((*_, boxes, cells, truth),) = shown
    spans = [(-15.5, 16.5), (16.5, 48.5), (48.5, 80.5), (80.5, 112.5)]  # around pixels 0, 32, 64, 96 of 97
    assert boxes.tolist() == [[x1, y1, x2, y2] for y1, y2 in spans for x1, x2 in spans]
    wide = {1: (0, 16.5), 2: (16.5, 48.5), 3: (48.5, 65)}  # of what the first view shows, a cell to the left
    high = [(0, 16.5), (16.5, 48.5), (48.5, 80.5), (80.5, 97)]
    for cell, place in zip(cells, truth, strict=True):
        (x1, x2), (y1, y2) = wide[cell % 4], high[cell // 4]
        assert place == pytest.approx([x1, y1, x2, y2], abs=1e-3)


@pytest.mark.parametrize(
    ("run", "data", "kinds", "expected"),
    [
        ("nothing", None, None, "no such folder"),
        ("pretrained", None, "veiws", "did you mean 'views'"),
        ("pretrained", None, "curves,views", "kind views: needs --data: images"),
        ("pretrained", "val", "confusion", "kind confusion: is of a fine-tuning"),
        ("boxes", "images", "confusion", "kind confusion: needs labels"),
        ("boxes", "broken", "detections", r"needs labels: .*broken\.json: not valid JSON, line 1"),
        ("boxes", None, "gain", "two runs"),
        ("pretrained", "val", "emd", "of method self-emd"),
    ],
)
def test_what_is_missing_is_said_in_one_line(digits, runs, run, data, kinds, expected, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    where = {"val": digits.val, "images": str(digits.images), "broken": str(tmp_path / "broken.json")}.get(data)
    with pytest.raises(UserError, match=expected) as raised:
        boxless.figures(getattr(runs, run, run), where, kinds, quiet=True)
    assert "\n" not in str(raised.value)


def test_a_seed_less_than_nothing_is_refused():
    with pytest.raises(UserError, match="seed=-1: expected 0 or more"):
        boxless.figures("run", seed=-1)
