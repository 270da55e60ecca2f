"""Recipes of UP-DETR: boxless pretrain --recipe up-detr-small --data images/ --out runs/up-detr."""

from dataclasses import replace

from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.methods.up_detr import UPDETRConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe
from boxless.recipes.soco import SOCO_SMALL

UP_DETR_SMALL = replace(
    SOCO_SMALL,
    method=replace(UPDETRConfig(patches=5, freeze_backbone=False).at_size(160), smallest=0.8),
    trunk=TrunkConfig(
        backbone="resnet18",
        neck="transformer",
        transformer=TransformerConfig(128, heads=4, encoder_layers=2, decoder_layers=2, feedforward=256, queries=25),
    ),
    optim=PretrainOptim(name="adamw", base_lr=4e-3, weight_decay=1e-4, warmup_epochs=2, clip_norm=0.1),
)
"""UP-DETR on a ResNet-18 and a transformer of 2 + 2 layers at 160 px: a first try on a CPU or on small images.

The backbone learns too, because a frozen one would have to come from somewhere: with --weights runs/byol, a
pretraining of it, add --method.freeze_backbone true, as the paper has it. Views are larger than other small recipes',
because DETR looks at cells of 32 px.
"""

UP_DETR_R50 = PretrainRecipe(
    method=UPDETRConfig(),
    trunk=TrunkConfig(norm="frozen", neck="transformer"),
    optim=PretrainOptim(name="adamw", base_lr=1e-4, weight_decay=1e-4, warmup_epochs=0, clip_norm=0.1),
    epochs=60,
    batch_size=256,
)
"""UP-DETR on ResNet-50 and DETR's transformer, as in the paper (60 epochs).

The backbone is frozen: without --weights, a run or a file with torchvision's names, there is nothing to learn from. The
paper's are SwAV's (800 epochs). The batch is what one large GPU may not hold: set --batch_size, the learning rate
follows it. The authors' rate falls to a tenth after 40 epochs, ours along a cosine. They took 5 days on 8 V100.

Paper: table 2, fine-tuned on COCO for 300 epochs: 42.8 box AP, and 42.1 without it (released weights: 43.1). Not
measured by us.
"""
