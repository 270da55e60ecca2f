"""Probe the features of several weights, side by side: from feature extractors and data to table and figures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxless.data.classification import ClassifiedData, read_classified
from boxless.data.index import ImageIndex
from boxless.data.open import index_images
from boxless.detectors.trunk import LEVELS
from boxless.errors import UserError
from boxless.evaluation import probes, svm
from boxless.evaluation.correspondence import PairDataset, correspondence_accuracy
from boxless.evaluation.probes import Score
from boxless.files import make_folder, write_text
from boxless.plots.probes import match_panels, score_bars, score_curves
from boxless.plots.style import save
from boxless.tasks.feature_extractor import FeatureExtractor
from boxless.tasks.features import MAPS, FeatureCache, Features
from boxless.tasks.probe_result import ASYMMETRY, NOTES, VIEWS, ProbeResult, ProbeSettings, as_csv

WHOLE_IMAGES = ("svm", "low_shot")
"""Kinds that take detection labels as classes of whole images; the others take each object."""
WITHOUT_VAL = ("few_shot", "correspondence")
PRESETS = {"linear": ("sweep", *probes.LINEAR), "svm": tuple(svm.GRIDS)}
"""Whose settings each kind takes, its default first; the others have none."""


def run_probe(networks: Sequence[FeatureExtractor], settings: ProbeSettings, out: Path, quiet: bool) -> ProbeResult:
    """Measure each network, and write the table and the figures.

    Raises:
        UserError: for data that the kind cannot use.
    """
    if settings.val is None and settings.kind not in WITHOUT_VAL:
        raise UserError(f"kind {settings.kind} needs --val: examples to measure on, beside those of --data")
    make_folder(out)  # before what may take long
    cache = FeatureCache(out / "features", settings.size, settings.processes, quiet)
    probe = _correspondence if settings.kind == "correspondence" else _classification
    result = probe(networks, settings, cache, out)
    write_text(out / f"{settings.kind}.csv", as_csv(result))
    write_text(out / f"{settings.kind}.md", f"{result}\n")
    draw = score_curves if settings.kind == "low_shot" else score_bars
    save(draw(result.scores, result.chance), out / "figures" / settings.kind)
    return result


@dataclass(frozen=True, eq=False)
class _Split:
    """Features with their classes (N, C), and those of random crops of the same examples."""

    features: Features
    present: NDArray[np.int8]
    of_crops: Callable[[int], Features]

    @staticmethod
    def of(cache: FeatureCache, network: FeatureExtractor, data: ClassifiedData, parts: int) -> "_Split":
        features = cache.vectors(network, data, parts)
        if not len(features.rows):
            file, reason = next(iter(features.skipped.items()))
            raise UserError(f"{file}: {reason}; so are all images of {data.origin}: check the data")
        return _Split(features, data.present[features.rows], partial(cache.of_crops, network, data))

    @property
    def labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.present.argmax(1)
        return labels

    @property
    def vectors(self) -> NDArray[np.float64]:
        return self.features.vectors.double().numpy()


def _classification(
    networks: Sequence[FeatureExtractor], settings: ProbeSettings, cache: FeatureCache, out: Path
) -> ProbeResult:
    data, val = read_data(settings)
    scores: list[Score] = []
    skipped: dict[str, str] = {}
    for network in networks:
        parts = 2 if settings.kind in WHOLE_IMAGES else 1
        train = _Split.of(cache, network, data, parts)
        test = train if val is None else _Split.of(cache, network, val, parts)
        skipped |= train.features.skipped | test.features.skipped
        scores += MEASURES[settings.kind](network.name, train, test, settings)
    note = NOTES[settings.kind].format(preset=settings.preset, views=VIEWS[settings.crops])
    return ProbeResult(out, settings.kind, tuple(scores), _chance(settings.kind, test.present), note, skipped)


def read_data(settings: ProbeSettings) -> tuple[ClassifiedData, ClassifiedData | None]:
    """The examples to learn from and to measure on, in the classes that both speak of; None where nothing is asked.

    Raises:
        UserError: if there are no two classes.
    """
    if not isinstance(settings.data, str):
        raise UserError(f"kind {settings.kind}: expected one --data; only correspondence takes several")
    objects = settings.kind not in WHOLE_IMAGES
    data = read_classified(settings.data, "train", objects)
    shown = np.flatnonzero((data.present == 1).any(0)).tolist()
    classes = tuple(data.classes[number] for number in shown)
    if len(classes) < 2:
        raise UserError(
            f"{settings.data}: only one class ({classes[0] if classes else 'none'}); telling classes apart needs two"
        )
    data = _shown(replace(data, classes=classes, present=data.present[:, shown]), settings.kind)
    if settings.val is None:
        return data, None
    return data, _shown(read_classified(settings.val, "val", objects, classes), settings.kind)


def _shown(data: ClassifiedData, kind: str) -> ClassifiedData:
    """The data with that part of each image that the kind's protocol shows; objects stay as they are."""
    whole = {**dict.fromkeys(WHOLE_IMAGES, "whole"), "few_shot": "squashed centre"}
    return replace(data, windows=whole.get(kind, "centre")) if isinstance(data.windows, str) else data


