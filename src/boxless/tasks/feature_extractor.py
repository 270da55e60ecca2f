"""The networks whose frozen features are measured: from a user's words to trunks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.interop.weights import load_trunk
from boxless.runs.weights import weights_file
from boxless.tasks.compare_table import REFERENCE
from boxless.tasks.detect import open_run

RANDOM = "random weights"
"""The name of random weights in tables and figures."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """A network whose features are measured.

    Attributes:
        name: of its weights.
        trunk: on the CPU, in eval mode.
        report: what was loaded.
        pyramid: whether the FPN has weights of its own, or is as random as all the rest.
    """

    name: str
    trunk: Trunk
    report: str
    pyramid: bool


def load_frozen(words: Sequence[str], backbone: str | None, seed: int) -> list[Frozen]:
    """The networks that a user's words name, after one with random weights for each backbone among them.

    Random weights are those that training from scratch starts from: the last norm of each residual block is 0.

    Args:
        words: runs, weights files, "none".
        backbone: of files and of "none"; by default the first run's.
        seed: of the random weights.

    Raises:
        UserError: for words that name nothing, or weights that do not fit.
    """
    chosen = [word for word in dict.fromkeys(words) if word != REFERENCE]
    of_runs = {word: _with_fpn(open_run(word)[1].trunk) for word in chosen if Path(word).is_dir()}
    usual = next(iter(of_runs.values()), TrunkConfig())
    if backbone is not None:
        usual = replace(usual, backbone=backbone)
    configs = {word: of_runs.get(word, usual) for word in chosen}
    references = {config.backbone: config for config in reversed([*configs.values(), *([] if configs else [usual])])}
    names = _names(chosen)
    networks = []
    for kind, config in reversed(references.items()):
        name = RANDOM if len(references) == 1 else f"{RANDOM} ({kind})"
        networks.append(Frozen(name, _new(config, seed), "as training from scratch starts", True))
    for word in chosen:
        trunk = _new(configs[word], seed)
        report = load_trunk(trunk, weights_file(word), minimum=0.99)
        networks.append(Frozen(names[word], trunk, str(report), report.shares["FPN"] >= 0.99))
    return networks


def _with_fpn(config: TrunkConfig) -> TrunkConfig:
    """The trunk with the body in one piece, where in a C4 trunk the last stage is a head, and with a pyramid."""
    return config if config.neck in ("fpn", "fpn_p3") else replace(config, neck="fpn")


def _new(config: TrunkConfig, seed: int) -> Trunk:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(config).eval().requires_grad_(False)


def _names(words: Sequence[str]) -> dict[str, str]:
    """Short names: a run's folder, a file's stem; the whole path where two would be alike."""
    short = {word: Path(word).resolve().name if Path(word).is_dir() else Path(word).stem for word in words}
    names = list(short.values())
    return {word: name if names.count(name) == 1 and name != RANDOM else word for word, name in short.items()}
