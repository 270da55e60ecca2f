"""How much of a pretrained RoI head's effect is the size of its outputs? Weights that tell the two apart.

    python studies/heads.py RUN OTHER SIZE OUT IMAGES...

RUN is a pretraining that trained a RoI head (SoCo's), OTHER one that did not (BYOL's). Where the outputs of RUN's head
are k times a new head's, on random boxes of IMAGES at SIZE px, this writes into OUT

- matched.safetensors: the run's weights with the head's last layer divided by k, as loud as new ones;
- large-head.safetensors: weights that learnt nothing, with that layer multiplied by k;
- large-head-RUN.safetensors, large-head-OTHER.safetensors: the same with the backbone of either, by its folder's name.
"""

import sys
from pathlib import Path

import cv2
import torch
from safetensors.torch import load_file, save_file

from boxless.data.images import decode
from boxless.detectors.trunk import Trunk
from boxless.interop.weights import load_trunk
from boxless.runs.weights import trunk_of

LAST = "box_head.5.weight", "box_head.5.bias"
METADATA = {"format": "pt", "boxless.parts": "backbone,FPN,RoI head"}


@torch.no_grad()
def ratio(pretrained: Trunk, new: Trunk, files: list[str], size: int) -> float:
    """The standard deviation of a pretrained head's outputs over a new one's.

    Both on the pretrained pyramid, in training mode; 32 random boxes of a twentieth to two fifths of each image's side.
    """
    images = [torch.from_numpy(cv2.resize(decode(file), (size, size))).permute(2, 0, 1) / 255 for file in files]
    maps = pretrained.backbone(pretrained.normalize(torch.stack(images)))
    generator = torch.Generator().manual_seed(0)
    boxes = []
    for _ in files:
        corner = torch.rand(32, 2, generator=generator) * size * 0.6
        sides = (torch.rand(32, 2, generator=generator) * 0.35 + 0.05) * size
        boxes.append(torch.cat([corner, corner + sides], 1))
    pooled = pretrained.roi_pool(maps, boxes, [(size, size)] * len(files))
    return float(pretrained.box_head(pooled).std() / new.box_head(pooled).std())


def main() -> None:
    """Write the files."""
    run, other, size, out, files = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:]
    config = trunk_of(run)
    assert config is not None and config.box_head == "4conv1fc", f"{run}: no pretraining with a head of 4conv1fc"
    torch.manual_seed(0)
    new, pretrained = Trunk(config), Trunk(config)
    load_trunk(pretrained, Path(run) / "weights.safetensors", 1.0)
    large = {name: tensor.clone() for name, tensor in new.state_dict().items()}  # before it sees images
    factor = round(ratio(pretrained, new, files, size), 2)
    print(f"{run}: the head's outputs are {factor} times a new head's")
    matched = load_file(Path(run) / "weights.safetensors")
    for name in LAST:
        matched[name] /= factor
        large[name] *= factor
    out.mkdir(parents=True, exist_ok=True)
    save_file(matched, out / "matched.safetensors", METADATA)
    save_file(large, out / "large-head.safetensors", METADATA)
    for source in (run, other):
        tensors = load_file(Path(source) / "weights.safetensors")
        body = {key: tensor for key, tensor in tensors.items() if key.startswith("backbone.body.")}
        save_file(large | body, out / f"large-head-{Path(source).name}.safetensors", METADATA)


if __name__ == "__main__":
    main()
