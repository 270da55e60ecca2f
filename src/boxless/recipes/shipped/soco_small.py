"""SoCo on a narrow ResNet-18-FPN at 96 px: a first try on a CPU or on small images, in minutes to hours.

boxless pretrain --recipe soco-small --data images/ --out runs/soco

The method is the paper's. Its optimiser is not: LARS is for large batches and long runs, and this is AdamW at a small
batch; the target's momentum starts at BYOL's value for its shortest run (0.97, 40 epochs).
"""

from dataclasses import replace

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.soco import SoCoConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=replace(SoCoConfig().at_size(96), momentum=0.97),
    trunk=TrunkConfig(backbone="resnet18", fpn_channels=64, box_head_width=256),
    optim=PretrainOptim(
        name="adamw", base_lr=8e-3, weight_decay=1e-4, warmup_epochs=2, warmup_start=0.01, final_lr=1e-6
    ),
    epochs=30,
    batch_size=32,
    checkpoint_every=100,
)
