"""A training step of Faster R-CNN, R50-FPN: ours, and as torchvision's reference scripts take it.

Both train the same network on the same random images and boxes, from the CPU in every step: frozen norms, stem and
first stage frozen, two linear layers as box head. The reference loop is float32 (with --amp: float16), looks at the
loss in every step and resizes on the device; ours has `boxless finetune`'s settings: bf16 where there is such,
channels_last, and RoIAlign as Detectron2 has it, which takes more samples.
https://github.com/pytorch/vision/tree/main/references/detection
"""

import math

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from training_step import Step

from boxless.data.detection import DetectionSample
from boxless.detectors.trunk import Trunk, TrunkConfig, freeze
from boxless.proposals.baselines import random_boxes
from boxless.recipes.schema import FinetuneRecipe
from boxless.tasks.finetune import detector_losses, make_detector_optimizer
from boxless.training.device import make_fabric

CLASSES, OBJECTS = 90, 7


def samples(side: int, batch: int) -> list[DetectionSample]:
    """Noise, `side` px high and four thirds as wide, with seven objects each, COCO's mean."""
    width = side * 4 // 3
    made = []
    for number in range(batch):
        image = torch.randint(0, 256, (3, side, width), dtype=torch.uint8)
        boxes = torch.from_numpy(random_boxes(width, side, OBJECTS, number))
        target = {"boxes": boxes, "labels": torch.randint(1, CLASSES + 1, (len(boxes),))}
        made.append(DetectionSample(image, torch.eye(2, 3), target, number, (width, side)))
    return made


def with_boxless_step(arch: str, side: int, batch: int) -> Step:
    """A step as `boxless finetune` takes it."""
    recipe = FinetuneRecipe(trunk=TrunkConfig(arch, "frozen", box_head="2fc"))
    fabric = make_fabric(recipe.precision)
    trunk = Trunk(recipe.trunk)
    freeze(trunk, 2)
    detector = recipe.detector.build(trunk, CLASSES).to(memory_format=torch.channels_last)
    placed, optimizer = fabric.setup(detector, make_detector_optimizer(detector, trunk, recipe.optim))
    placed.train()
    data = samples(side, batch)
    if fabric.device.type == "cuda":
        data = [sample.pin_memory() for sample in data]

    def step() -> Tensor:
        loss = detector_losses(placed, data, fabric.device)["loss"]
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def torchvision_step(arch: str, side: int, batch: int, half: bool) -> Step:
    """A step as torchvision's references/detection takes it; `half` is its --amp."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = resnet_fpn_backbone(backbone_name=arch, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    detector = FasterRCNN(backbone, CLASSES + 1, min_size=side).to(device).train()
    learned = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.02, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device, enabled=half)
    data = [(sample.image.float() / 255, sample.target) for sample in samples(side, batch)]

    def step() -> Tensor:
        images = [image.to(device) for image, _ in data]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in data]
        with torch.autocast(device, torch.float16, enabled=half):
            losses = detector(images, targets)
            loss = sum(losses.values())
        assert math.isfinite(float(loss.detach()))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
