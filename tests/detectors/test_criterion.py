"""DETR's set loss against Hugging Face's, and matchings against all permutations."""

from itertools import permutations

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from boxless.detectors.criterion import Objects, match, set_loss

LAYERS, QUERIES, CLASSES = 3, 5, 4


def predictions(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    shape = (LAYERS, batch, QUERIES)
    return torch.randn(*shape, CLASSES + 1, generator=generator), torch.rand(*shape, 4, generator=generator)


def some_objects(*counts: int) -> Objects:
    generator = torch.Generator().manual_seed(1)
    most = max(counts)
    return Objects(
        torch.randint(CLASSES, (len(counts), most), generator=generator),
        torch.rand(len(counts), most, 4, generator=generator) * 0.5 + 0.2,
        torch.arange(most) < torch.tensor(counts)[:, None],
    )


def test_loss_is_that_of_transformers() -> None:
    logits, boxes = predictions(3)
    objects = some_objects(2, 0, 4)
    targets = [
        {"class_labels": labels[present], "boxes": where[present]}
        for labels, where, present in zip(*objects, strict=True)
    ]
    config = DetrConfig(use_timm_backbone=False, num_labels=CLASSES, auxiliary_loss=True, decoder_layers=LAYERS)
    config.eos_coefficient = 0.3
    expected, parts, _ = ForObjectDetectionLoss(
        logits[-1], targets, torch.device("cpu"), boxes[-1], config, logits, boxes
    )
    ours = set_loss(logits, boxes, objects, match(logits, boxes, objects), 0.3, count=6)
    torch.testing.assert_close(sum(ours.values()), expected)
    l1 = sum(value for key, value in parts.items() if key.startswith("loss_bbox"))
    torch.testing.assert_close(ours["l1"], 5 * l1)


def test_matching_is_the_cheapest_of_all() -> None:
    logits, boxes = predictions(2)
    objects = some_objects(3, 2)
    matching = match(logits, boxes, objects)
    for layer in range(LAYERS):
        for image in range(2):
            labels, where = (t[image, objects.present[image]] for t in objects[:2])
            chance = logits[layer, image].softmax(-1)[:, labels]
            distance = (boxes[layer, image][:, None] - where).abs().sum(-1)
            iou = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes[layer, image], where)))
            cost = 5 * distance - chance - 2 * iou
            best = min(
                permutations(range(QUERIES), len(labels)),
                key=lambda rows, cost=cost: sum(cost[row, column] for column, row in enumerate(rows)),
            )
            assert matching.matched[layer, image].tolist() == objects.present[image].tolist()
            assert tuple(matching.query[layer, image, : len(labels)].tolist()) == best


def test_objects_beyond_the_queries_are_left_over() -> None:
    logits, boxes = predictions(1)
    objects = some_objects(7)
    matching = match(logits, boxes, objects)
    assert (matching.matched.sum(-1) == QUERIES).all()
    for layer in range(LAYERS):
        assert sorted(matching.query[layer][matching.matched[layer]].tolist()) == list(range(QUERIES))
    assert all(value.isfinite() for value in set_loss(logits, boxes, objects, matching, 0.1, 7).values())


def test_images_without_objects_learn_no_boxes() -> None:
    logits, boxes = predictions(2)
    boxes.requires_grad_()
    objects = Objects(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool))
    losses = set_loss(logits, boxes, objects, match(logits, boxes, objects), 0.1, 1)
    assert losses["l1"] == 0 and losses["giou"] == 0
    torch.testing.assert_close(losses["classes"], -logits.log_softmax(-1)[..., -1].mean((1, 2)).sum())
