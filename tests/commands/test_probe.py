import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torchvision.models import resnet18

import boxless
from boxless.cli import main
from boxless.data.classification import ClassifiedData, ExampleDataset, read_classified
from boxless.data.open import index_images
from boxless.detectors.trunk import Trunk
from boxless.errors import UserError
from boxless.evaluation import probes, svm
from boxless.recipes.load import load
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks import features
from boxless.tasks import probe as probing
from boxless.tasks.feature_extractor import load_feature_extractors

SMALL = {"backbone": "resnet18", "size": 64, "workers": 0, "quiet": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits 0 to 4 as class folders: 20 images of each to learn from, 10 to measure on."""
    root = tmp_path_factory.mktemp("classes")
    bunch = load_digits(n_class=5)
    for label in range(5):
        for number, image in enumerate(bunch.images[bunch.target == label][:30]):
            path = root / ("train" if number < 20 else "val") / f"digit {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype(np.uint8)).save(path)
    (root / "val" / "digit 0" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """torchvision's ResNet-18 with weights of no use, as a file."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "other.pth"
    torch.save(resnet18().state_dict(), path)
    return str(path)


def splits(folders: Path) -> dict[str, str]:
    return {"data": str(folders / "train"), "val": str(folders / "val")}


@pytest.mark.parametrize("kind", ["linear", "knn", "svm", "low_shot", "few_shot"])
def test_digits_as_class_folders(folders: Path, weights: str, tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(svm, "GRIDS", {"detco": (1.0, 100.0)})
    monkeypatch.setattr(probes, "EPISODES", 30)
    if kind != "low_shot":  # figures take longer than all the rest
        monkeypatch.setattr(probing, "save", lambda *_: None)
    result = boxless.probe(weights, **splits(folders), out=str(tmp_path), kind=kind, **SMALL)
    assert list(dict.fromkeys(score.weights for score in result.scores)) == ["random weights", "other"]
    assert all(result.chance < score.value <= 1 for score in result.scores)  # even random convolutions tell 0 from 1
    assert {Path(path).name for path in result.skipped} == {"broken.png"}
    assert result.scores[0].n == {"low_shot": 5, "few_shot": 30}.get(kind, 50)
    assert str(result) in (tmp_path / f"{kind}.md").read_text() and "broken.png: not an image" in str(result)
    with (tmp_path / f"{kind}.csv").open() as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [score.value for score in result.scores]
    if kind == "low_shot":
        assert all((tmp_path / "figures" / f"{kind}.{suffix}").stat().st_size > 5000 for suffix in ("png", "svg"))


def test_features_are_kept_for_the_same_weights_data_and_settings_alone(
    folders: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, val = (read_classified(where, "train", objects=True) for where in splits(folders).values())

    def files(name: str = "none", data: ClassifiedData = data, size: int = 64, seed: int = 0) -> set[tuple[str, int]]:
        network = load_feature_extractors([name], "resnet18", seed)[-1]
        features.FeatureCache(tmp_path / "kept", size, 0, True).vectors(network, data)
        return {(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "kept").iterdir()}

    first = files()
    with monkeypatch.context() as patch:
        patch.setattr(features.FeatureCache, "_batches", lambda *_: pytest.fail("computed again"))
        assert files() == first and len(first) == 1
    sizes = [len(files(weights)), len(files(data=val)), len(files(size=48)), len(files(seed=1)), len(files(weights))]
    assert sizes == [2, 3, 4, 5, 5] and first < files()


def test_features_are_those_of_torchvision(folders: Path, weights: str, tmp_path: Path) -> None:
    _, network = load_feature_extractors([weights], "resnet18", seed=0)
    data = read_classified(str(folders / "train"), "train", objects=True)
    found = features.FeatureCache(tmp_path, 64, 0, True).vectors(network, data)
    reference = resnet18()
    reference.load_state_dict(torch.load(weights))
    reference.fc = torch.nn.Identity()
    views = torch.cat([ExampleDataset(data, 64)[row].views for row in range(0, 100, 9)]).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(found.vectors[::9], reference.eval()((views - mean) / std))
    assert found.rows.tolist() == list(range(100)) and found.skipped == {}


def test_svms_see_a_map_in_four_parts() -> None:
    maps = torch.randn(2, 3, 7, 7, dtype=torch.float64)  # OpenSelfSup: kernel 6, stride 1, 8192 numbers of a ResNet-50
    parts = [maps[:, :, y : y + 6, x : x + 6].mean((2, 3)) for y in (0, 1) for x in (0, 1)]
    torch.testing.assert_close(features.pooled(maps, 2), torch.stack(parts, 2).flatten(1))
    torch.testing.assert_close(features.pooled(maps, 1), maps.mean((2, 3)))
    assert features.pooled(maps[:, :, :1, :1], 2).shape == (2, 12)


def test_a_linear_classifier_learns_from_new_crops_in_each_epoch(
    folders: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "save", lambda *_: None)
    monkeypatch.setattr(probes, "LINEAR", {"vicreg": probes.LinearPreset(1.0, 1e-6, "cosine", epochs=3)})
    seen = []
    given = features.FeatureCache.of_crops
    monkeypatch.setattr(features.FeatureCache, "of_crops", lambda *a: seen.append(given(*a)) or seen[-1])
    settings = {**splits(folders), "kind": "linear", "preset": "vicreg", **SMALL}
    result = boxless.probe("none", out=str(tmp_path), crops=True, **settings)
    assert len(seen) == 3 and not torch.equal(seen[0].vectors, seen[1].vectors) and "new random crop" in result.note
    assert result.scores[0].n == 50 and 0 <= result.scores[0].value <= 1
    kept = [path for path in (tmp_path / "features").iterdir()]
    assert len(kept) == 2  # what is measured on, and the one view of what is learned from: no crops


def test_correspondence_of_a_run_and_of_its_pyramid(digits, runs, weights: str, tmp_path: Path, capsys) -> None:
    argv = ["--weights", runs.pretrained, "--data", str(digits.images), "--size", "64", "--workers", "0"]
    argv = ["probe", *argv, "--kind", "correspondence", "--out", str(tmp_path)]
    assert main([*argv, "--level", "P2"]) == 0
    printed = capsys.readouterr()
    assert "| random weights | " in printed.out and "| pretrained | " in printed.out
    assert "Guessing reaches 0.4" in printed.out
    assert "256 cells of P2" in printed.out and "FPN ok" in printed.err
    assert (tmp_path / "figures" / "correspondence-example.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="other: has no weights of an FPN"):
        boxless.probe(weights, str(digits.images), str(tmp_path), kind="correspondence", level="P3", **SMALL)


def test_matches_in_shards_are_computed_anew_where_others_were_packed(folders: Path, tmp_path: Path) -> None:
    images = shutil.copytree(folders / "train" / "digit 0", tmp_path / "images")
    (network,) = load_feature_extractors(["none"], "resnet18", 0)
    counts = []
    for turned in (False, False, True):
        shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        for path in images.iterdir() if turned else ():
            Image.open(path).rotate(90).save(path)
        boxless.pack(str(images), str(tmp_path / "packed"), quiet=True)
        index = index_images(tmp_path / "packed")
        features.FeatureCache(tmp_path / "kept", 64, 0, True).matches(network, index, "C5", 0)
        counts.append(len(list((tmp_path / "kept").iterdir())))
    assert counts == [1, 1, 2]


@pytest.mark.parametrize("kind", ["fcn", "retinanet"])
def test_runs_whose_trunks_have_no_pyramid_or_no_p2(folders: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "own"
    run.mkdir()
    name = {"fcn": "fcn-r50-voc", "retinanet": "retinanet-r50-fpn"}[kind]
    (run / "recipe.yaml").write_text(f"recipe: {name}\ntrunk: {{backbone: resnet18, fpn_channels: 32}}\n")
    recipe = load(run / "recipe.yaml", FinetuneRecipe)
    weights = recipe.detector.build(Trunk(recipe.trunk), 2).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, run / "weights.safetensors")
    _, network = load_feature_extractors([str(run)], None, seed=0)
    body = network.trunk.backbone.body.state_dict()
    assert len(body) > 100 and all(torch.equal(body[name], weights[f"backbone.body.{name}"]) for name in body)
    given = {"data": str(folders / "val" / "digit 1"), "out": str(tmp_path / "out"), "kind": "correspondence", **SMALL}
    message = {
        "fcn": "own: has no weights of an FPN, and level P2 is one of its maps; use C5",
        "retinanet": "level: P2; the trunk of own has C5, P3, P4, P5; use one of these",
    }
    with pytest.raises(UserError, match=f"^{message[kind]}$"):
        boxless.probe(str(run), level="P2", **given)
    level = {"fcn": "C5", "retinanet": "P3"}[kind]
    assert [score.weights for score in boxless.probe(str(run), level=level, **given).scores][1:] == ["own"]


def test_objects_of_real_detection_labels(shared_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(probing, "save", lambda *_: None)
    monkeypatch.setattr(probes, "EPISODES", 20)
    labels = str(shared_data / "coco256" / "annotations" / "instances_val.json")
    result = boxless.probe("none", labels, str(tmp_path), kind="few_shot", **{**SMALL, "size": 32})
    (score,) = result.scores
    assert score.low > result.chance == 0.2 and not result.skipped


def test_names_and_references(runs, weights: str, tmp_path: Path) -> None:
    copy = tmp_path / "other.pth"
    copy.write_bytes(Path(weights).read_bytes())
    networks = load_feature_extractors([weights, "none", runs.pretrained, str(copy)], None, seed=0)
    assert [network.name for network in networks] == ["random weights", weights, "pretrained", str(copy)]
    assert all(network.trunk.config.fpn_channels == 32 for network in networks)  # the run's trunk is taken for all
    body = networks[0].trunk.backbone.body.state_dict()
    (again,) = load_feature_extractors(["none"], "resnet18", seed=0)
    assert all(torch.equal(tensor, body[name]) for name, tensor in again.trunk.backbone.body.state_dict().items())
    assert [each.name for each in load_feature_extractors(["none"], "resnet18", seed=1)] == ["random weights"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": None}, "kind knn needs --val"),
        ({"kind": "knnn"}, "kind: 'knnn'; expected linear, knn"),
        ({"preset": "moco"}, "preset: 'moco'; kind knn takes none"),
        ({"preset": "moco", "kind": "svm"}, "preset: 'moco'; kind svm takes detco, fair, vissl"),
        ({"crops": True}, "kind knn learns from one view"),
        ({"level": "C5"}, "level: kind knn measures C5; only correspondence takes a level"),
        ({"kind": "correspondence"}, "val: kind correspondence takes none"),
        ({"kind": "correspondence", "val": None, "level": "P6"}, "level: 'P6'; expected C5, P2"),
        ({"weights": "nowhere"}, "weights nowhere: no such file or run"),
        ({"size": 8}, "expected a size of 32 px or more"),
        ({"seed": -1}, "seed=-1: expected"),
        ({"data": "{root}/train/digit 0"}, "lie in no class folder"),
        ({"data": "{root}/one"}, r"only one class \(digit 0\)"),
        ({"data": "{root}/val", "kind": "few_shot", "val": None}, "0 classes have 20 readable examples"),
        ({"backbone": "resnet50"}, "choose the trunk that the file is of"),
    ],
)
def test_mistakes_are_named(folders: Path, weights: str, tmp_path: Path, changes: dict, message: str) -> None:
    one = folders / "one" / "digit 0"
    if not one.exists():
        one.mkdir(parents=True)
        (one / "0.png").write_bytes((folders / "train" / "digit 0" / "0.png").read_bytes())
    given = {"weights": weights, **splits(folders), "out": str(tmp_path), "kind": "knn", **SMALL, **changes}
    given = {key: value.format(root=folders) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(UserError, match=message):
        boxless.probe(**given)
