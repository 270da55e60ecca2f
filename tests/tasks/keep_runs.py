"""Keeps two finished runs of today's format as files, for later versions of boxless to read.

    python tests/tasks/keep_runs.py

To be run once for each new `boxless.runs.run.FORMAT`, into fixtures/format-<n> beside it. What tells of the machine,
or is large and not read again, is left out: checkpoints, TensorBoard's events, the lock.
"""

import os
import shutil
import tempfile
from pathlib import Path

from small_runs import FINETUNE, PRETRAIN
from tiny_body import BACKBONE

from boxless import finetune, pretrain
from boxless.data.scenes import make_scenes
from boxless.runs.run import FORMAT

KEPT = (
    "recipe.yaml",
    "environment.json",
    "metrics.csv",
    "weights.safetensors",
    "progress.json",
    "summary.json",
    "labels.json",
    "gallery.json",
)
TINY = {"trunk.backbone": BACKBONE, "trunk.fpn_channels": 8, "trunk.box_head_width": 8}
SOCO = {"method.small_size": 24, "proposals.method": "grid"}
SCENES = {"unlabelled": 8, "train": 4, "val": 2, "size": 80}
"""Of `make_scenes`; tests make the same ones again."""


def main() -> None:
    """Make both runs and copy what is kept."""
    target = Path(__file__).parent / "fixtures" / f"format-{FORMAT}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        os.chdir(folder)  # so that the runs know relative paths alone
        make_scenes(Path("scenes"), **SCENES)
        pretrain("scenes/images/unlabelled", "pretrain", "soco-r50-fpn", **{**PRETRAIN, **TINY, **SOCO, "epochs": 20})
        labels = {"data": "scenes/annotations/train.json", "val": "scenes/annotations/val.json"}
        settings = {**FINETUNE, **TINY, "iterations": 60, "optim.lr": 0.1, "checkpoint_every": 100}
        finetune(**labels, out="finetune", weights="pretrain", **settings)
        for run in ("pretrain", "finetune"):
            (target / run).mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                if Path(run, name).exists():
                    shutil.copy(Path(run, name), target / run / name)


if __name__ == "__main__":
    main()
