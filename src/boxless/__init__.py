"""boxless: pretrain object detectors on images without labels, and see what that bought.

Each command of the command line is the function of the same name here.
"""

from contextlib import suppress

# The command `recipes` and the package `boxless.recipes` share a name. Loading the package first leaves the name to the
# command for good; `from boxless.recipes.catalogue import load` works all the same.
import boxless.recipes  # noqa: F401
from boxless.commands.propose import propose
from boxless.commands.recipes import recipes

with suppress(ModuleNotFoundError):
    from boxless.commands.pretrain import pretrain
with suppress(ModuleNotFoundError):
    from boxless.commands.finetune import finetune
with suppress(ModuleNotFoundError):
    from boxless.commands.evaluate import evaluate
with suppress(ModuleNotFoundError):
    from boxless.commands.predict import predict
with suppress(ModuleNotFoundError):
    from boxless.commands.compare import compare
with suppress(ModuleNotFoundError):
    from boxless.commands.export import export
with suppress(ModuleNotFoundError):
    from boxless.commands.demo import demo

__version__ = "0.1.0"

__all__ = [
    "compare",
    "demo",
    "evaluate",
    "export",
    "finetune",
    "predict",
    "pretrain",
    "propose",
    "recipes",
]
