"""Recipes of SoCo, SoCo* and SoCo-C4: boxless pretrain --recipe soco-small --data images/ --out runs/soco."""

from dataclasses import replace

from boxless.detectors.trunk import TrunkConfig
from boxless.methods.soco import SoCoConfig
from boxless.methods.soco_c4 import SoCoC4Config
from boxless.methods.soco_star import SoCoStarConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe, ProposalOptions

SOCO_SMALL = PretrainRecipe(
    method=replace(SoCoConfig().at_size(96), momentum=0.97),
    trunk=TrunkConfig(backbone="resnet18", fpn_channels=64, box_head_width=256),
    optim=PretrainOptim(
        name="adamw", base_lr=8e-3, weight_decay=1e-4, warmup_epochs=2, warmup_start=0.01, final_lr=1e-6
    ),
    epochs=30,
    batch_size=32,
    checkpoint_every=100,
)
"""SoCo on a narrow ResNet-18-FPN at 96 px: a first try on a CPU or on small images, in minutes to hours.

The method is the paper's. Its optimiser is not: LARS is for large batches and long runs, and this is AdamW at a small
batch; the target's momentum starts at BYOL's value for its shortest run (0.97, 40 epochs).
"""

SOCO_R50_FPN = PretrainRecipe(
    method=SoCoConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=1.0, weight_decay=1e-5, warmup_epochs=10, warmup_start=0.01, final_lr=1.25e-7
    ),
    proposals=ProposalOptions(preset="paper"),
    epochs=100,
    batch_size=256,
)
"""SoCo on ResNet-50-FPN with the 4conv1fc box head, as in the paper (100 epochs).

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 2048, on 16 V100, where
the rate ends at 1e-6. Boxes are found by selective search with the paper's parameters; --proposals.preset fast takes a
third of the time and finds more objects.

Paper: table 1, SoCo (100 epochs) on ImageNet: Mask R-CNN R50-FPN 1x 42.3 box AP, 37.6 mask AP. Not measured by us.
"""

SOCO_SWIN_T_FPN = PretrainRecipe(
    method=SoCoConfig(),
    trunk=TrunkConfig(backbone="swin_t"),
    optim=PretrainOptim(
        name="adamw", base_lr=1e-3, reference_batch=512, weight_decay=0.05, warmup_epochs=5, final_lr=1e-6
    ),
    epochs=100,
    batch_size=256,
)
"""SoCo on Swin-T with FPN and the 4conv1fc box head (100 epochs): a combination of our own, not from the paper.

Optimiser, learning rate and weight decay are MoBY's for Swin-T (arXiv:2105.04553, section 4.1): LARS is for
convolutional networks. Fine-tune it with AdamW: --optim.name adamw --optim.lr 1e-4 --optim.weight_decay 0.05 (Swin's
own detectors). Not measured by us.
"""

SOCO_STAR_SMALL = replace(SOCO_SMALL, method=replace(SoCoStarConfig().at_size(96), momentum=0.97))
"""SoCo* on the trunk and with the optimiser of soco-small, on a fourth view of 82 px."""

SOCO_STAR_R50_FPN = replace(SOCO_R50_FPN, method=SoCoStarConfig(), epochs=400)
"""SoCo* on ResNet-50-FPN with the 4conv1fc box head, as in the paper (400 epochs).

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 2048, on 16 V100.

Paper: table 1, SoCo* (400 epochs) on ImageNet: Mask R-CNN R50-FPN 1x 43.2 box AP, 38.4 mask AP. Not measured by us.
"""

SOCO_C4_SMALL = replace(
    SOCO_SMALL, method=replace(SoCoC4Config().at_size(96), momentum=0.97), trunk=replace(SOCO_SMALL.trunk, neck="c4")
)
"""SoCo on a ResNet-18 without a pyramid, at 96 px, with the optimiser of soco-small.

C4 is 6 x 6 cells here and boxes are pooled to 14 x 14: for trying the method out, not for small objects. In a
comparison, give every cell this trunk with --pretrain.trunk.neck c4.
"""

SOCO_C4_R50 = replace(SOCO_R50_FPN, method=SoCoC4Config(), trunk=TrunkConfig(neck="c4"))
"""SoCo on ResNet-50-C4, as in the paper (100 epochs).

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 2048, on 16 V100.

Paper: tables 2 and 3, SoCo (100 epochs) on ImageNet: Mask R-CNN R50-C4 1x 40.4 box AP, 34.9 mask AP on COCO; Faster
R-CNN R50-C4 59.1 AP on VOC. Not measured by us.
"""
