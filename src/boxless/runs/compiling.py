"""Kernels made for a run by torch.compile: which parts of a method get them, and when that pays.

A ResNet's norms and activations move more bytes than its convolutions, and compiling joins them. Bodies and pyramids
are compiled one by one and in place, so that their names, what is saved and what reads like a paper stay as they are.
"""

import os
import shutil

import torch
from torch import nn

from boxless.detectors.trunk import Trunk
from boxless.recipes.schema import PretrainRecipe
from boxless.training.distributed import world_size

PAYS_FROM = 2000
"""Steps from which on the minute or two of compiling is won back."""


def is_compiled(recipe: PretrainRecipe, steps: int, device: torch.device) -> bool:
    """Whether a run of a number of steps compiles: as the recipe says, else where it pays.

    That is in long runs on a GPU, where there is a C compiler, which torch.compile needs. It leaves out UP-DETR, whose
    images change their size from step to step, and norms over several processes, where it has not been tried.
    """
    if recipe.compile is not None:
        return recipe.compile
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    able = device.type == "cuda" and any(name and shutil.which(name) for name in compilers)
    varying = recipe.trunk.neck == "transformer"
    return able and steps >= PAYS_FROM and not varying and (recipe.trunk.norm != "sync" or world_size() == 1)


def compile_parts(method: nn.Module, trunk: Trunk) -> None:
    """Compile a method's bodies and pyramids, of targets too, in place; the first steps do the work."""
    torch._dynamo.config.recompile_limit = 64  # views of several sizes, online and target: each a kernel of its own
    kinds = {type(trunk.backbone.body), type(trunk.backbone.fpn)} - {nn.Identity}
    for part in method.modules():
        if type(part) in kinds:
            part.compile(dynamic=False)
