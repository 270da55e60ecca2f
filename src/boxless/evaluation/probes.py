"""What frozen features are worth: the classifiers that papers on pretraining put on them.

Features are vectors (N, D), one per image or object. They are made once and without augmentation; the papers' linear
evaluation augments its training images (crops, flips), so that its scores are not to be compared with these.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student_t
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from boxless.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))
"""Costs C that an SVM chooses from (OpenSelfSup's, which DetCo used)."""
LOW_SHOT = (1, 2, 4, 8, 16)
"""Images per class."""
LOW_SHOT_DRAWS = 5
EPISODES = 600
"""Of few_shot."""


@dataclass(frozen=True)
class Score:
    """One measure of one set of weights.

    Attributes:
        weights: their name.
        measure: what was measured.
        value: 0..1; NaN where there was nothing to measure.
        low: lower end of its interval; NaN where none is known.
        high: upper end.
        n: how many examples, draws, episodes or images the interval is over.
    """

    weights: str
    measure: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class LinearPreset:
    """How a linear classifier is trained: SGD with momentum 0.9, a batch of 256."""

    lr: float
    """Of the first epoch; not scaled with the batch."""
    weight_decay: float
    """Of weights and biases."""
    schedule: Literal["steps", "cosine"]
    """A tenth after 60 and 80 % of the epochs, or half a cosine down to 0; both per epoch."""
    epochs: int = 100
    batch: int = 256

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0."""
        share = epoch / self.epochs
        if self.schedule == "steps":
            return self.lr * 0.1 ** ((share >= 0.6) + (share >= 0.8))
        return self.lr * (1 + float(np.cos(np.pi * share))) / 2


LINEAR = {
    "moco": LinearPreset(30.0, 0.0, "steps"),
    "barlow": LinearPreset(0.3, 1e-6, "cosine"),
    "vicreg": LinearPreset(0.02, 1e-6, "cosine"),
}
"""Settings of MoCo (SoCo's and DetCo's too), Barlow Twins and VICReg. A rate suits the scale of its paper's features:
elsewhere 30 may diverge and 0.02 hardly learn."""
SWEEP = (0.03, 0.3, 3.0, 30.0, 300.0, 3000.0)
"""Learning rates that `swept` chooses from."""


def linear_predict(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, preset: LinearPreset, seed: int
) -> Ints:
    """Train a linear classifier on features (N, D) with labels (N,), and classify queries (M, D): (M,).

    Raises:
        UserError: where the loss is not finite at the preset's learning rate.
    """
    linear, finite = _fit_linear(train, labels, classes, preset, seed)
    if not finite:
        raise UserError(f"linear: the loss is not finite at a learning rate of {preset.lr}; take the preset sweep")
    with torch.no_grad():
        return linear(queries).argmax(1).cpu().numpy()  # type: ignore[no-any-return]


def swept(train: Tensor, labels: Tensor, classes: int, seed: int) -> LinearPreset:
    """Barlow Twins' preset with the learning rate that classifies a held-out fifth of the training examples best.

    So weights are compared fairly whose features differ in scale, as those of random and of trained networks do.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).to(train.device)
    held, kept = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]

    def accuracy(rate: float) -> float:
        linear, finite = _fit_linear(train[kept], labels[kept], classes, replace(LINEAR["barlow"], lr=rate), seed)
        return float((linear(train[held]).argmax(1) == labels[held]).double().mean()) if finite else -1.0

    return replace(LINEAR["barlow"], lr=max(SWEEP, key=accuracy))


