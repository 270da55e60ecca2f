"""The whole way on embedded scenes: images in, a table out; a second call finds everything done."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from boxless.cli import main
from boxless.commands.compare import compare
from boxless.commands.demo import demo
from boxless.data import scenes as digits
from boxless.data.scenes import make_scenes
from boxless.errors import UserError
from boxless.runs.run import Run
from boxless.tasks.compare_table import is_comparison, read_table

TINY = {
    "pretrain.trunk.fpn_channels": 16,
    "pretrain.trunk.box_head_width": 32,
    "pretrain.epochs": 1,
    "pretrain.batch_size": 8,
    "pretrain.workers": 0,
    "pretrain.proposals.method": "grid",
    "view_size": 32,
    "finetune.iterations": 3,
    "finetune.batch_size": 2,
    "finetune.min_size": (48,),
    "finetune.max_size": 48,
    "finetune.workers": 0,
}
C4 = """\
recipe: faster-rcnn-r50-c4-voc
detector: {roi_samples: 4, rpn_proposals: 4, detections: 4}
iterations: 2
batch_size: 2
min_size: [48]
max_size: 48
workers: 0
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_start_is_measured_with_and_without_self_training_after_one_pretraining(tmp_path):
    make_scenes(tmp_path / "scenes", unlabelled=8, train=10, val=4, size=48)
    annotations = tmp_path / "scenes" / "annotations"
    comparison = compare(
        data=str(tmp_path / "scenes" / "images" / "unlabelled"),
        labels=str(annotations / "train.json"),
        val=str(annotations / "val.json"),
        out=str(tmp_path / "out"),
        methods="none,none+unlabelled,byol,byol+unlabelled",
        label_fraction="0.5",
        seeds=1,
        quiet=True,
        **TINY,
    )
    assert [cell.method for cell in comparison.cells] == ["none", "none+unlabelled", "byol", "byol+unlabelled"]
    assert [folder.name for folder in (tmp_path / "out" / "pretrain").iterdir() if folder.is_dir()] == ["byol"]
    cells = {cell.method: tmp_path / "out/finetune/faster_rcnn" / cell.method for cell in comparison.cells}
    trained = {name: Run(next(folder.glob("*/seed-0"))).summary for name, folder in cells.items()}
    assert all(("self_training" in summary) == name.endswith("+unlabelled") for name, summary in trained.items())
    assert trained["byol+unlabelled"]["self_training"]["images"] == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compare_pretrains_finetunes_and_resumes_cell_by_cell(tmp_path, capsys):
    make_scenes(tmp_path / "scenes", unlabelled=16, train=10, val=4, size=48)
    annotations = tmp_path / "scenes" / "annotations"
    out = tmp_path / "out"

    def run(jobs, label_fraction="0.2,0.5", **settings):
        return compare(
            data=tmp_path / "scenes" / "images" / "unlabelled",
            labels=annotations / "train.json",
            val=annotations / "val.json",
            out=out,
            label_fraction=label_fraction,
            seeds=1,
            jobs=jobs,
            quiet=True,
            **TINY,
            **settings,
        )

    first = run(jobs=2)
    assert {(cell.method, cell.images) for cell in first.cells} == {
        (method, images) for method in ("none", "densecl", "soco") for images in (2, 5)
    }
    assert all(0 <= cell.scores["AP"] <= 1 for cell in first.cells)
    assert first.table()["method"] == [row.method for row in first.rows]
    assert first.table()["AP"] == [row.mean["AP"] for row in first.rows]
    printed = capsys.readouterr().out
    assert "| from scratch | 2 (20%) |" in printed
    with (out / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    for name in ("comparison.md", "figures/label-efficiency.png", "figures/label-efficiency.svg"):
        assert (out / name).stat().st_size > 100
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}
    assert len(trained) == 2 + 6
    assert not [*(out / "finetune").rglob("checkpoints")]  # each six times the weights
    (out / "finetune" / "faster_rcnn" / "soco" / "labels-0.5" / "seed-0" / "summary.json").unlink()
    assert str(run(jobs=1)) == str(first)
    changed = [path for path, time in trained.items() if path.stat().st_mtime_ns != time]
    assert [path.parent.parent.parent.name for path in changed] == ["soco"]
    (c4 := tmp_path / "c4.yaml").write_text(C4)
    several = run(jobs=1, label_fraction="0.5", methods="none,soco", detectors=["retinanet", c4])
    assert [(cell.detector, cell.method) for cell in several.cells] == [
        (detector, method) for detector in ("retinanet", "c4") for method in ("none", "soco")
    ]
    for detector in ("retinanet", "c4"):
        assert (out / "figures" / f"label-efficiency-{detector}.png").exists()
        assert "backbone ok" in Run(out / "finetune" / detector / "soco" / "labels-0.5" / "seed-0").summary["weights"]
    assert len(list(out.rglob("weights.safetensors"))) == len(trained) + 4  # nothing was pretrained again
    with pytest.raises(UserError, match=r"densecl: holds a run with other settings \(init was None, is .*soco.weights"):
        run(jobs=1, weights=str(out / "pretrain" / "soco"))


