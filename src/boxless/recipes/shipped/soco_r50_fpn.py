"""SoCo on ResNet-50-FPN with the 4conv1fc box head, as in the paper (100 epochs).

boxless pretrain --recipe soco-r50-fpn --data images/ --out runs/soco

The batch is what one large GPU holds; the learning rate follows it. The paper's is --batch_size 2048, on 16 V100, where
the rate ends at 1e-6. Boxes are found by selective search with the paper's parameters; --proposals.preset fast takes a
third of the time and finds more objects.

Paper: table 1, SoCo (100 epochs) on ImageNet: Mask R-CNN R50-FPN 1x 42.3 box AP, 37.6 mask AP. Not measured by us.
"""

from boxless.methods.soco import SoCoConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe, ProposalOptions

RECIPE = PretrainRecipe(
    method=SoCoConfig(),
    optim=PretrainOptim(
        name="lars", base_lr=1.0, weight_decay=1e-5, warmup_epochs=10, warmup_start=0.01, final_lr=1.25e-7
    ),
    proposals=ProposalOptions(preset="paper"),
    epochs=100,
    batch_size=256,
)
