"""Classifiers on frozen features, as in papers on pretraining.

Features are vectors (N, D), one per image or object. A linear classifier may learn from other ones in each epoch, of
other crops, as in the papers; all else is measured on one set.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from boxless.errors import UserError
from boxless.evaluation.svm import unit_length

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPISODES = 600
"""Number of episodes of few_shot."""
NEIGHBOURS = (20, 200)
"""Neighbours of knn: DINO's best k, and InstDisc's."""


@dataclass(frozen=True)
class Score:
    """One measure of one set of weights.

    Attributes:
        weights: their name.
        measure: name of the measure.
        value: 0..1; NaN if there was nothing to measure.
        low: lower end of its interval; NaN if none is known.
        high: upper end.
        n: number of examples, draws, episodes or images of the interval.
    """

    weights: str
    measure: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class LinearPreset:
    """Settings of a linear classifier, trained by SGD with momentum 0.9 and a batch of 256."""

    lr: float
    """Learning rate of the first epoch; not scaled with the batch."""
    weight_decay: float
    """Weight decay of weights and biases."""
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
    train: Callable[[int], Tensor], labels: Tensor, queries: Tensor, classes: int, preset: LinearPreset, seed: int
) -> Ints:
    """Train a linear classifier on features with labels (N,), and classify queries (M, D): (M,).

    `train` gives the features (N, D) of an epoch, from 0.

    Raises:
        UserError: if the loss is not finite at the preset's learning rate.
    """
    linear, finite = _fit_linear(train, labels, classes, preset, seed)
    if not finite:
        raise UserError(f"linear: the loss is not finite at a learning rate of {preset.lr}; use the preset sweep")
    with torch.no_grad():
        return linear(queries).argmax(1).cpu().numpy()  # type: ignore[no-any-return]


def swept(train: Tensor, labels: Tensor, classes: int, seed: int) -> LinearPreset:
    """Barlow Twins' preset with the learning rate that classifies a held-out fifth of the training examples best.

    So weights are compared fairly whose features differ in scale, as those of random and of trained networks do.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).to(train.device)
    held, kept = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]

    def accuracy(rate: float) -> float:
        preset = replace(LINEAR["barlow"], lr=rate)
        linear, finite = _fit_linear(lambda _: train[kept], labels[kept], classes, preset, seed)
        return float((linear(train[held]).argmax(1) == labels[held]).double().mean()) if finite else -1.0

    return replace(LINEAR["barlow"], lr=max(SWEEP, key=accuracy))


def _fit_linear(
    train: Callable[[int], Tensor], labels: Tensor, classes: int, preset: LinearPreset, seed: int
) -> tuple[nn.Linear, bool]:
    """A trained classifier, and whether its loss stayed finite."""
    generator = torch.Generator().manual_seed(seed)
    features = train(0)
    linear = nn.Linear(features.shape[1], classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    linear.to(features.device)
    optimizer = torch.optim.SGD(linear.parameters(), preset.lr, momentum=0.9, weight_decay=preset.weight_decay)
    for epoch in range(preset.epochs):
        optimizer.param_groups[0]["lr"] = preset.learning_rate(epoch)
        features = train(epoch) if epoch else features
        for rows in torch.split(torch.randperm(len(labels), generator=generator).to(labels.device), preset.batch):
            optimizer.zero_grad()
            loss = cross_entropy(linear(features[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return linear, bool(loss.isfinite())


def knn_predict(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float = 0.07
) -> Ints:
    """Classify queries (M, D) by their k nearest training features (N, D): (M,).

    Neighbours vote with weights exp(cosine / temperature), as in InstDisc (arXiv 1805.01978) and DINO, whose
    temperature this is; k is at most N.
    """
    known = normalize(train, dim=1)
    predictions = []
    for part in torch.split(normalize(queries, dim=1), 1024):
        similarity, nearest = (part @ known.T).topk(min(k, len(known)))
        votes = part.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], (similarity / temperature).exp())
        predictions.append(votes.argmax(1).cpu())
    return torch.cat(predictions).numpy()


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
        UserError: if too few classes have enough examples.
    """
    known = unit_length(features)
    rows_of = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows_of = [rows for rows in rows_of if len(rows) >= shots + queries]
    if len(rows_of) < ways:
        raise UserError(
            f"few_shot: {len(rows_of)} classes have {shots + queries} readable examples ({shots} to learn from, "
            f"{queries} to classify); {ways} are needed, so give more data or use another kind"
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
