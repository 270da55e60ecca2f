"""The same digits in photographs, many in an image (cluttered) or one (iconic).

    python studies/scenes.py runs/scenes

Writes `cluttered/` (1,000 scenes of 128 px with 3 to 6 digits), `iconic/` (1,000 of their digits, each cut out with
a margin of 15 %), and `detection/` (the demo's labelled scenes of 64 px to learn and measure on).
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from boxless.data.scenes import make_scenes

IMAGES = 1000


def main(out: Path) -> None:
    """Write the three folders."""
    make_scenes(out / "cluttered", unlabelled=0, train=IMAGES, val=0, size=128)
    make_scenes(out / "detection", unlabelled=0, train=200, val=150, size=64)
    content = json.loads((out / "cluttered" / "annotations" / "train.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    (out / "iconic").mkdir(exist_ok=True)
    chosen = np.random.default_rng(0).permutation(len(content["annotations"]))[:IMAGES]
    for number, index in enumerate(chosen.tolist()):
        annotation = content["annotations"][index]
        x, y, width, height = annotation["bbox"]
        side = round(1.3 * max(width, height))
        left = min(max(0, round(x + width / 2 - side / 2)), max(0, 128 - side))
        top = min(max(0, round(y + height / 2 - side / 2)), max(0, 128 - side))
        scene = Image.open(out / "cluttered" / "images" / "train" / names[annotation["image_id"]])
        right, bottom = min(128, left + side), min(128, top + side)
        scene.crop((left, top, right, bottom)).save(out / "iconic" / f"{number:06d}.jpg", quality=95)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "runs/scenes"))
