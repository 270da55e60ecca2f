"""The equations of self-training against loops in float64, and worked examples."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from boxless.data.two_views import TwoViews
from boxless.geometry.view import View
from boxless.methods.self_training import (
    AGREEING,
    NEVER,
    SAME_OBJECT,
    Finds,
    Ranking,
    SelfTrainingConfig,
    agreed,
    pseudo_target,
    ramp,
)


def test_the_weight_rises_from_the_burn_in_on() -> None:
    assert [ramp(step, 10, 4, 2.0) for step in (0, 9, 10, 11, 13, 14, 99)] == [0, 0, 0.5, 1, 2, 2, 2]
    assert ramp(5, 5, 0, 1.0) == 1
    for wrong in ({"burn_in": 1.0}, {"weight": -1.0}, {"density": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SelfTrainingConfig(**wrong)


@pytest.mark.parametrize(("density", "kept"), [(1.0, (300, 60)), (0.5, (150, 30))])
def test_as_many_finds_count_as_the_labels_say(density: float, kept: tuple[int, int]) -> None:
    random = np.random.default_rng(0)  # 20 labelled images have 30 objects of a and 6 of b; 200 unlabelled images
    ranking = Ranking(density * torch.tensor([30 / 20, 6 / 20, 0], dtype=torch.float64), floor=0.1)
    number, label, score = np.repeat(np.arange(200), 12), random.integers(0, 3, 2400), random.uniform(0.1, 1, 2400)
    ranking.add(torch.tensor(np.stack([number, label, score, score * 0], 1)), 200)
    thresholds = ranking.thresholds().numpy()
    assert tuple(int((score[label == c] >= thresholds[c]).sum()) for c in (0, 1)) == kept
    assert thresholds[2] == NEVER


def test_thresholds_are_of_the_newest_images_and_not_below_the_floor() -> None:
    random = np.random.default_rng(1)
    rates, floor, window = [0.4, 0.05, 2.0], 0.3, 40
    ranking, history = Ranking(torch.tensor(rates), floor, window), []
    for step in range(15):
        number = np.sort(random.integers(0, 6, 10))
        rows = np.stack([number, random.integers(0, 3, 10), random.uniform(0, 1, 10), random.random(10) < 0.2], 1)
        ranking.add(torch.tensor(rows), 6)
        history += [(6 * step + int(n), int(c), s, k) for n, c, s, k in rows]
        seen = min(window, 6 * step + 6)
        recent = [row for row in history if row[0] >= 6 * step + 6 - seen]
        for c, rate in enumerate(rates):
            own = sorted((s for _, k, s, _ in recent if k == c), reverse=True)
            count = math.ceil(rate * seen - 1e-9)
            wanted = max(floor, own[count - 1]) if len(own) > count else floor
            assert ranking.thresholds()[c].item() == pytest.approx(wanted)
            assert ranking.labels_per_image()[c].item() == pytest.approx(sum(r[3] for r in recent if r[1] == c) / seen)
        assert ranking.empty() == pytest.approx(1 - len({row[0] for row in recent}) / seen)
    again = Ranking(torch.tensor(rates), floor, window)
    again.load_state_dict(ranking.state_dict())
    assert torch.equal(again.thresholds(), ranking.thresholds()) and again.seen == ranking.seen


def random_finds(random: np.random.Generator, count: int) -> Finds:
    corner, size = random.uniform(0, 60, (count, 2)), random.uniform(5, 40, (count, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + size], 1))
    return Finds(boxes, torch.tensor(random.uniform(0, 1, count)), torch.tensor(random.integers(1, 3, count)))


def test_finds_of_both_views_are_joined_as_a_loop_does() -> None:
    random = np.random.default_rng(2)
    for count in (0, 1, 12, 30):
        found, other = random_finds(random, count), random_finds(random, 20)
        boxes = torch.cat([found.boxes + torch.tensor(random.normal(0, 2, (count, 4))), other.boxes])
        again = Finds(boxes, torch.cat([found.scores / 2, other.scores]), torch.cat([found.labels, other.labels]))
        joined = []
        for box, score, label in zip(*found, strict=True):
            own = [k for k in range(len(again.boxes)) if again.labels[k] == label]
            ious = {k: float(box_iou(box[None], again.boxes[k][None])) for k in own}
            best = max(ious, key=lambda k: ious[k], default=None)
            if best is not None and ious[best] >= 0.5:
                mean, second = (box + again.boxes[best]) / 2, float(again.scores[best])
                joined.append(((float(score) + second) / 2, mean, int(label), ious[best] >= AGREEING))
            else:
                joined.append((float(score) / 2, box, int(label), False))
        wanted: list[tuple[float, torch.Tensor, int, bool]] = []
        for one in sorted(joined, key=lambda each: -each[0]):
            if all(float(box_iou(one[1][None], kept[1][None])) <= SAME_OBJECT for kept in wanted):
                wanted.append(one)
        finds, certain = agreed(found, again)
        assert finds.scores.tolist() == pytest.approx([one[0] for one in wanted])
        assert finds.labels.tolist() == [one[2] for one in wanted] and certain.tolist() == [one[3] for one in wanted]
        assert all(torch.allclose(a, b[1]) for a, b in zip(finds.boxes, wanted, strict=True))


def test_a_target_has_what_counts_and_ignores_what_is_doubtful_or_hidden() -> None:
    blank = View(torch.zeros(1, 3, 100, 100, dtype=torch.uint8), torch.eye(2, 3)[None])
    views = TwoViews(blank, blank, torch.tensor([[50.0, 50.0, 100.0, 100.0]]), row=0)
    boxes = torch.tensor([[0, 0, 20, 20], [30, 0, 50, 20], [55, 55, 75, 75], [90, 0, 190, 20]]).float()
    finds = Finds(boxes, torch.ones(4), torch.tensor([1, 2, 3, 4]))
    counts = torch.tensor([True, False, True, True])  # the third is hidden, of the fourth a tenth is seen
    target = pseudo_target(views, finds, counts, ignores=True)
    assert target["labels"].tolist() == [1, -1, -1] and target["ignored"].tolist() == [False, True, True]
    assert torch.equal(target["boxes"], boxes[:3])
    plain = pseudo_target(views, finds, counts, ignores=False)
    assert plain["labels"].tolist() == [1] and plain.keys() == {"boxes", "labels"}