def test_shots_have_cells_rows_and_a_figure_and_resume(tmp_path, capsys):
    make_scenes(tmp_path / "scenes", unlabelled=4, train=8, val=4, size=48)
    annotations, out = tmp_path / "scenes" / "annotations", tmp_path / "out"

    def run(**settings):
        paths = {"data": str(tmp_path), "labels": str(annotations / "train.json"), "val": str(annotations / "val.json")}
        return compare(**paths, out=str(out), methods="none", seeds=1, **{**TINY, "quiet": True, **settings})

    first = run(shots="3,1")
    assert [cell.amount.shots for cell in first.cells] == [1, 3]
    one, three = (json.loads(file.read_text())["boxes"] for file in sorted(out.rglob("shots-*/seed-0/labels.json")))
    assert all(box in three for box in one) and len(one) < len(three)
    table, page = (out / "comparison.md").read_text(), (out / "report.html").read_text()
    assert " (1 shot) |" in table and " (3 shots) |" in table and " (3 shots)" in page
    assert [cell.shots for cell in read_table(out / "comparison.csv")] == [1, 3]
    assert (out / "figures" / "label-efficiency.png").stat().st_size > 100
    trained = {file: file.stat().st_mtime_ns for file in out.rglob("weights.safetensors")}
    assert str(run(shots="1,3")) == str(first) and is_comparison(out)
    assert trained == {file: file.stat().st_mtime_ns for file in out.rglob("weights.safetensors")}
    for wrong in ({"shots": "1", "label_fraction": "0.5"}, {"shots": "0"}, {"shots": "a"}, {"finetune.shots": 3}):
        with pytest.raises(UserError, match=r"^(finetune\.)?shots: "):
            run(**wrong)


def test_a_first_try_in_which_nothing_is_found_has_its_table_and_report(tmp_path, capsys):
    make_scenes(tmp_path / "scenes", unlabelled=8, train=6, val=4, size=48)
    annotations, out = tmp_path / "scenes" / "annotations", tmp_path / "out"
    words = ["--data", str(tmp_path / "scenes" / "images" / "unlabelled"), "--labels", str(annotations / "train.json")]
    words += ["--val", str(annotations / "val.json"), "--out", str(out), "--methods", "none,soco", "--seeds", "2"]
    settings = {**TINY, "finetune.min_size": 48, "finetune.detector.score_threshold": 1.0}
    words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert main(["compare", *words, "--label-fraction", "0.5", "--quiet"]) == 0
    table, page = (out / "comparison.md").read_text(), (out / "report.html").read_text()
    assert "| soco | 3 (50%) | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | +0.0 ± 0.0 | 2 | within noise |" in table
    assert "within noise" in page and "within noise" in capsys.readouterr().out
    with (out / "comparison.csv").open() as file:
        assert [float(row["AP"]) for row in csv.DictReader(file)] == [0.0] * 4
    assert (out / "figures" / "label-efficiency.png").stat().st_size > 100


def test_weights_that_do_not_fit_are_named_before_anything_is_trained(tmp_path):
    make_scenes(tmp_path / "scenes", unlabelled=8, train=6, val=4, size=48)
    annotations = tmp_path / "scenes" / "annotations"
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "others.safetensors")
    for given in ({"methods": f"soco,{tmp_path / 'others.safetensors'}"}, {"weights": tmp_path / "others.safetensors"}):
        with pytest.raises(UserError, match="others"):
            compare(
                data=str(tmp_path / "scenes" / "images" / "unlabelled"),
                labels=str(annotations / "train.json"),
                val=str(annotations / "val.json"),
                out=str(tmp_path / "out"),
                **{**TINY, "methods": "soco", **{key: str(value) for key, value in given.items()}},
            )
        assert not list((tmp_path / "out").rglob("*.parquet")) and not list((tmp_path / "out").rglob("recipe.yaml"))


def test_the_demo_draws_what_its_own_detector_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "make_scenes", lambda out, **_: make_scenes(out, 16, 10, 4, size=48))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # in this process
    demo(str(tmp_path), seeds=1, **TINY, **{"finetune.detector.kind": "retinanet"})
    assert f"{tmp_path}/detections/examples.png" in capsys.readouterr().out
    measured = json.loads((tmp_path / "detections" / "evaluation.json").read_text())
    trained = tmp_path / "comparison" / "finetune" / "retinanet" / "imagenet+unlabelled" / "labels-0.5" / "seed-0"
    assert Path(measured["run"]) == trained.resolve()
