"""Recipes of DINO: boxless pretrain --recipe dino-small --data images/ --out runs/dino."""

from dataclasses import replace

from boxless.methods.dino import DINOConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL


def small_method() -> DINOConfig:
    """DINO on views of 96 and 48 px."""
    return replace(
        DINOConfig().at_size(96),
        local_size=48,
        local_crops=4,
        scale=(0.2, 1.0),
        local_scale=(0.05, 0.2),
        hidden=512,
        output=128,
        prototypes=1024,
        held=0.03,
        target_temperature=0.04,
        momentum=0.97,
    )


def paper_method() -> DINOConfig:
    """DINO as on ResNets."""
    return DINOConfig(target_temperature=0.04)


DINO_SMALL = replace(SOCO_SMALL, method=small_method(), optim=replace(SOCO_SMALL.optim, base_lr=5e-4))
"""DINO on the trunk of soco-small.

Crops show at least a fifth (global) and a twentieth (local) of the image: at 96 and 48 px, smaller ones would show a
handful of source pixels. Four local crops and 1024 prototypes, for data sets of thousands of images and not a million.

The learning rate is the authors' for AdamW: at soco-small's, sixteen times as large, the embeddings of batches of 8
grew alike within 30 steps. The teacher's temperature is the authors' for ResNets.
"""

DINO_R50 = PretrainRecipe(
    method=paper_method(),
    optim=PretrainOptim(name="sgd", base_lr=0.03, weight_decay=1e-4, warmup_epochs=10, final_lr=5e-7),
    epochs=100,
    batch_size=256,
)
"""DINO on ResNet-50, as in the authors' README for ResNets (100 epochs).

The batch is what one large GPU holds; the learning rate follows it. The authors' is --batch_size 512, on 8 GPUs.

SGD, crops and weight decay are the README's, and so is the teacher's temperature, which stays at 0.04. (The 800-epoch
model, whose arguments differ, has 75.3 % on ImageNet's linear evaluation.) Not measured by us.
"""
