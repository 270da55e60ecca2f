"""DenseCL on ResNet-50, as the paper trains it on COCO (800 epochs).

boxless pretrain --recipe densecl-r50 --data images/ --out runs/densecl

The batch is the paper's, on 8 GPUs. No warm-up. Its weight decay is for biases and norms too; here, as everywhere in
boxless, they don't decay. On ImageNet the paper trains 200 epochs at a tenth of the rate: --optim.base_lr 0.03.

Paper: 800 epochs on COCO: Faster R-CNN R50-C4 on VOC 56.7 AP; 200 epochs on ImageNet 58.7. Not measured by us.
"""

from boxless.methods.densecl import DenseCLConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

RECIPE = PretrainRecipe(
    method=DenseCLConfig(),
    optim=PretrainOptim(name="sgd", base_lr=0.3, weight_decay=1e-4, warmup_epochs=0, final_lr=0.0),
    epochs=800,
    batch_size=256,
)
