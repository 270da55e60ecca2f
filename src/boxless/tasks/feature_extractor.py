"""Feature extractors: trunks with the weights that a user names, and with random ones beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from boxless.detectors.trunk import Trunk, TrunkConfig, with_neck
from boxless.interop.weights import load_trunk
from boxless.runs.run import Run
from boxless.runs.weights import weights_file
from boxless.tasks.compare_table import REFERENCE

RANDOM = "random weights"
"""Name of random weights in tables and figures."""


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A trunk whose features are measured or drawn.

    Attributes:
        name: name of its weights.
        trunk: on the CPU, in eval mode, without gradients.
        report: report of the loaded weights.
        has_fpn: true if the FPN has weights of its own, or is as random as all the rest.
    """

    name: str
    trunk: Trunk
    report: str
    has_fpn: bool


def load_feature_extractors(words: Sequence[str], backbone: str | None, seed: int) -> list[FeatureExtractor]:
    """Load the weights that a user names, after random ones for each backbone among them.

    Random weights are those that training from scratch starts from: the last norm of each residual block is 0.

    Args:
        words: runs, weights files, "none".
        backbone: backbone for files and "none"; by default the first run's.
        seed: seed of the random weights.

    Raises:
        UserError: words name nothing, or weights do not fit.
    """
    chosen = [word for word in dict.fromkeys(words) if word != REFERENCE]
    trunks = {word: Run.open(word, trained=True).recipe.trunk for word in chosen if Path(word).is_dir()}
    of_runs = {word: with_neck(trunk, ("fpn", "fpn_p3")) for word, trunk in trunks.items()}
    usual = next(iter(of_runs.values()), TrunkConfig())
    if backbone is not None:
        usual = replace(usual, backbone=backbone)
    configs = [of_runs.get(word, usual) for word in chosen]
    extractors = []
    references: dict[str, TrunkConfig] = {}
    for config in configs or [usual]:
        references.setdefault(config.backbone, config)
    for kind, config in references.items():
        name = RANDOM if len(references) == 1 else f"{RANDOM} ({kind})"
        extractors.append(FeatureExtractor(name, _new(config, seed), "as training from scratch starts", True))
    for word, name, config in zip(chosen, _names(chosen), configs, strict=True):
        trunk = _new(config, seed)
        report = load_trunk(trunk, weights_file(word), minimum=0.99)
        extractors.append(FeatureExtractor(name, trunk, str(report), report.shares["FPN"] >= 0.99))
    return extractors


def _new(config: TrunkConfig, seed: int) -> Trunk:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(config).eval().requires_grad_(False)


def _names(words: Sequence[str]) -> list[str]:
    """Short names: a run's folder, a file's stem; the whole path if two would be alike."""
    short = [Path(word).resolve().name if Path(word).is_dir() else Path(word).stem for word in words]
    return [
        name if short.count(name) == 1 and name != RANDOM else word for word, name in zip(words, short, strict=True)
    ]
