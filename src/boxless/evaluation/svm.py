"""Linear SVMs on frozen features, one per class, as on VOC 2007: with all labels and with few.

Features are vectors (N, D), one per image, and `present` (N, C) says which classes an image shows: 1 shown, 0 not, -1
shown only by objects that detection ignores, which is as good as not in training and does not count in measuring.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

Floats = NDArray[np.float64]

_POWERS = tuple(0.5**power for power in range(4, 20))
GRIDS = {
    "detco": (1.0, 10.0, 100.0, *_POWERS),
    "fair": (0.01, 0.1, *_POWERS),
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
}
"""Costs C that an SVM chooses from: OpenSelfSup's, which DetCo used; FAIR's self-supervision benchmark's; VISSL's."""
LOW_SHOT = (1, 2, 4, 8, 16, 32, 64, 96)
"""Images per class; 96 are what VOC 2007's rarest class has."""
LOW_SHOT_DRAWS = 5


def interpolated_ap(scores: Floats, present: NDArray[np.bool_], points: int | None = None) -> float:
    """Average precision of a ranking (N,), 0..1; NaN where nothing is present.

    Precision at a recall is the highest at that recall or above. `points` of recall, evenly from 0 to 1, are averaged
    (11 in VOC 2007's own rule); None takes the area below the curve, as the SVM protocol does.
    """
    if not present.any():
        return float("nan")
    precision, recall, _ = precision_recall_curve(present, scores)
    precision, recall = np.maximum.accumulate(precision[:-1]), recall[:-1]  # recall falls; the last point is made up
    if points is None:
        return float(np.sum(precision * -np.diff(recall, append=0)))
    wanted = np.arange(points) / (points - 1)
    return float(np.mean([precision[recall >= each].max(initial=0) for each in wanted]))


def svm_scores(
    train: Floats, present: NDArray[np.int8], queries: Floats, costs: Sequence[float], seed: int, processes: int = 1
) -> Floats:
    """One linear SVM per class on L2-normalised features (N, D), its C chosen by three-fold average precision.

    A class with fewer than three positive (or negative) images has as many folds as these; with one it takes C = 1.
    All else is as in OpenSelfSup's and FAIR's code.

    Returns:
        Scores (M, C) of the queries; NaN for a class that training shows everywhere or nowhere.
    """
    known, asked = unit_length(train), unit_length(queries)
    work = [delayed(_svm_of_class)(known, marks == 1, asked, costs, seed) for marks in present.T]
    return np.stack(Parallel(n_jobs=max(1, min(processes, len(work))))(work), 1)


def _svm_of_class(
    known: Floats, positive: NDArray[np.bool_], asked: Floats, costs: Sequence[float], seed: int
) -> Floats:
    if not 0 < positive.sum() < len(positive):
        return np.full(len(asked), np.nan)
    cost = costs[0] if len(costs) == 1 else _choose_cost(known, positive, costs, seed)
    svm = _fit_svm(known, positive, cost, seed)
    return svm.decision_function(asked)  # type: ignore[no-any-return]


def _choose_cost(features: Floats, positive: NDArray[np.bool_], costs: Sequence[float], seed: int) -> float:
    splits = min(3, int(positive.sum()), int((~positive).sum()))
    if splits < 2:
        return 1.0
    folds = list(StratifiedKFold(splits).split(features, positive))

    def score(cost: float) -> float:
        fitted = [(_fit_svm(features[rows], positive[rows], cost, seed), held) for rows, held in folds]
        return float(
            np.mean([average_precision_score(positive[h], svm.decision_function(features[h])) for svm, h in fitted])
        )

    return max(costs, key=score)


def _fit_svm(features: Floats, positive: NDArray[np.bool_], cost: float, seed: int) -> LinearSVC:
    svm = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops there, converged or not
        return svm.fit(features, np.where(positive, 1, -1))


def class_aps(scores: Floats, present: NDArray[np.int8], points: int | None = None) -> Floats:
    """Interpolated AP of each class (C,) by scores (M, C); images that only hide a class (-1) do not count for it."""
    aps = []
    for column, marks in zip(scores.T, present.T, strict=True):
        shown = marks >= 0
        usable = bool(np.isfinite(column).all())
        aps.append(interpolated_ap(column[shown], marks[shown] == 1, points) if usable else float("nan"))
    return np.array(aps)


def low_shot(
    train: Floats, present: NDArray[np.int8], queries: Floats, asked: NDArray[np.int8], seed: int
) -> dict[int, Floats]:
    """mAP from few training images per class: number of images -> mAP of each draw.

    A draw takes k images of every class (all that it has, where there are fewer); larger k keep the images of smaller
    ones. k goes as far as half of the classes have so many images. Per class an SVM with C = 1 learns from all images
    drawn: choosing C, as FAIR's script does, on the images that are measured on would be cheating.
    """
    known, unknown = unit_length(train), unit_length(queries)
    have = np.median((present == 1).sum(0))
    counts = [k for k in LOW_SHOT if k <= have] or [1]
    results: dict[int, list[float]] = {k: [] for k in counts}
    for draw in range(LOW_SHOT_DRAWS):
        random = np.random.default_rng((seed, draw))
        orders = [random.permutation(np.flatnonzero(column == 1)) for column in present.T]
        for k in counts:
            rows = np.unique(np.concatenate([order[:k] for order in orders]))
            scores = [_svm_of_class(known[rows], marks == 1, unknown, [1.0], seed) for marks in present[rows].T]
            results[k].append(mean_known(class_aps(np.stack(scores, 1), asked)))
    return {k: np.array(values) for k, values in results.items()}


def mean_known(values: Floats) -> float:
    """The mean of what is not NaN; NaN if all is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def unit_length(features: Floats) -> Floats:
    """Features (N, D) at length 1, as FAIR's code makes them."""
    unit: Floats = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)
    return unit
