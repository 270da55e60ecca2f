"""BYOL, LC-loss and SoCo together on ResNet-50-FPN, one pass per view, with SoCo's schedule (100 epochs).

boxless pretrain --recipe joint-r50-fpn --data images/ --out runs/joint

The batch is what one large GPU holds; the learning rate follows it. Two views of 224 px: a little less than SoCo's
pixels. No paper has this composition, its weights are a guess. Not measured by us.
"""

from boxless.methods.joint import JointConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe, ProposalOptions

RECIPE = PretrainRecipe(
    method=JointConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=1.0, weight_decay=1e-5, warmup_epochs=10, warmup_start=0.01, final_lr=1.25e-7
    ),
    proposals=ProposalOptions(preset="paper"),
    epochs=100,
    batch_size=256,
)
