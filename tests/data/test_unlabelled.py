import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxless.data.gpu_jpeg import EncodedDataset
from boxless.data.open import index_images
from boxless.data.sampler import TrainingSampler
from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.data.unlabelled import Batch, ViewDataset, collate, view_batches
from boxless.errors import UserError
from boxless.proposals.baselines import Grid
from boxless.proposals.generate import make_proposals

ROWS = 7
SPECS = (
    ViewSpec(16, Photometric()),
    ViewSpec(16, Photometric(), (0.3, 1.0), min_boxes=2),
    ViewSpec(8, Photometric(), resize_of=1),
)


class Folder:
    """Images that differ in content and number of boxes; some rows may be broken."""

    def __init__(self, folder: Path, broken: Sequence[int] = ()) -> None:
        self.folder = folder
        for row in range(ROWS):
            pixels = np.random.default_rng(row).integers(0, 256, (20 + row, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.path(row))
            if row in broken:
                Path(self.path(row)).write_bytes(b"not an image")

    def __len__(self) -> int:
        return ROWS

    def path(self, row: int) -> str:
        return str(self.folder / f"{row}.png")

    def boxes(self, row: int) -> np.ndarray:
        return np.array([[0, 0, 5 + i, 10 + row] for i in range(row % 4)], np.float32).reshape(-1, 4)

    def size(self, row: int) -> tuple[int, int]:
        return 30, 20 + row


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def batches(folder: Folder, workers: int = 0, start: int = 0, size: int = 3, total: int = 5) -> list[Batch]:
    dataset = ViewDataset(folder, SPECS, folder, seed=3)
    return list(view_batches(dataset, TrainingSampler(ROWS, size, start, total, 3), workers, torch.device("cpu")))


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for a, b in zip(ours.views, theirs.views, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or (torch.equal(a.image, b.image) and torch.equal(a.from_source, b.from_source))
    assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.valid, theirs.valid)
    assert ours.skipped == theirs.skipped


def test_batches_depend_on_neither_workers_nor_first_step(folder: Folder) -> None:
    whole = batches(folder)
    assert len(whole) == 5
    for ours, theirs in zip(batches(folder, workers=2, start=2), whole[2:], strict=True):
        assert_equal(ours, theirs)


def test_epochs_are_permutations_and_differ() -> None:
    order = list(TrainingSampler(ROWS, 3, 0, 6, seed=0))
    epochs = [[row for batch in order[i : i + 2] for _, row in batch] for i in (0, 2, 4)]
    assert [{epoch for epoch, _ in batch} for batch in order] == [{0}, {0}, {1}, {1}, {2}, {2}]
    assert all(len(set(rows)) == 6 for rows in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert list(TrainingSampler(ROWS, 3, 0, 6, seed=1)) != order
    assert list(TrainingSampler(ROWS, 3, 6, 6, seed=0)) == []
    for start in range(6):
        assert list(TrainingSampler(ROWS, 3, start, 6, seed=0)) == order[start:]
        assert len(TrainingSampler(ROWS, 3, start, 6, seed=0)) == 6 - start


def test_processes_share_each_batch() -> None:
    alone = list(TrainingSampler(ROWS, 4, 0, 5, seed=0))
    parts = [list(TrainingSampler(ROWS, 2, 0, 5, seed=0, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == alone


def test_data_set_smaller_than_a_batch_is_gone_through_again() -> None:
    for batch in TrainingSampler(3, 8, 0, 4, seed=0):
        rows = [row for _, row in batch]
        assert len(rows) == 8 and [rows.count(row) for row in sorted(set(rows))] in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_padding_is_marked(folder: Folder) -> None:
    dataset = ViewDataset(folder, SPECS, folder, seed=0)
    batch = collate([dataset[0, row] for row in (4, 1, 3)], SPECS)
    assert batch.boxes.shape == (3, 3, 4) and batch.valid.sum(1).tolist() == [0, 1, 3]
    assert torch.equal(batch.boxes[2], torch.from_numpy(folder.boxes(3)))
    assert not batch.boxes[~batch.valid].any()
    none = collate([dataset[0, 4], dataset[0, 0]], SPECS)
    assert none.boxes.shape == (2, 1, 4) and not none.valid.any()
    without = ViewDataset(folder, SPECS, None, seed=0)
    assert not collate([without[0, 1], without[0, 2]], SPECS).valid.any()


def test_each_epoch_cuts_anew(folder: Folder) -> None:
    dataset = ViewDataset(folder, SPECS, None, seed=0)
    assert torch.equal(dataset[0, 2].views[1], dataset[0, 2].views[1])
    assert not torch.equal(dataset[0, 2].maps[1], dataset[1, 2].maps[1])
    assert torch.equal(dataset[0, 2].maps[0], dataset[1, 2].maps[0])  # the whole image


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_reported(workers: int, tmp_path: Path) -> None:
    folder = Folder(tmp_path, broken=(2, 3, 6))
    dataset = ViewDataset(folder, SPECS, folder, seed=0)
    skipping = dataset[0, 2]
    assert torch.equal(skipping.boxes, torch.from_numpy(folder.boxes(4)))
    assert [(Path(path).name, reason) for path, reason in skipping.skipped] == [
        ("2.png", "not an image in a known format"),
        ("3.png", "not an image in a known format"),
    ]
    assert len(dataset[0, 6].boxes) == 0 and len(dataset[0, 6].skipped) == 1  # goes round to row 0
    seen = {Path(path).name for batch in batches(folder, workers, size=7, total=1) for path, _ in batch.skipped}
    assert seen == {"2.png", "3.png", "6.png"}


def test_nothing_readable_is_an_error_that_names_a_file(tmp_path: Path) -> None:
    dataset = ViewDataset(Folder(tmp_path, broken=range(ROWS)), SPECS, None, seed=0)
    with pytest.raises(UserError, match=r"3\.png: not an image in a known format; so are the next images, 7 in all"):
        dataset[0, 3]


@pytest.mark.parametrize("kind", [ViewDataset, EncodedDataset])
@pytest.mark.parametrize("size", [(40, 30), (300, 400), (400, 302)])
def test_boxes_that_were_made_for_an_image_of_another_size_are_refused(
    size: tuple[int, int], kind: type[ViewDataset | EncodedDataset], tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (400, 300)).save(tmp_path / name)
    index = index_images(tmp_path)
    make_proposals(index, tmp_path / "p.parquet", Grid(), workers=1, quiet=True)
    for replaced, other in ((tmp_path / "a.jpg", (401, 300)), (tmp_path / "b.jpg", size)):
        Image.new("RGB", other).save(replaced)
    again = make_proposals(index, tmp_path / "p.parquet", Grid(), workers=1, quiet=True)
    views = ViewDataset(index, SPECS, pickle.loads(pickle.dumps(again.table.aligned_to(index))), seed=0)
    dataset = views if kind is ViewDataset else EncodedDataset(views)
    assert again.computed == 0 and len(dataset[0, 0].boxes)  # a pixel more or less is let pass
    sizes = f"is {size[0]} x {size[1]} px upright, its proposals are for 400 x 300; delete their table"
    with pytest.raises(UserError, match=rf"^[^\n]*b\.jpg: {sizes}[^\n]*`boxless propose`[^\n]*$"):
        dataset[0, 1]


@pytest.mark.parametrize("orientation", [1, 6])
def test_maps_hold_where_a_large_photo_is_decoded_small(orientation: int, tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(611) + 0.5, np.arange(403) + 0.5)
    stored = Image.fromarray(np.stack([x * 0.4, y * 0.4, 0 * x], -1).round().astype(np.uint8))
    if orientation == 6:  # stored lying on its side
        stored = stored.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = Folder(tmp_path)
    folder.path = lambda row: str(tmp_path / "large.jpg")  # type: ignore[method-assign]
    stored.save(folder.path(0), quality=95, exif=exif)
    specs = (ViewSpec(16, Photometric()), ViewSpec(16, Photometric(), (0.2, 0.9)))
    for epoch in range(10):
        sample = ViewDataset(folder, specs, None, seed=0)[epoch, 0]
        for image, to_view in zip(sample.views, sample.maps, strict=True):
            centres = torch.arange(1, 15) + 0.5  # the outermost pixels average over the edge
            for axis in (0, 1):
                seen = image[axis].float().mean(axis)[1:15] / 0.4
                expected = (centres - to_view[axis, 2]) / to_view[axis, axis]
                assert (seen - expected).abs().max() < 3  # of 0.4 levels a px, JPEG and rounding


def test_a_worker_says_nothing_of_connections_that_end_with_the_run() -> None:
    code = "import sys; from boxless.data.dataloader import init_worker; init_worker(0)\n"
    code += "for error in (ConnectionResetError, EOFError, ValueError): sys.excepthook(error, error(), None)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert said.split() == ["ValueError"]