def _linear(name: str, train: _Split, test: _Split, settings: ProbeSettings) -> list[Score]:
    vectors, labels, classes = train.features.vectors, torch.from_numpy(train.labels), train.present.shape[1]
    preset = probes.LINEAR.get(settings.preset) or probes.swept(vectors, labels, classes, settings.seed)

    def of_epoch(epoch: int) -> Tensor:
        return train.of_crops(settings.seed * 1_000_003 + epoch).vectors if settings.crops else vectors

    found = probes.linear_predict(of_epoch, labels, test.features.vectors, classes, preset, settings.seed)
    return [probes.share_score(name, "accuracy", found == test.labels)]


def _knn(name: str, train: _Split, test: _Split, _: ProbeSettings) -> list[Score]:
    known, labels = train.features.vectors, torch.from_numpy(train.labels)
    scores = []
    for k in probes.NEIGHBOURS:
        found = probes.knn_predict(known, labels, test.features.vectors, train.present.shape[1], k)
        scores.append(probes.share_score(name, f"accuracy, k = {k}", found == test.labels))
    return scores


def _svm(name: str, train: _Split, test: _Split, settings: ProbeSettings) -> list[Score]:
    costs = svm.GRIDS[settings.preset]
    scores = svm.svm_scores(train.vectors, train.present, test.vectors, costs, settings.seed, settings.processes)
    rules: dict[str, int | None] = {"mAP": None, "mAP, 11 points": 11}
    values = {rule: svm.mean_known(svm.class_aps(scores, test.present, points)) for rule, points in rules.items()}
    return [Score(name, rule, value, math.nan, math.nan, len(test.present)) for rule, value in values.items()]


def _low_shot(name: str, train: _Split, test: _Split, settings: ProbeSettings) -> list[Score]:
    draws = svm.low_shot(train.vectors, train.present, test.vectors, test.present, settings.seed)
    return [probes.mean_score(name, f"mAP, k = {k}", values) for k, values in draws.items()]


def _few_shot(name: str, train: _Split, test: _Split, settings: ProbeSettings) -> list[Score]:
    pooled = [train] if test is train else [train, test]
    vectors = np.concatenate([split.vectors for split in pooled])
    labels = np.concatenate([split.labels for split in pooled])
    found = probes.few_shot(vectors, labels, settings.seed, probes.EPISODES)
    return [probes.mean_score(name, "5-way 5-shot accuracy", found)]


MEASURES: dict[str, Callable[[str, _Split, _Split, ProbeSettings], list[Score]]] = {
    "linear": _linear,
    "knn": _knn,
    "svm": _svm,
    "low_shot": _low_shot,
    "few_shot": _few_shot,
}


def _chance(kind: str, present: NDArray[np.int8]) -> float:
    """Score of guessing: the largest class; the fraction of images that show a class; one class of five."""
    if kind == "few_shot":
        return 0.2
    shares = [float((marks[marks >= 0] == 1).mean()) for marks in present.T if (marks == 1).any()]
    return max(shares) if kind in ("linear", "knn") else float(np.mean(shares))


def _correspondence(
    networks: Sequence[FeatureExtractor], settings: ProbeSettings, cache: FeatureCache, out: Path
) -> ProbeResult:
    index = index_images(settings.data)
    for network in reversed(networks):  # first come random weights, in the trunk of a run, which is the one to name
        _check_level(network, settings.level)
    scores, examples = [], {}
    skipped: dict[str, str] = {}
    for network in networks:
        matches, columns, skipped = cache.matches(network, index, settings.level, settings.seed)
        if not len(matches):
            file, reason = next(iter(skipped.items()))
            raise UserError(f"{file}: {reason}; so are all {len(index)} images: check the data")
        cells = matches.shape[1]
        accuracy = correspondence_accuracy(matches, cells // columns, columns).numpy()
        scores.append(probes.mean_score(network.name, "correspondence", accuracy))
        examples[network.name] = matches.numpy()
    _draw_matches(index, settings, examples, columns, skipped, out)
    note = NOTES["correspondence"].format(
        cells=cells, level=settings.level, size=settings.size, asymmetry="" if settings.size % 32 == 1 else ASYMMETRY
    )
    return ProbeResult(out, "correspondence", tuple(scores), 1 / cells, note, skipped)


def _check_level(network: FeatureExtractor, level: str) -> None:
    if level == "C5":
        return
    if not network.has_fpn:
        raise UserError(f"{network.name}: has no weights of an FPN, and level {level} is one of its maps; use C5")
    levels = [each for each, name in MAPS.items() if each == "C5" or name in LEVELS[network.trunk.backbone.first :]]
    if level not in levels:
        raise UserError(f"level: {level}; the trunk of {network.name} has {', '.join(levels)}; use one of these")


def _draw_matches(
    index: ImageIndex,
    settings: ProbeSettings,
    matches: dict[str, NDArray[np.int64]],
    columns: int,
    skipped: dict[str, str],
    out: Path,
) -> None:
    """The matches of the first image that can be read, for each of the weights."""
    row = next(row for row in range(len(index)) if index.path(row) not in skipped)
    pair = PairDataset(index, settings.size, settings.seed)[row]
    first = {name: found[0] for name, found in matches.items()}
    save(match_panels(pair, first, columns), out / "figures" / "correspondence-example")
