from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image

from boxless.data.detection import DetectionDataset, detection_batches, resize
from boxless.data.labels import LabelledData, LabelledImage
from boxless.data.loader import Order
from boxless.geometry.affine import invert
from boxless.geometry.boxes import transform_boxes

WIDTH, HEIGHT = 160, 100
BOXES = np.array([[20, 30, 60, 90], [100, 10, 150, 40], [70, 50, 95, 95], [0, 0, 160, 100]], np.float32)


def run_lengths(box: np.ndarray) -> dict[str, object]:
    raster = np.zeros((HEIGHT, WIDTH), np.uint8)
    x1, y1, x2, y2 = box.astype(int)
    raster[y1:y2, x1:x2] = 1
    return coco_mask.encode(np.asfortranarray(raster))


@pytest.fixture
def data(tmp_path: Path) -> LabelledData:
    """A picture of three bright rectangles, labelled by polygon, by run lengths and by box only, and a crowd."""
    image = np.full((HEIGHT, WIDTH, 3), 10, np.uint8)
    for channel, box in enumerate(BOXES[:3].astype(int)):
        image[box[1] : box[3], box[0] : box[2], channel] = 250
    Image.fromarray(image).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    x1, y1, x2, y2 = BOXES[0].tolist()
    masks = ([[x1, y1, x2, y1, x2, y2, x1, y2]], run_lengths(BOXES[1]), None, run_lengths(BOXES[3]))
    crowd = np.array([False, False, False, True])
    labels = np.array([2, 0, 1, 1])

    def labelled(name: str, image_id: int) -> LabelledImage:
        return LabelledImage(tmp_path / name, image_id, WIDTH, HEIGHT, BOXES, labels, crowd, masks)

    images = [labelled("good.png", 1), labelled("bad.png", 2)]
    return LabelledData("here", ("a", "b", "c"), (1, 2, 3), tuple(images))


def dataset(data: LabelledData, training: bool = True, sizes: tuple[int, ...] = (50, 75, 130)) -> DetectionDataset:
    return DetectionDataset(data, sizes, 190, training, masks=True, seed=0)


def test_boxes_and_masks_stay_on_their_pixels(data: LabelledData) -> None:
    places = set()
    for epoch in range(16):
        sample = dataset(data)[epoch, 0]
        height, width = sample.image.shape[1:]
        places.add((width, bool(sample.from_source[0, 0] < 0)))
        assert sample.target["labels"].tolist() == [3, 1, 2]  # from 1, without the crowd
        boxes, masks = sample.target["boxes"], sample.target["masks"]
        assert boxes.shape == (3, 4) and masks.shape == (3, height, width) and masks.dtype == torch.uint8
        for box, mask, pixels in zip(boxes, masks, sample.image, strict=True):
            for seen in (pixels > 130, mask > 0):
                y, x = seen.nonzero(as_tuple=True)
                around = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                torch.testing.assert_close(around, box, atol=1.0, rtol=0)
        back = transform_boxes(invert(sample.from_source[None]), boxes[None])[0]
        torch.testing.assert_close(back, torch.from_numpy(BOXES[:3]), atol=1e-3, rtol=0)
    assert {width for width, _ in places} == {80, 120, 190} and {flipped for _, flipped in places} == {True, False}


def test_evaluation_uses_the_last_size_and_no_flip(data: LabelledData) -> None:
    sample = dataset(data, training=False)[0]
    assert tuple(sample.image.shape) == (3, 119, 190) and sample.source_size == (WIDTH, HEIGHT)
    torch.testing.assert_close(sample.from_source, torch.tensor([[190 / 160, 0, 0], [0, 119 / 100, 0]]))
    assert torch.equal(sample.image, dataset(data, training=False)[0].image)


def test_unreadable_image_is_grey_empty_and_reported(data: LabelledData) -> None:
    sample = dataset(data)[0, 1]
    assert sample.skipped is not None and sample.skipped[0].endswith("bad.png")
    assert (sample.image == 128).all()
    assert {key: len(value) for key, value in sample.target.items()} == {"boxes": 0, "labels": 0, "masks": 0}
    assert sample.target["masks"].shape[1:] == sample.image.shape[1:] and sample.target["labels"].dtype == torch.int64


def test_batches_depend_on_neither_workers_nor_first_step(data: LabelledData) -> None:
    def draw(workers: int, start: int) -> list[list[torch.Tensor]]:
        loader = detection_batches(dataset(data), Order(2, 2, start, 4, 0), workers)
        return [[tensor for sample in batch for tensor in (sample.image, *sample.target.values())] for batch in loader]

    whole, tail = draw(0, 0), draw(2, 2)
    assert len(tail) == 2
    for ours, theirs in zip(tail, whole[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("source", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((200, 1000), (267, 1333)), ((1, 5000), (1, 1333))],
)
def test_size_is_bound_by_both_sides(source: tuple[int, int], expected: tuple[int, int]) -> None:
    image, from_source = resize(np.zeros((*source, 3), np.uint8), 800, 1333)
    assert tuple(image.shape[1:]) == expected
    corner = from_source @ torch.tensor([float(source[1]), float(source[0]), 1.0])
    torch.testing.assert_close(corner, torch.tensor([float(expected[1]), float(expected[0])]))


def test_an_image_with_boxes_alone_gets_masks_that_fill_them(data: LabelledData) -> None:
    """In a data set with masks, some images may have none (COCO with crowds or box-only annotations)."""
    bare = replace(data, images=(replace(data.images[0], masks=None),))
    target = DetectionDataset(bare, (HEIGHT,), 10 * WIDTH, training=False, masks=True)[0].target
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        x1, y1, x2, y2 = box.round().int().tolist()
        assert mask[y1:y2, x1:x2].all() and mask.sum() == (x2 - x1) * (y2 - y1)
