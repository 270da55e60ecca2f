"""Class maps of every layout, and FCN's training crops."""

import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from boxless.data.annotations.class_maps import CITYSCAPES_CLASSES, VOC_CLASSES, class_map, read_segmentation
from boxless.data.annotations.types import LabelledData
from boxless.data.segmentation import CropConfig, SegmentationDataset, distorted, draw_place, read_pair
from boxless.errors import UserError

TRAIN_IDS = {  # Cityscapes' labels.py, id -> trainId; all others are 255
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12},
    **{26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}


def write_voc(root: Path, maps: dict[str, np.ndarray], splits: dict[str, list[str]], folder: str = "Class") -> None:
    for name in ("JPEGImages", f"Segmentation{folder}", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, values in maps.items():
        Image.new("RGB", values.shape[::-1], "teal").save(root / "JPEGImages" / f"{name}.jpg")
        image = Image.fromarray(values)
        image.putpalette(bytes(range(256)) * 3)
        image.save(root / f"Segmentation{folder}" / f"{name}.png")
    for split, names in splits.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def test_voc_with_the_augmented_set(tmp_path: Path) -> None:
    a, b = np.full((12, 20), 255, np.uint8), np.full((8, 9), 20, np.uint8)
    a[:6] = 0
    a[6:, :5] = 15
    write_voc(tmp_path, {"a": a}, {"train": ["a"], "val": ["a"]})
    write_voc(tmp_path, {"a": np.zeros_like(a), "b": b}, {"trainaug": ["a", "b"]}, folder="ClassAug")
    data = read_segmentation(f"{tmp_path}:trainaug")
    assert data.classes == VOC_CLASSES and len(VOC_CLASSES) == 21 and not data.problems
    assert [(image.image_id, image.width, image.height) for image in data.images] == [("a", 20, 12), ("b", 9, 8)]
    assert np.array_equal(class_map(data.images[0], 21), a)  # VOC's own maps before those of the augmented set
    assert np.array_equal(class_map(data.images[1], 21), b)
    assert len(read_segmentation(tmp_path)) == len(read_segmentation(tmp_path, "val", VOC_CLASSES)) == 1
    assert len(read_segmentation(tmp_path / "ImageSets" / "Segmentation" / "trainaug.txt")) == 2


def test_voc_ids_may_have_spaces_in_them(tmp_path: Path) -> None:
    maps = {name: np.zeros((4, 4), np.uint8) for name in ("img 1", "scan -1", "plain")}
    write_voc(tmp_path, maps, {"train": ["img 1", "scan -1", "plain 1"]})
    data = read_segmentation(tmp_path)
    assert [image.image_id for image in data.images] == list(maps) and not data.problems


def test_voc_that_does_not_fit(tmp_path: Path) -> None:
    write_voc(
        tmp_path, {"a": np.full((4, 4), 21, np.uint8), "b": np.zeros((4, 4), np.uint8)}, {"train": ["a", "b", "c"]}
    )
    Image.new("RGB", (5, 4)).save(tmp_path / "JPEGImages" / "b.jpg")
    data = read_segmentation(tmp_path)
    assert [problem.message.partition(":")[0] for problem in data.problems] == [
        "class map of another size",
        "unusable file",
    ]
    with pytest.raises(UserError, match=r"a.png: has the value 21; expected 0 to 20, or 255"):
        class_map(data.images[0], 21)
    with pytest.raises(UserError, match=r"no such split; ImageSets/Segmentation has: train$"):
        read_segmentation(f"{tmp_path}:trainaug")
    with pytest.raises(UserError, match="are not those that were learned"):
        read_segmentation(tmp_path, "train", ("road", "sky"))
    Image.new("RGB", (4, 4)).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(UserError, match=r"no image with a class map is left of 3; first: .*mode RGB"):
        Image.new("RGB", (4, 4)).save(tmp_path / "SegmentationClass" / "b.png")
        read_segmentation(tmp_path)


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    images, maps = tmp_path / "leftImg8bit/train/ulm", tmp_path / "gtFine/train/ulm"
    for folder in (images, maps):
        folder.mkdir(parents=True)
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for name in ("ulm_000000_000019", "ulm_000001_000019"):
        Image.new("RGB", (32, 8)).save(images / f"{name}_leftImg8bit.png")
        Image.fromarray(values).save(maps / f"{name}_gtFine_labelIds.png")
    ready = np.full((8, 32), 18, np.uint8)
    Image.fromarray(ready).save(maps / "ulm_000001_000019_gtFine_labelTrainIds.png")
    data = read_segmentation(tmp_path)
    wanted = [TRAIN_IDS.get(value, 255) for value in range(256)]
    assert class_map(data.images[0], 19).ravel().tolist() == wanted
    assert np.array_equal(class_map(data.images[1], 19), ready)
    assert data.classes == tuple(CITYSCAPES_CLASSES) and data.images[0].image_id == "ulm_000000_000019"
    assert (data.classes[0], data.classes[13], data.classes[18]) == ("road", "car", "bicycle")


def write_coco(folder: Path) -> Path:
    """A 30 x 20 image: two rectangles, the later over the earlier, a crowd, and an object with a box alone."""
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    crowd = np.zeros((20, 30), np.uint8, order="F")
    crowd[15:, 20:] = 1
    counts = coco_mask.encode(crowd)["counts"].decode()

    def box(x: int, y: int, w: int, h: int) -> dict[str, object]:
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        return {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "image_id": 1, "segmentation": [polygon]}

    entries = [
        {**box(2, 2, 10, 8), "category_id": 7},
        {**box(6, 4, 10, 8), "category_id": 3},
        {**box(20, 15, 10, 5), "category_id": 3, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": counts}},
        {**box(14, 0, 8, 6), "category_id": 7},
    ]
    del entries[3]["segmentation"]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
        "annotations": [{"id": k, **entry} for k, entry in enumerate(entries, 1)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    (folder / "labels.json").write_text(json.dumps(document))
    return folder / "labels.json"


def test_masks_are_painted_in_their_order(tmp_path: Path) -> None:
    data = read_segmentation(write_coco(tmp_path))
    assert data.classes[0] == "background" and set(data.classes[1:]) == {"dog", "cat"}
    dog, cat = data.classes.index("dog"), data.classes.index("cat")
    wanted = np.zeros((20, 30), np.uint8)
    wanted[0:6, 14:22] = 255
    wanted[2:10, 2:12] = dog
    wanted[4:12, 6:16] = cat
    wanted[15:, 20:] = 255
    assert np.array_equal(class_map(data.images[0], 3), wanted)
    only_cats = read_segmentation(tmp_path / "labels.json", "val", ("background", "cat"))
    assert set(np.unique(class_map(only_cats.images[0], 2))) == {0, 1, 255}


def test_labels_without_masks_are_refused(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r"needs masks or class maps, these labels have boxes only; a VOC root"):
        read_segmentation(shared_data / "neu-det")


@pytest.fixture
def stripes(tmp_path: Path) -> LabelledData:
    """Two images whose colours say their classes: vertical and horizontal stripes of 40 px, one corner void."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    maps = {}
    for name, shape in (("a", (160, 240)), ("b", (100, 120))):
        values = (np.indices(shape)[1 if name == "a" else 0] // 40 % 3).astype(np.uint8)
        maps[name] = values
    write_voc(tmp_path, maps, {"train": list(maps)})
    for name, values in maps.items():
        Image.fromarray(colours[values]).save(tmp_path / "JPEGImages" / f"{name}.jpg", quality=95)
    return read_segmentation(tmp_path)


def test_crops_keep_image_and_classes_together(stripes: LabelledData) -> None:
    crop = CropConfig(size=96, distort=False)
    dataset = SegmentationDataset(stripes, (100,), 400, crop, (0.5, 0.25, 0.1), seed=3)
    padded = 0
    for epoch in range(12):
        for row in range(2):
            sample = dataset[epoch, row]
            image, classes = sample.image.permute(1, 2, 0).numpy().astype(int), sample.target["classes"].numpy()
            assert image.shape == (96, 96, 3) and classes.shape == (96, 96) and sample.skipped is None
            void = classes == 255
            assert (image[void] == (128, 64, 26)).all()  # the mean, rounded
            padded += bool(void.any())
            seen = image.argmax(2)
            clear = np.sort(image, 2)[..., 2] - np.sort(image, 2)[..., 1] > 150  # not between two stripes
            assert (clear & ~void).mean() > 0.5 * (~void).mean()
            assert (seen == classes)[clear & ~void].all()
            again = dataset[epoch, row]
            assert bool((again.image == sample.image).all()) and again.target["classes"].equal(sample.target["classes"])
            width, height = sample.source_size
            points = np.argwhere(~void)[::97] + 0.5  # y, x
            move = sample.from_source.numpy()
            x, y = (points[:, 1] - move[0, 2]) / move[0, 0], (points[:, 0] - move[1, 2]) / move[1, 1]
            source = class_map(stripes.images[row], 21)
            assert (x >= 0).all() and (x <= width).all() and (y >= 0).all() and (y <= height).all()
            at_source = source[y.astype(int), x.astype(int)]
            assert (at_source == classes[points[:, 0].astype(int), points[:, 1].astype(int)]).mean() > 0.9
    assert 0 < padded < 24


def test_sizes(stripes: LabelledData) -> None:
    whole = SegmentationDataset(stripes, (80,), 100, None)
    assert whole[0].image.shape == (3, 67, 100)  # the longest side decides
    assert whole[1].image.shape == (3, 80, 96)
    assert whole[0].target["classes"].shape == (160, 240)  # scores are measured at the source
    as_on_disk = SegmentationDataset(stripes, (), 100, None)
    assert as_on_disk[0].image.shape == (3, 160, 240)
    fixed = SegmentationDataset(stripes, (), 1, CropConfig(500, (2.0, 2.0), 1.0, False))
    assert int((fixed[0, 0].target["classes"] != 255).sum()) == 320 * 480


def test_no_class_fills_a_crop_where_that_can_be() -> None:
    classes = np.zeros((60, 400), np.uint8)
    classes[:, 200:] = 1
    classes[:, 300:] = 255
    random = np.random.default_rng(0)
    shares = []
    for share in (1.0, 0.75):
        places = [draw_place(classes, CropConfig(60, max_share=share), random) for _ in range(200)]
        parts = [classes[top : top + 60, left : left + 60] for left, top in places]
        assert all(part.shape == (60, 60) for part in parts)
        good = [0.25 < (part == 0).sum() / max((part != 255).sum(), 1) < 0.75 for part in parts]
        shares.append(np.mean(good))
    assert shares[0] < 0.2 and shares[1] > 0.5  # a place is good with a chance of 1 in 11


def test_colours_change_as_openmmlab_says() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    values = set()
    for seed in range(60):
        image = distorted(grey, np.random.default_rng(seed))
        assert (image == image[0, 0]).all() and len(set(image[0, 0].tolist())) == 1  # grey has no hue and no saturation
        values.add(int(image[0, 0, 0]))
    assert min(values) >= (100 - 32) // 2 - 1 and max(values) <= 1.5 * 132 and len(values) > 20
    red = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    seen = [distorted(red, np.random.default_rng(seed))[0, 0].astype(int) for seed in range(60)]
    assert all(pixel.argmax() == 0 for pixel in seen)  # hue turns by 36 degrees at most
    assert len({(pixel[1] - pixel[2]).item() for pixel in seen}) > 10  # to yellow and to magenta
    assert any(pixel[1] > pixel[2] for pixel in seen) and any(pixel[1] < pixel[2] for pixel in seen)


def test_unusable_pairs_are_void(stripes: LabelledData) -> None:
    stripes.images[0].path.write_bytes(b"no image")
    source, classes, skipped = read_pair(stripes.images[0], 21)
    assert skipped is not None and skipped[0].endswith("a.jpg")
    assert (source == 128).all() and (classes == 255).all() and classes.shape == (160, 240)
    Image.new("RGB", (7, 5)).save(stripes.images[1].path)
    assert read_pair(stripes.images[1], 21)[2] == (
        str(stripes.images[1].path),
        "is 7 x 5 px, its labels are 120 x 100",
    )
