"""UP-DETR on a ResNet-18 and a transformer of 2 + 2 layers at 160 px: a first try on a CPU or on small images.

boxless pretrain --recipe up-detr-small --data images/ --out runs/up-detr

The backbone learns too, because a frozen one would have to come from somewhere: with --init runs/byol, a pretraining of
it, add --method.freeze_backbone true, as the paper has it. Views are larger than other small recipes', because DETR
looks at cells of 32 px.
"""

from dataclasses import replace

from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import TrunkConfig
from boxless.methods.up_detr import UPDETRConfig
from boxless.recipes.schema import PretrainOptim
from boxless.recipes.shipped.soco_small import RECIPE as SOCO

RECIPE = replace(
    SOCO,
    method=replace(UPDETRConfig(patches=5, freeze_backbone=False).at_size(160), smallest=0.8),
    trunk=TrunkConfig(
        backbone="resnet18",
        neck="transformer",
        transformer=TransformerConfig(128, heads=4, encoder_layers=2, decoder_layers=2, feedforward=256, queries=25),
    ),
    optim=PretrainOptim(name="adamw", base_lr=4e-3, weight_decay=1e-4, warmup_epochs=2, clip_norm=0.1),
)
