from pathlib import Path
from types import SimpleNamespace

import pytest

import boxless
from boxless.data.scenes import make_scenes

TRUNK = {"trunk.backbone": "resnet18", "trunk.fpn_channels": 32, "trunk.box_head_width": 64, "precision": "32-true"}
PRETRAIN = {"proposals.method": "grid", "method.size": 64, "method.small_size": 32, "batch_size": 4, "epochs": 1}
FINETUNE = {
    "recipe": "faster-rcnn-fpn",
    "iterations": 2,
    "batch_size": 2,
    "min_size": (64,),
    "max_size": 96,
    "evaluate_every": 1_000_000,
    "detector.roi_samples": 16,
    "detector.rpn_proposals": 50,
    "detector.anchor_sizes": (8, 16, 32, 64, 128),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the index of images out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Embedded scenes of 64 x 64 px: `unlabelled` images, labels `train` and `val`, the folder `images` of val."""
    out = tmp_path_factory.mktemp("digits") / "scenes"
    make_scenes(out, unlabelled=8, train=8, val=6, size=64)
    labels = {part: str(out / "annotations" / f"{part}.json") for part in ("train", "val")}
    return SimpleNamespace(unlabelled=str(out / "images" / "unlabelled"), images=out / "images" / "val", **labels)


@pytest.fixture(scope="session")
def runs(digits: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Runs of the real commands, two steps each: `pretrained` by SoCo, `boxes` (Faster R-CNN), `masks` (Mask R-CNN)."""
    out = tmp_path_factory.mktemp("runs")
    shared = {**TRUNK, "workers": 0, "quiet": True}
    boxless.pretrain(Path(digits.unlabelled), out / "pretrained", "soco-small", **shared, **PRETRAIN)
    for name, kind in (("boxes", "faster_rcnn"), ("masks", "mask_rcnn")):
        labels = {
            "data": Path(digits.train),
            "val": [Path(digits.val)],
            "detector.kind": kind,
            "detector.mask_norm": True,
        }
        boxless.finetune(out=out / name, **labels, **shared, **FINETUNE)
    return SimpleNamespace(**{name: str(out / name) for name in ("pretrained", "boxes", "masks")})