def _fit_linear(train: Tensor, labels: Tensor, classes: int, preset: LinearPreset, seed: int) -> tuple[nn.Linear, bool]:
    """A trained classifier, and whether its loss stayed finite."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(train.shape[1], classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    linear.to(train.device)
    optimizer = torch.optim.SGD(linear.parameters(), preset.lr, momentum=0.9, weight_decay=preset.weight_decay)
    for epoch in range(preset.epochs):
        optimizer.param_groups[0]["lr"] = preset.learning_rate(epoch)
        for rows in torch.randperm(len(train), generator=generator).to(train.device).split(preset.batch):
            optimizer.zero_grad()
            loss = cross_entropy(linear(train[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return linear, bool(loss.isfinite())


def knn_predict(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int = 200, temperature: float = 0.07
) -> Ints:
    """Classify queries (M, D) by their k nearest training features (N, D): (M,).

    Neighbours vote with weights exp(cosine / temperature), as in InstDisc (arXiv 1805.01978) and DINO, whose k and
    temperature these are; k is at most N.
    """
    known = normalize(train, dim=1)
    predictions = []
    for part in normalize(queries, dim=1).split(1024):
        similarity, nearest = (part @ known.T).topk(min(k, len(known)))
        votes = part.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], (similarity / temperature).exp())
        predictions.append(votes.argmax(1).cpu())
    return torch.cat(predictions).numpy()  # type: ignore[no-any-return]


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


def svm_scores(train: Floats, present: NDArray[np.int8], queries: Floats, seed: int, processes: int = 1) -> Floats:
    """One linear SVM per class on L2-normalised features (N, D), its C chosen by three-fold average precision.

    `present` (N, C): classes at 1 are positive, all else negative. A class with fewer than two positive (or negative)
    images has no folds, and takes C = 1. OpenSelfSup's settings, which DetCo's VOC07 table used; there features are
    maps pooled to 2 x 2 cells, here to one.

    Returns:
        Scores (M, C) of the queries; NaN for a class that training shows everywhere or nowhere.
    """
    known, asked = _unit(train), _unit(queries)
    work = [delayed(_svm_of_class)(known, marks == 1, asked, seed) for marks in present.T]
    return np.stack(Parallel(n_jobs=max(1, min(processes, len(work))))(work), 1)


def _svm_of_class(
    known: Floats, positive: NDArray[np.bool_], asked: Floats, seed: int, cost: float | None = None
) -> Floats:
    if not 0 < positive.sum() < len(positive):
        return np.full(len(asked), np.nan)
    svm = _fit_svm(known, positive, cost or _choose_cost(known, positive, seed), seed)
    return svm.decision_function(asked)  # type: ignore[no-any-return]


def _choose_cost(features: Floats, positive: NDArray[np.bool_], seed: int) -> float:
    splits = min(3, int(positive.sum()), int((~positive).sum()))
    if splits < 2:
        return 1.0
    folds = list(StratifiedKFold(splits).split(features, positive))

    def score(cost: float) -> float:
        fitted = [(_fit_svm(features[rows], positive[rows], cost, seed), held) for rows, held in folds]
        return float(
            np.mean([average_precision_score(positive[h], svm.decision_function(features[h])) for svm, h in fitted])
        )

    return max(GRID, key=score)


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
    ones. Per class an SVM with C = 1 learns from all images drawn: choosing C, as FAIR's script does, on the images
    that are measured on would be cheating.
    """
    known, unknown = _unit(train), _unit(queries)
    results: dict[int, list[float]] = {k: [] for k in LOW_SHOT}
    for draw in range(LOW_SHOT_DRAWS):
        random = np.random.default_rng((seed, draw))
        orders = [random.permutation(np.flatnonzero(column == 1)) for column in present.T]
        for k in LOW_SHOT:
            rows = np.unique(np.concatenate([order[:k] for order in orders]))
            scores = [_svm_of_class(known[rows], marks == 1, unknown, seed, 1.0) for marks in present[rows].T]
            results[k].append(mean_known(class_aps(np.stack(scores, 1), asked)))
    return {k: np.array(values) for k, values in results.items()}


def few_shot(
    features: Floats,
    labels: Ints,
    seed: int,
    episodes: int,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
) -> Floats:
    """Accuracy of each episode: logistic regression on a few examples of a few classes, as in LC-loss's Table 7.

    Each episode draws `ways` classes, `shots` examples of each to learn from and `queries` others to classify.
    Features (N, D) are L2-normalised; C = 1.

    Raises:
        UserError: where too few classes have enough examples.
    """
    known = _unit(features)
    rows_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows_of = [rows for rows in rows_of if len(rows) >= shots + queries]
    if len(rows_of) < ways:
        raise UserError(
            f"few_shot: {len(rows_of)} classes have {shots + queries} readable examples ({shots} to learn from, "
            f"{queries} to classify); {ways} are needed, so give more data or take another kind"
        )
    accuracies = []
    for episode in range(episodes):
        random = np.random.default_rng((seed, episode))
        chosen = random.choice(len(rows_of), ways, replace=False).tolist()
        drawn = np.stack([random.choice(rows_of[number], shots + queries, replace=False) for number in chosen])
        learned, asked = drawn[:, :shots].ravel(), drawn[:, shots:].ravel()
        model = LogisticRegression(max_iter=1000).fit(known[learned], labels[learned])
        accuracies.append(float(np.mean(model.predict(known[asked]) == labels[asked])))
    return np.array(accuracies)


def share_score(weights: str, measure: str, right: NDArray[np.bool_]) -> Score:
    """The share of examples (M,) that are right, with Wilson's 95 % interval: how exactly M examples tell it."""
    found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Score(weights, measure, float(right.mean()), float(found.low), float(found.high), len(right))


def mean_score(weights: str, measure: str, values: Floats) -> Score:
    """The mean of values (n,) with its 95 % interval (t distribution: 1.96 standard errors for many values)."""
    mean, n = float(values.mean()), len(values)
    half = float(student_t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    return Score(weights, measure, mean, mean - half, mean + half, n)


def mean_known(values: Floats) -> float:
    """The mean of what is not NaN; NaN where all is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _unit(features: Floats) -> Floats:
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)
