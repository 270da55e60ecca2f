from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image

from boxless.data.annotations.keypoints import Skeleton
from boxless.data.annotations.read import LabelledData, LabelledImage
from boxless.data.dataloader import make_loader
from boxless.data.detection import AugmentConfig, DetectionDataset, draw_window, resize
from boxless.data.sampler import TrainingSampler
from boxless.geometry.affine import invert, transform_points
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
        loader = make_loader(dataset(data), TrainingSampler(2, 2, start, 4, 0), workers)
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


def coordinates(width: int, height: int) -> np.ndarray:
    """An image whose red and green say where a pixel's centre is, as shares of 255."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return np.stack(np.broadcast_arrays(255 * x[None], 255 * y[:, None], 0.0), -1).round().astype(np.uint8)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 900), (1500, 100)])
def test_pixels_of_a_crop_lie_where_its_map_says(width: int, height: int, flipped: bool) -> None:
    source = coordinates(width, height)
    random = np.random.default_rng(width + flipped)
    for _ in range(4):
        window = draw_window(width, height, random)
        image, from_source = resize(source, 96, 160, flipped, window)
        h, w = image.shape[1:]
        assert min(h, w) == 96 or max(h, w) == 160
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        places = transform_points(invert(from_source[None]), torch.stack([x, y], -1)[None])[0]
        said = 255 * places / torch.tensor([width, height])
        inner = (slice(2, -2), slice(2, -2))  # at its borders a window has no neighbours to interpolate with
        torch.testing.assert_close(image[:2].permute(1, 2, 0)[inner].float(), said[inner], atol=1.5, rtol=0)
        corners = transform_boxes(invert(from_source[None]), torch.tensor([[[0.0, 0, w, h]]]))[0, 0]
        torch.testing.assert_close(corners, torch.tensor(window), atol=1e-2, rtol=0)


def test_windows_are_detrs() -> None:
    """384 to 600 px a side of the image at a shorter side of 400, 500 or 600 px, uniformly, anywhere in it."""
    random = np.random.default_rng(0)
    windows = torch.tensor([draw_window(1500, 1000, random) for _ in range(3000)], dtype=torch.float64)
    sides = windows[:, 2:] - windows[:, :2]
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] <= torch.tensor([1500, 1000])).all()
    limits = torch.tensor([[600, 400], [600, 500], [600, 600]])
    scaled = sides * torch.tensor([[[0.4]], [[0.5]], [[0.6]]], dtype=torch.float64)
    whole = (scaled - scaled.round()).abs() < 1e-6
    possible = (whole & (scaled.round() >= 384) & (scaled.round() <= limits[:, None])).all(-1)
    assert possible.any(0).all() and possible.sum(1).min() > 900
    alone = possible & (possible.sum(0) == 1)
    for scale, limit in enumerate(limits.tolist()):
        found = scaled[scale, alone[scale]].round().int()
        assert (found.amin(0) <= 386).all() and (found.amax(0) >= torch.tensor(limit) - 2).all()
    assert {int(height) for height in scaled[0, alone[0], 1].round()} == set(range(384, 401))
    narrower = sides[:, 0] < 1499
    slack = (windows[:, 0] / (1500 - sides[:, 0]))[narrower]
    assert slack.min() < 0.01 and slack.max() > 0.99 and 0.48 < slack.mean() < 0.52
    small = torch.tensor([draw_window(40, 30, random) for _ in range(200)])
    assert (small[:, 2:] <= torch.tensor([40.0, 30.0])).all() and (small[:, :2] >= 0).all()


def cropping(data: LabelledData, **changes: object) -> DetectionDataset:
    settings = {"training": True, "masks": True, "random_crop": True, **changes}
    return DetectionDataset(data, (200,), 400, **settings)  # type: ignore[arg-type]


def test_objects_of_a_crop_stay_on_their_pixels_or_go(data: LabelledData) -> None:
    points = np.zeros((4, 2, 3), np.float32)
    points[:, :, 2] = 2
    points[:, 0, :2], points[:, 1, :2] = BOXES[:, :2] + 1, BOXES[:, 2:] - 1
    skeleton = Skeleton(("left_end", "right_end"))
    far = replace(data.images[0], boxes=BOXES[[0, 1, 2, 3]], keypoints=points)
    data = replace(data, images=(far,), skeleton=skeleton)
    dataset, seen, crops = cropping(data), set(), 0
    for epoch in range(60):
        sample = dataset[epoch, 0]
        height, width = sample.image.shape[1:]
        target = sample.target
        moved = transform_boxes(sample.from_source[None], torch.from_numpy(BOXES)[None])[0]
        crops += not torch.allclose(moved[3], torch.tensor([0.0, 0, width, height]), atol=1e-2)
        limits = torch.tensor([width, height, width, height])
        clipped = torch.minimum(moved[:3].clamp(min=0), limits)
        kept = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(1)
        seen.add(tuple(kept.tolist()))
        torch.testing.assert_close(target["boxes"], clipped[kept])
        assert target["labels"].tolist() == [label for label, k in zip([3, 1, 2], kept, strict=True) if k]
        assert {key: len(value) for key, value in target.items()} == dict.fromkeys(target, int(kept.sum()))
        for box, mask, pixels in zip(target["boxes"], target["masks"], sample.image[kept], strict=True):
            if (box[2:] - box[:2]).min() < 3:
                continue
            for found in (pixels > 130, mask > 0):
                y, x = found.nonzero(as_tuple=True)
                around = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                torch.testing.assert_close(around, box, atol=2.0, rtol=0)
        mirrored = bool(sample.from_source[0, 0] < 0)
        expected = transform_points(sample.from_source[None], torch.from_numpy(points[:3, :, :2])[None])[0][kept]
        expected = expected.flip(1) if mirrored else expected
        inside = ((expected >= 0) & (expected <= limits[:2])).all(-1)
        labelled = target["keypoints"]
        assert torch.equal(labelled[..., 2] > 0, inside)
        torch.testing.assert_close(labelled[inside][:, :2], expected[inside])
        assert not labelled[~inside].any()
    assert 20 <= crops <= 40 and len(seen) > 1


def test_crops_are_for_training_alone_and_leave_other_draws_as_they_were(data: LabelledData) -> None:
    whole, cropped, shown = cropping(data, random_crop=False), cropping(data), cropping(data, training=False)
    pairs = [(whole[epoch, 0], cropped[epoch, 0]) for epoch in range(20)]
    same = [torch.equal(a.from_source, b.from_source) and torch.equal(a.image, b.image) for a, b in pairs]
    assert 4 <= sum(same) <= 16
    assert all((a.from_source[0, 0] < 0) == (b.from_source[0, 0] < 0) for a, b in pairs)
    assert torch.equal(shown[0].image, cropping(data, training=False, random_crop=False)[0].image)
    assert shown[0].image.shape[1:] == (200, 320)
    sample = next(
        sample for epoch in range(9) if not torch.equal((sample := cropped[epoch, 1]).image, whole[0, 1].image)
    )
    assert sample.skipped is not None and len(sample.target["boxes"]) == 0  # of a file that is no image


def test_augmented_objects_stay_on_their_pixels_until_closed(data: LabelledData) -> None:
    augment = AugmentConfig(vertical_flip=True, zoom=(0.5, 2.0))
    made = DetectionDataset(data, (100,), 160, True, True, 0, False, augment)
    upside_down, widths, counts = set(), set(), set()
    for epoch in range(40):
        sample = made[epoch, 0]
        upside_down.add(bool(sample.from_source[1, 1] < 0))
        height, width = sample.image.shape[1:]
        widths.add(width)
        counts.add(len(sample.target["boxes"]))
        for box, mask, label in zip(*(sample.target[key] for key in ("boxes", "masks", "labels")), strict=True):
            channel = {3: 0, 1: 1, 2: 2}[int(label)]  # rectangles of a colour each
            bright = (sample.image[channel] > 130) & (sample.image.float().sum(0) < 400)
            x1, y1, x2, y2 = box.round().int().tolist()
            assert bright[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all() and mask.shape == (height, width)
            outside = bright.clone()
            outside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
            assert not outside.any()
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert upside_down == {True, False} and len(widths) > 10 and min(counts) < 3 == max(counts)
    closed = DetectionDataset(data, (100,), 160, True, True, 0, False, augment.closed)
    assert {closed[epoch, 0].image.shape[2] for epoch in range(10)} == {160} and augment.closed.vertical_flip


def test_colours_change_and_places_do_not(data: LabelledData) -> None:
    plain, coloured = (
        DetectionDataset(data, (100,), 160, True, True, 0, False, AugmentConfig(color=chance))[3, 0]
        for chance in (0.0, 1.0)
    )
    assert torch.equal(plain.target["boxes"], coloured.target["boxes"])
    assert plain.image.shape == coloured.image.shape and not torch.equal(plain.image, coloured.image)
