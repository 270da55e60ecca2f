"""The commands of benchmarks/methods.py run; what they measure is not looked at here."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boxless
from boxless.methods.all import METHODS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_costs_and_health_become_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("methods")
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{seed}.png")

    def run(*words: object) -> str:
        benchmark.main(["--results", str(tmp_path), *map(str, words)])
        return capsys.readouterr().out

    small = ("cost", "--arch", "resnet18", "--size", 32, "--batch", 4, "--repeats", 1, "--threads", 1)
    assert "moco / byol" not in run(*small, "--methods", "moco")  # the reference is measured along
    rows = json.loads((tmp_path / "methods_cost.json").read_text())["rows"]
    assert set(rows) == {"byol", "moco"}
    turns = [turn for row in rows.values() for turn in row["turns"]]
    assert len(turns) == 2 and all(turn["seconds"] > 0 and turn["memory"] > 1 for turn in turns)
    assert "repeat" not in run(*small, "--methods", "moco,byol")  # nothing is missing
    with pytest.raises(SystemExit, match="size 32, not 64"):
        run(*small, "--size", 64)

    run("health", "--data", images, "--out", tmp_path / "runs", "--steps", 2, "--batch", 4, "--methods", "byol,up-detr")
    rows = json.loads((tmp_path / "methods_health.json").read_text())["rows"]
    assert {name: row["detector"] for name, row in rows.items()} == {"byol": "faster_rcnn", "up-detr": "detr"}
    for row in rows.values():
        assert row["steps"] == 2 and len(row["spread"]) == 2 and not row["unused"]
        assert row["loaded"] == dict.fromkeys(row["trains"], 1.0)

    run("table", "--out", tmp_path / "methods.md")
    page = (tmp_path / "methods.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(lines) == set(METHODS)
    assert "| 1.00 |" in lines["byol"] and "healthy" in lines["byol"] and "2006.07733" in lines["byol"]
    assert re.search(r"\| \d+\.\d\d \|", lines["moco"]) and "not measured" in lines["soco"]
    assert "Self-EMD.**" in page and "authors' repository calls this DetCo" in page


def test_kinds_that_learn_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("overfit")
    drawing = np.random.default_rng(0)
    categories = [{"id": 3, "name": "a"}]
    document: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": categories}
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        Image.fromarray(drawing.integers(0, 256, (48, 64, 3), np.uint8)).save(images / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"images/{number}.png", "width": 64, "height": 48})
        side = 4 if number == 2 else 20  # the third image's object is too small
        outline = [10, 15, 10 + side, 12, 20, 12 + side, 15, 20]
        entry = {"id": number + 1, "image_id": number, "category_id": 3, "iscrowd": 0, "area": side**2}
        document["annotations"].append({**entry, "bbox": [10, 12, side, side], "segmentation": [outline]})
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(document))
    taken = benchmark.chosen(benchmark.absolute(labels))
    assert [image["id"] for image in taken["images"]] == [0, 1, 3, 4, 5, 6, 7, 8]
    ends = benchmark.with_keypoints(taken)["annotations"][0]["keypoints"]
    assert ends == [30, 12, 2, 20, 32, 2, 10, 15, 2, 30, 12, 2]  # top, bottom, left, right

    def run(*words: object) -> int:
        return benchmark.main(["--results", str(tmp_path), *map(str, words)])

    small = ("--iterations", 2, "--batch_size", 2, "--min_size", 32, "--max_size", 64)
    narrow = ("--trunk.box_head_width", 16, "--trunk.fpn_channels", 32)
    assert run("learn", "--data", labels, "--kinds", "keypoint_rcnn", *small, *narrow) == 1  # two steps are too few
    boxless.pretrain(str(images), str(tmp_path / "soco"), "soco-small", quiet=True, batch_size=9, epochs=1)
    paths = ("--data", labels, "--val", labels, "--weights", tmp_path / "soco", "--out", tmp_path / "runs")
    assert run("finetune", *paths, "--kinds", "retinanet,detr", *small) == 0
    page = tmp_path / "results.md"
    page.write_text("# Results\n")
    with pytest.raises(SystemExit, match="expected the lines '<!-- written by"):
        run("table", "--out", page)
    page.write_text("# Results\n\n<!-- written by benchmarks/overfit.py table -->\nold\n")
    with page.open("a") as file:
        file.write("<!-- end of benchmarks/overfit.py table -->\n\n## Next\n")
    assert run("table", "--out", page) == run("table", "--out", page) == 0
    text = page.read_text()
    assert text.startswith("# Results\n") and text.endswith("\n\n## Next\n") and "old" not in text
    assert re.search(r"\| Keypoint R-CNN.* \| boxes 0\.\d\d, keypoints 0\.\d\d \| .* never \| 2 \| \d+ \|\n", text)
    assert "| Mask R-CNN, FPN | not measured |" in text
    assert re.search(r"\| RetinaNet \| soco \| .*; backbone ok, FPN ok \|", text)
    assert re.search(r"\| DETR \| soco \| .*; backbone ok, transformer new \|", text)
