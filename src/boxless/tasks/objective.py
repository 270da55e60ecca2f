"""What pretraining minimises: a method's loss on a batch of views."""

from collections.abc import Mapping

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from boxless.data.transforms.color import augment
from boxless.data.unlabelled import Batch, fill_resized
from boxless.methods.method import MethodOutput
from boxless.recipes.schema import PretrainRecipe


class Objective:
    """A batch to a loss: views to the device, augmentation, the method's forward pass."""

    def __init__(
        self,
        fabric: Fabric,
        method: nn.Module,
        recipe: PretrainRecipe,
        skipped: dict[str, str],
        compiled: bool = False,
    ) -> None:
        self.fabric, self.method, self.recipe, self.skipped = fabric, method, recipe, skipped
        self.specs, self.compiled = recipe.method.views(), compiled
        mean, std = torch.tensor(recipe.trunk.mean), torch.tensor(recipe.trunk.std)
        self.mean, self.std = (t.view(1, 3, 1, 1).to(fabric.device, non_blocking=True) for t in (mean, std))
        self.output = MethodOutput(torch.zeros(()), {})

    def __call__(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The method's scalars for a batch."""
        self.skipped.update(dict(batch.skipped))
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        views = []
        for view, spec in zip(fill_resized(batch, self.specs), self.specs, strict=True):
            view = augment(view, spec.photometric, generator, self.compiled)
            image = view.image.sub_(self.mean).div_(self.std)
            views.append(view.with_image(image.contiguous(memory_format=torch.channels_last)))
        self.output = self.method(tuple(views), batch.boxes, batch.valid, generator)
        return {"loss": self.output.loss, **self.output.terms}
