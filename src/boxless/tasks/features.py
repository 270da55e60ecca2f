"""Features of images: from networks and data to tensors, computed once and kept on disk."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torch.utils.data import Dataset

from boxless.data.classification import ClassifiedData, ExampleDataset
from boxless.data.dataloader import make_loader
from boxless.data.images import StoredImage
from boxless.data.index import ImageIndex
from boxless.detectors.trunk import LEVELS, Trunk
from boxless.evaluation.correspondence import PairDataset, best_matches
from boxless.files import make_folder, written
from boxless.tasks.feature_extractor import FeatureExtractor
from boxless.training.device import make_fabric
from boxless.training.progress import say

FORMAT = 2
"""Version of the files; with another number they are computed again."""
MAPS = {"C5": "3", **{f"P{number}": name for number, name in enumerate(LEVELS, start=2)}}
"""Maps for correspondence, with torchvision's name of each."""
_TOGETHER = 64
"""Views that go through the network at a time."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the examples that could be read.

    Attributes:
        vectors: (N, D) float32, C5 averaged over its cells, or over four parts of it one after the other.
        rows: (N,), of the data.
        skipped: file -> reason of the images that could not be read.
    """

    vectors: Tensor
    rows: NDArray[np.int64]
    skipped: dict[str, str]


class FeatureCache:
    """Computes features of one size and keeps them in a folder.

    Args:
        folder: for the files.
        size: side of the views, px.
        workers: processes that decode.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, size: int, workers: int, quiet: bool) -> None:
        self.folder, self.size, self.workers, self.quiet = folder, size, workers, quiet
        self.device = make_fabric("32-true").device

    def vectors(self, network: FeatureExtractor, data: ClassifiedData, parts: int = 1) -> Features:
        """C5 of each example, averaged over all cells, or over `parts` x `parts` overlapping parts of the map.

        Parts are as large as possible: 2 x 2 parts of 7 x 7 cells have 6 x 6 each, as in the papers' SVM features.
        """
        windows = data.windows if isinstance(data.windows, str) else _digest(data.windows.tobytes())
        sizes = {} if data.sizes is None else {"sizes": _digest(data.sizes.tobytes())}
        key = {"what": f"mean of C5, {parts} x {parts}", "windows": windows, "data": _fingerprint(data.paths), **sizes}

        def compute() -> tuple[dict[str, Tensor], dict[str, str]]:
            found = self._pass(network, ExampleDataset(data, self.size), parts)
            return {"vectors": found.vectors, "rows": torch.from_numpy(found.rows)}, found.skipped

        tensors, skipped = self._kept(network, network.trunk.backbone.body, key, len(set(data.paths)), compute)
        return Features(tensors["vectors"], tensors["rows"].numpy(), skipped)

    def of_crops(self, network: FeatureExtractor, data: ClassifiedData, draw: int) -> Features:
        """C5 averaged over the cells of a random crop of each example; not kept on disk."""
        return self._pass(network, ExampleDataset(data, self.size, crops=draw), 1)

    def _pass(self, network: FeatureExtractor, examples: ExampleDataset, parts: int) -> Features:
        trunk = self._placed(network)
        means, rows = [], []
        skipped: dict[str, str] = {}
        for batch in self._batches(examples):
            skipped.update(example.skipped for example in batch if example.skipped)
            rows += [example.rows for example in batch]
            for views in torch.split(torch.cat([example.views for example in batch]), _TOGETHER):
                image = trunk.normalize(views.to(self.device).float() / 255)
                c5 = trunk.backbone.body(image)[MAPS["C5"]]
                means.append(pooled(c5, parts).cpu())
        width = parts * parts * trunk.body_width
        return Features(torch.cat([torch.zeros(0, width), *means]), np.concatenate(rows), skipped)

    def matches(
        self, network: FeatureExtractor, paths: ImageIndex, level: str, seed: int
    ) -> tuple[Tensor, int, dict[str, str]]:
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
        used = network.trunk.backbone.body if level == "C5" else network.trunk.backbone
        tensors, skipped = self._kept(network, used, key, len(paths), compute)
        return tensors["matches"], int(tensors["columns"]), skipped

    def _placed(self, network: FeatureExtractor) -> Trunk:
        return network.trunk.to(self.device).to(memory_format=torch.channels_last)

    def _batches(self, dataset: Dataset[Any]) -> Iterator[list[Any]]:
        with torch.inference_mode():
            yield from make_loader(dataset, 16, self.workers)

    def _kept(
        self,
        network: FeatureExtractor,
        used: nn.Module,
        key: Mapping[str, object],
        count: int,
        compute: Callable[[], tuple[dict[str, Tensor], dict[str, str]]],
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors from the file of the same weights (of the part that is used), data and settings, or computed now."""
        config = {name: getattr(network.trunk.config, name) for name in ("backbone", "norm", "mean", "std")}
        whole = {"format": FORMAT, "size": self.size, "weights": _weights_digest(used), **config, **key}
        path = self.folder / f"{_digest(json.dumps(whole, sort_keys=True).encode())}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return tensors, json.loads(file.metadata()["skipped"])
        except (OSError, SafetensorError):  # not there, or broken
            pass
        say(f"{network.name}: computing features of {count} images", self.quiet)
        tensors, skipped = compute()
        make_folder(self.folder)
        with written(path, alone=False) as partial:
            save_file(tensors, partial, metadata={"skipped": json.dumps(skipped), "key": json.dumps(whole)})
        return tensors, skipped


def pooled(maps: Tensor, parts: int) -> Tensor:
    """Maps (B, C, h, w) as vectors (B, C * parts * parts): means of parts as large as fit, one cell apart."""
    height, width = (max(1, side - parts + 1) for side in maps.shape[2:])
    means = avg_pool2d(maps, (height, width), stride=1)
    return interpolate(means, (parts, parts)).flatten(1)  # as it is, but for maps with fewer cells than parts


def _weights_digest(part: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in part.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(paths: Sequence[str]) -> str:
    """Digest of files, in order: their names, sizes and times of change, or in shards their checksums."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{_facts(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _facts(path: str) -> str:
    if isinstance(path, StoredImage):
        return f"{path} {path.stamp()}"
    try:
        stat = os.stat(path)
        return f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        return f"{os.path.abspath(path)} missing"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
