"""MoCo v2 on ResNet-50, as in the paper (200 epochs).

boxless pretrain --recipe moco-r50 --data images/ --out runs/moco

The batch is the paper's, on 8 GPUs; one large GPU holds it, with batch statistics per eighth (--method.norm_groups).
The authors' weight decay is for biases and norms too; here, as everywhere in boxless, they don't decay. Their learning
rate falls once per epoch, here with each step.

Paper: table 1, 200 epochs on ImageNet: 67.5 % by a linear classifier. Not measured by us.
"""

from boxless.methods.moco import MoCoConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=MoCoConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.03, weight_decay=1e-4, warmup_epochs=0, final_lr=0.0),
    epochs=200,
    batch_size=256,
)
