"""boxless: pretrain object detectors on unlabelled images and measure the gain.

Each command of the command line is the function of the same name here.
"""

import os

# PyTorch's threads spin while they wait for each other. Data workers on the same cores then wait for a core that a
# spinning thread holds: measured on two busy cores, training was 11 times slower. Without any spinning, though, each
# small operation waits for threads to wake: 1.8 times slower at 64 px. So they spin for some microseconds, then sleep.
# Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Four commands share their names with packages: export, figures, recipes and report. Loading the packages first leaves
# the names to the commands for good; `from boxless.recipes.load import load` works all the same.
import boxless.export
import boxless.figures
import boxless.recipes
import boxless.report  # noqa: F401
from boxless.commands.compare import compare
from boxless.commands.convert import convert
from boxless.commands.demo import demo
from boxless.commands.evaluate import evaluate
from boxless.commands.export import export
from boxless.commands.figures import figures
from boxless.commands.finetune import finetune
from boxless.commands.load import load
from boxless.commands.pack import pack
from boxless.commands.predict import predict
from boxless.commands.pretrain import pretrain
from boxless.commands.probe import probe
from boxless.commands.propose import propose
from boxless.commands.publish import publish
from boxless.commands.recipes import recipes
from boxless.commands.report import report
from boxless.commands.statistics import statistics

__version__ = "0.1.0"

__all__ = [
    "compare",
    "convert",
    "demo",
    "evaluate",
    "export",
    "figures",
    "finetune",
    "load",
    "pack",
    "predict",
    "pretrain",
    "probe",
    "propose",
    "publish",
    "recipes",
    "report",
    "statistics",
]
