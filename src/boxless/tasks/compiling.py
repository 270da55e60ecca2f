"""Kernels made for a run by torch.compile: which parts of a method get them, and when that pays.

A ResNet's norms and activations move more bytes than its convolutions, and compiling joins them. Bodies are compiled
one by one and in place, so that their names, what is saved and what reads like a paper stay as they are.
"""

import os
import shutil

import torch
from torch import nn

from boxless.detectors.trunk import Backbone, Trunk
from boxless.recipes.schema import PretrainRecipe
from boxless.training.distributed import world_size

PAYS_FROM = 2000
"""Steps from which on the minute or two of compiling is won back."""


def compiling_pays(recipe: PretrainRecipe, steps: int) -> bool:
    """Return whether compiling wins its time back in a run of a number of steps on a GPU.

    That is in long runs, where there is a C compiler, which torch.compile needs. It leaves out UP-DETR, whose images
    change their size from step to step, and norms over several processes, where it has not been tried.
    """
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    able = any(name and shutil.which(name) for name in compilers)
    varying = recipe.trunk.neck == "transformer"
    return able and steps >= PAYS_FROM and not varying and (recipe.trunk.norm != "sync" or world_size() == 1)


def compile_parts(method: nn.Module, trunk: Trunk) -> None:
    """Compile a method's bodies, with their pyramids where it runs both as one, of targets too; the first steps do it.

    A pyramid alone would take maps that gradients flow through, of which torch.compile warns.
    """
    torch._dynamo.config.recompile_limit = 64  # views of several sizes, online and target: each a kernel of its own
    # A method that trains the body alone never calls the whole.
    whole = [part for part in method.modules() if isinstance(part, Backbone) and method.trains != ("backbone",)]
    inside = {id(part) for each in whole for part in each.modules()}
    bodies = [part for part in method.modules() if type(part) is type(trunk.backbone.body) and id(part) not in inside]
    for part in (*whole, *bodies):
        part.compile(dynamic=False)
