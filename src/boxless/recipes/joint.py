"""Recipes of the joint method: boxless pretrain --recipe joint-small --data images/ --out runs/joint."""

from dataclasses import replace

from boxless.methods.joint import JointConfig
from boxless.methods.lc import LocalConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe, ProposalOptions
from boxless.recipes.soco import SOCO_SMALL

JOINT_SMALL = replace(SOCO_SMALL, method=replace(JointConfig(local=LocalConfig(hidden=512)).at_size(96), momentum=0.97))
"""BYOL, LC-loss and SoCo together on the trunk and with the optimiser of soco-small.

The feature map of a 96 px view has 3 x 3 cells, so that the pixel term tells nine places apart.
"""

JOINT_R50_FPN = PretrainRecipe(
    method=JointConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=1.0, weight_decay=1e-5, warmup_epochs=10, warmup_start=0.01, final_lr=1.25e-7
    ),
    proposals=ProposalOptions(preset="paper"),
    epochs=100,
    batch_size=256,
)
"""BYOL, LC-loss and SoCo together on ResNet-50-FPN, one pass per view, with SoCo's schedule (100 epochs).

The batch is what one large GPU holds; the learning rate follows it. Two views of 224 px: a little less than SoCo's
pixels. No paper has this composition, its weights are a guess. Not measured by us.
"""
