"""A run becomes a folder for others, and comes back from there; the hub itself is played by a folder."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file

import boxless
from boxless.cli import main
from boxless.errors import UserError
from boxless.export.publish import prepare
from boxless.runs.weights import local, weights_file


def test_a_detector_is_published_with_its_card_and_used_from_there(
    runs: SimpleNamespace, digits: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", "--run", runs.boxes, "--to", str(tmp_path / "out")]) == 0
    assert "README.md, the model card" in capsys.readouterr().out
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"README.md", "weights.safetensors", "recipe.yaml", "labels.json", "figures/training.png"} <= names
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "boxless" and header["pipeline_tag"] == "object-detection"
    summary = json.loads((Path(runs.boxes) / "summary.json").read_text())
    assert f"| bbox AP | {100 * summary['scores']['bbox']['AP']:.1f} |" in card and "One seed only" in card
    for heading in ("## Data", "## Results", "## Training", "## Intended use and limits", "## Licence"):
        assert heading in card
    everything = "".join(
        path.read_text() for path in (tmp_path / "out").glob("*") if path.suffix in (".md", ".yaml", ".json")
    )
    assert str(tmp_path) not in everything and ".jpg" not in everything and digits.train not in everything
    predicted = boxless.predict(str(tmp_path / "out"), str(digits.images), str(tmp_path / "p"), score=0.0, quiet=True)
    assert predicted.images == 6
    assert prepare(runs.boxes, tmp_path / "out") == tmp_path / "out"  # once more


def test_the_spread_is_that_of_a_comparisons_seeds(runs: SimpleNamespace, tmp_path: Path) -> None:
    for seed, score in enumerate((0.30, 0.34, 0.38)):
        copy = shutil.copytree(runs.boxes, tmp_path / "cell" / f"seed-{seed}")
        summary = json.loads((copy / "summary.json").read_text())
        summary["scores"]["bbox"]["AP"] = score
        (copy / "summary.json").write_text(json.dumps(summary))
    folder = prepare(str(tmp_path / "cell" / "seed-1"), tmp_path / "out")
    assert "| bbox AP | 34.0 | 34.0 | 4.0 | 3 |" in (folder / "README.md").read_text()


def test_a_pretraining_goes_to_the_hub_and_back(
    runs: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, asked = tmp_path / "hub", []

    def create_repo(name: str, private: bool, exist_ok: bool) -> str:
        asked.append((name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, hub / repo_id)

    def snapshot_download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        if not (hub / repo_id).is_dir():
            raise FileNotFoundError("404 Client Error\nmore words")
        return str(hub / repo_id)

    for function in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    assert boxless.publish(runs.pretrained, "hf://me/soco", quiet=True) == "https://hub/me/soco"
    assert asked == [("me/soco", True, True)]
    place = local("hf://me/soco")
    assert place is not None
    own, there = load_file(Path(runs.pretrained) / "weights.safetensors"), load_file(weights_file(place))
    assert own.keys() == there.keys() and all(torch.equal(own[key], there[key]) for key in own)
    card = (hub / "me" / "soco" / "README.md").read_text()
    assert "# resnet18 pretrained by soco, without labels" in card and "8 images without labels" in card
    for wrong, message in (
        ("hf://me/none", r"hf://me/none: could not be fetched \(404 Client Error\)$"),
        ("hf://me", "expected hf://user/name"),
    ):
        with pytest.raises(UserError, match=message):
            local(wrong)
    with pytest.raises(UserError, match="could not be fetched"):  # before anything else is looked at
        boxless.finetune("none.json", "none.json", str(tmp_path / "run"), weights="hf://me/none")


def test_what_is_not_to_be_published_is_refused(runs: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds other files"):
        prepare(runs.boxes, Path(runs.pretrained))
    copy = shutil.copytree(runs.boxes, tmp_path / "copy")
    (copy / "summary.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        boxless.publish(str(copy), str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out").exists()
