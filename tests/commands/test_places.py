"""Where --out cannot be: one line that names it, from every command that writes."""

import re
from pathlib import Path

import pytest

import boxless
from boxless.cli import main

COMMANDS = {
    "propose": "--data {images} --method grid --workers 1 --out {place}.parquet",
    "propose from COCO": "--data {images} --boxes-from {val} --out {place}.parquet",
    "pack": "--data {images} --workers 1 --out {place}",
    "pretrain": "--data {images} --recipe byol-small --out {place}",
    "pretrain with boxes": "--data {images} --recipe soco-small --proposals.method grid --workers 0 --out {place}",
    "pretrain and preview": "--data {images} --recipe byol-small --batch_size 4 --workers 0 --preview --out {place}",
    "finetune": "--data {train} --val {val} --out {place}",
    "compare": "--data {images} --labels {train} --val {val} --methods none --out {place}",
    "evaluate": "--run {boxes} --data {val} --out {place}",
    "predict": "--run {boxes} --data {images} --out {place}",
    "probe": "--weights none --backbone resnet18 --size 32 --data {train} --val {val} --workers 0 --out {place}",
    "export": "--run {boxes} --out {place}.safetensors",
    "convert": "--file {boxes}/weights.safetensors --out {place}.safetensors",
    "publish": "--run {boxes} --to {place}",
    "report": "{boxes} --out {place}.html",
    "demo": "--out {place}",
}


@pytest.mark.parametrize(
    ("name", "reason"), [("notes.txt/run", "Not a directory|File exists"), ("x" * 300, "File name too long")]
)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_place_that_is_refused_is_one_line(command, name, reason, runs, digits, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    values = {"images": digits.images, "train": digits.train, "val": digits.val, "boxes": runs.boxes}
    words = COMMANDS[command].format(**values, place=tmp_path / name)
    assert main([command.split()[0], *words.split()]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"boxless: error: {tmp_path}/{name[:9]}\S*: cannot be used \(({reason})\); fix that", said)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_paths_may_be_those_of_pathlib(runs, digits, tmp_path):
    run, val, images = Path(runs.boxes), Path(digits.val), digits.images
    quiet = {"quiet": True}
    boxless.statistics([images], workers=1, **quiet)
    boxes = boxless.propose(images, tmp_path / "boxes.parquet", method="grid", recall=val, workers=1, **quiet)
    boxless.pack(val, tmp_path / "packed", proposals=boxes.path, workers=1, **quiet)
    boxless.predict(run, [images], tmp_path / "found", **quiet)
    boxless.evaluate(run, val, tmp_path / "scores", **quiet)
    boxless.figures([run], val, kinds="curves", **quiet)
    boxless.report([run, Path(runs.masks)], tmp_path / "both.html", **quiet)
    weights = boxless.export(run, tmp_path / "run.safetensors", to="safetensors", **quiet)
    boxless.convert(weights, tmp_path / "converted.safetensors", **quiet)
    boxless.publish(run, tmp_path / "published", **quiet)
    boxless.recipes(run / "recipe.yaml")
    small = {"kind": "correspondence", "size": 33, "backbone": "resnet18", "workers": 0}
    boxless.probe(["none"], val, tmp_path / "probe", **small, **quiet)
    assert boxless.report(run, **quiet).path == run / "report.html"
