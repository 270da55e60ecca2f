"""Frozen features of images: from weights and data to tensors, computed once and kept on disk."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from boxless.data.classes import ClassifiedData, ExampleDataset
from boxless.data.loader import Paths, one_thread
from boxless.detectors.trunk import LEVELS, Trunk, TrunkConfig
from boxless.detectors.weights import load_trunk
from boxless.evaluation.correspondence import PairDataset, best_matches
from boxless.runs.detecting import open_run
from boxless.runs.setup import make_fabric
from boxless.runs.weights import weights_file

FORMAT = 1
"""Of the files; another number and they are computed anew."""
REFERENCE = "none"
"""Random weights."""
MAPS = {"C5": "3", **{f"P{number}": name for number, name in enumerate(LEVELS, start=2)}}
"""Maps that a place can be looked for on, and torchvision's name of each."""
_TOGETHER = 64
"""Views that go through the network at a time."""


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
        name = REFERENCE if len(references) == 1 else f"{REFERENCE} ({kind})"
        networks.append(Frozen(name, _new(config, seed), "random weights", True))
    for word in chosen:
        trunk = _new(configs[word], seed)
        report = load_trunk(trunk, weights_file(word), minimum=0.99)
        networks.append(Frozen(names[word], trunk, str(report), report.shares["FPN"] >= 0.99))
    return networks


def _with_fpn(config: TrunkConfig) -> TrunkConfig:
    """The trunk with the body in one piece: in a C4 trunk, the last stage is a head."""
    return replace(config, neck="fpn") if config.neck in ("c4", "transformer") else config


def _new(config: TrunkConfig, seed: int) -> Trunk:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(config).eval().requires_grad_(False)


def _names(words: Sequence[str]) -> dict[str, str]:
    """Short names: a run's folder, a file's stem; the whole path where two would be alike."""
    short = {word: Path(word).resolve().name if Path(word).is_dir() else Path(word).stem for word in words}
    names = list(short.values())
    return {word: name if names.count(name) == 1 and name != REFERENCE else word for word, name in short.items()}


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the examples that could be read.

    Attributes:
        vectors: (N, D) float32, C5 averaged over its cells.
        rows: (N,), of the data.
        skipped: file -> reason of the images that could not be read.
    """

    vectors: Tensor
    rows: NDArray[np.int64]
    skipped: dict[str, str]


class Extractor:
    """Computes features of one size and keeps them in a folder.

    Args:
        folder: of the files.
        size: of the views, px.
        workers: processes that decode.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, size: int, workers: int, quiet: bool) -> None:
        self.folder, self.size, self.workers, self.quiet = folder, size, workers, quiet
        self.device = make_fabric("32-true").device

    def vectors(self, network: Frozen, data: ClassifiedData) -> Features:
        """The mean of C5 for each example."""

        def compute() -> tuple[dict[str, Tensor], dict[str, str]]:
            trunk = self._placed(network)
            means, rows = [], []
            skipped: dict[str, str] = {}
            for batch in self._batches(ExampleDataset(data, self.size)):
                skipped.update(example.skipped for example in batch if example.skipped)
                rows += [example.rows for example in batch]
                for views in torch.split(torch.cat([example.views for example in batch]), _TOGETHER):
                    image = trunk.normalize(views.to(self.device).float() / 255)
                    means.append(trunk.backbone.body(image)[MAPS["C5"]].mean((2, 3)).cpu())
            kept = torch.from_numpy(np.concatenate(rows))
            return {"vectors": torch.cat([torch.zeros(0, trunk.body_width), *means]), "rows": kept}, skipped

        windows = data.windows if isinstance(data.windows, str) else _digest(data.windows.tobytes())
        key = {"what": "mean of C5", "windows": windows, "data": _fingerprint(data.paths)}
        tensors, skipped = self._kept(network, key, len(set(data.paths)), compute)
        return Features(tensors["vectors"], tensors["rows"].numpy(), skipped)

    def matches(self, network: Frozen, paths: Paths, level: str, seed: int) -> tuple[Tensor, int, dict[str, str]]:
        """Best matches (N, cells) of the images that can be read, the cells per row, and the images that can't."""

        def compute() -> tuple[dict[str, Tensor], dict[str, str]]:
            trunk = self._placed(network)
            network_of = trunk.backbone.body if level == "C5" else trunk.backbone
            found, columns = [], 0
            skipped: dict[str, str] = {}
            for batch in self._batches(PairDataset(paths, self.size, seed)):
                skipped.update(pair.skipped for pair in batch if pair.skipped)
                kept = [pair for pair in batch if not pair.skipped]
                if not kept:
                    continue
                views = torch.stack([pair.image for pair in kept] + [pair.changed for pair in kept]).to(self.device)
                maps, changed = network_of(trunk.normalize(views))[MAPS[level]].chunk(2)
                # One at a time: on P2 of 224 px, the similarities of one image are 10 million.
                found += [best_matches(maps[i : i + 1], changed[i : i + 1]).cpu() for i in range(len(kept))]
                columns = maps.shape[3]
            matches = torch.cat([*found, torch.zeros(0, found[0].shape[1] if found else 1, dtype=torch.int64)])
            return {"matches": matches, "columns": torch.tensor(columns)}, skipped

        files = [paths.path(row) for row in range(len(paths))]
        key = {"what": f"matches on {level}", "seed": seed, "data": _fingerprint(files)}
        tensors, skipped = self._kept(network, key, len(paths), compute)
        return tensors["matches"], int(tensors["columns"]), skipped

    def _placed(self, network: Frozen) -> Trunk:
        return network.trunk.to(self.device).to(memory_format=torch.channels_last)

    def _batches(self, dataset: Dataset[Any]) -> Iterator[list[Any]]:
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=16, num_workers=self.workers, collate_fn=list, worker_init_fn=one_thread
        )
        with torch.inference_mode():
            yield from loader

    def _kept(
        self,
        network: Frozen,
        key: Mapping[str, object],
        count: int,
        compute: Callable[[], tuple[dict[str, Tensor], dict[str, str]]],
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What was computed before for the same weights, data and settings, or else now."""
        config = {name: getattr(network.trunk.config, name) for name in ("backbone", "norm", "mean", "std")}
        whole = {"format": FORMAT, "size": self.size, "weights": _weights_digest(network.trunk), **config, **key}
        path = self.folder / f"{_digest(json.dumps(whole, sort_keys=True).encode())}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return tensors, json.loads(file.metadata()["skipped"])
        except (OSError, SafetensorError):  # not there, or broken
            pass
        self._say(f"{network.name}: computing features of {count} images")
        tensors, skipped = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        save_file(tensors, partial, metadata={"skipped": json.dumps(skipped), "key": json.dumps(whole)})
        partial.replace(path)
        return tensors, skipped

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


def _weights_digest(trunk: Trunk) -> str:
    digest = hashlib.sha256()
    for name, tensor in trunk.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(paths: Sequence[str]) -> str:
    """Of files by their names, sizes and times of change, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = os.stat(path)
            facts = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n"
        except OSError:
            facts = f"{os.path.abspath(path)} missing\n"
        digest.update(facts.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
