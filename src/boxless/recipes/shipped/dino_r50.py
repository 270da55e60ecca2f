"""DINO on ResNet-50, as in the authors' README for ResNets (100 epochs).

boxless pretrain --recipe dino-r50 --data images/ --out runs/dino

The batch is what one large GPU holds; the learning rate follows it. The authors' is --batch_size 512, on 8 GPUs.

SGD, crops and weight decay are the README's, and so is the teacher's temperature, which stays at 0.04. (The 800-epoch
model, whose arguments differ, has 75.3 % on ImageNet's linear evaluation.) Not measured by us.
"""

from boxless.methods.dino import DINOConfig
from boxless.recipes.schema import PretrainOptim, PretrainRecipe

METHOD = DINOConfig(target_temperature=0.04)
RECIPE = PretrainRecipe(
    method=METHOD,
    optim=PretrainOptim(name="sgd", base_lr=0.03, weight_decay=1e-4, warmup_epochs=10, final_lr=5e-7),
    epochs=100,
    batch_size=256,
)
