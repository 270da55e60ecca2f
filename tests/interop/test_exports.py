"""Exported, loaded in the other library by the lines of the text beside it, and compared there."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

import boxless
from boxless.cli import main
from boxless.errors import UserError

pytest.importorskip("timm", reason="timm is not installed: pip install 'boxless[timm]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'boxless[detr]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'boxless[onnx]'")

CELLS = {  # the rest of docs/weights.md is measured by its command, and torchvision's part by the tests of `export`
    "Faster R-CNN": ("onnx",),
    "Mask R-CNN on C4": ("timm", "mmdetection"),
    "Keypoint R-CNN": ("detectron2", "mmdetection"),
    "DETR": ("transformers", "detectron2", "onnx"),
    "RT-DETRv2": ("transformers", "onnx"),
    "Sparse R-CNN": ("onnx",),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_run_is_the_same_elsewhere(name: str, cells: ModuleType, tmp_path: Path) -> None:
    run = cells.write_run(tmp_path / "run", name)
    for library in CELLS[name]:
        difference = cells.export_difference(run, name, library)
        assert difference is not None and difference <= 1e-5, library
        text = next(p for p in tmp_path.rglob("*README.txt") if library in str(p)).read_text()
        assert "The weights are yours" in text and "RGB in 0..1, minus [0.485, 0.456, 0.406]" in text


def test_an_onnx_file_pools_from_maps_that_the_traced_image_had_no_objects_on(
    cells: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        cells.DETECTOR, "detector.anchor_sizes", (512,) * 5
    )  # boxes as large as the image: P4 there, P3 here
    run = cells.write_run(tmp_path / "run", "Faster R-CNN")
    assert cells.export_difference(run, "Faster R-CNN", "onnx") <= 1e-5


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_other_norms_are_the_same_in_timm(norm: str, cells: ModuleType, tmp_path: Path) -> None:
    run = cells.write_run(tmp_path / "run", "FCOS", norm)
    assert cells.export_difference(run, "FCOS", "timm") <= 1e-5


def test_what_a_library_has_no_names_for_is_refused_in_one_line(
    cells: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cells.write_run(tmp_path / "run", "RetinaNet", "group")
    wrong = {
        "transformers": ("folder", "is a retinanet; --to transformers takes detr and rt_detr"),
        "mmdetection": ("x.pth", "norms behind P6 and P7"),
        "detectron2": ("x.pth", r"a file that ends in .pkl"),
        "tensorflow": ("x.pb", "to: "),
    }
    for library, (out, message) in wrong.items():
        assert main(["export", "--run", str(run), "--to", library, "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    shutil.rmtree(run)
    detr = cells.write_run(tmp_path / "run", "DETR")
    with pytest.raises(UserError, match="is a folder with files in it"):
        boxless.export(str(detr), str(tmp_path / "full"), "transformers")
    assert not list(tmp_path.glob("*.partial")) and not (tmp_path / "x.onnx").exists()
