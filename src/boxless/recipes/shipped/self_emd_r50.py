"""Self-EMD on ResNet-50, as the paper trains it on COCO (800 epochs).

boxless pretrain --recipe self-emd-r50 --data images/ --out runs/self-emd

The batch is the paper's, on 8 GPUs. Its weight decay is taken to be for weights alone.

Paper: table 1, Self-EMD on COCO: Faster R-CNN R50-FPN 1x 39.8 box AP, 40.4 with COCO's unlabelled images. Not measured
by us.
"""

from boxless.methods.self_emd import SelfEMDConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=SelfEMDConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.2, weight_decay=1e-4, warmup_epochs=4, final_lr=0.0),
    epochs=800,
    batch_size=256,
)
