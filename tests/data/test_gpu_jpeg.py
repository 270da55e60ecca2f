import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxless.data import gpu_jpeg as device_decoding
from boxless.data.gpu_jpeg import Decoder, Encoded, EncodedDataset, encoded_batches, require_gpu_decoder
from boxless.data.open import index_images
from boxless.data.sampler import TrainingSampler
from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.data.unlabelled import Batch, ViewDataset, view_batches
from boxless.errors import UserError
from boxless.geometry.view import View

pytestmark = pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")  # torchvision's, of decode_jpeg

NAMES = ("grey", "plain")
CPU = torch.device("cpu")
SPECS = (
    ViewSpec(336, Photometric()),  # more than half of any side, so that nothing is decoded at reduced size
    ViewSpec(160, Photometric(), (0.3, 1.0), min_boxes=2),
    ViewSpec(80, Photometric(), resize_of=1),
)


class Grid:
    """As many boxes for an image as its row says."""

    def boxes(self, row: int) -> np.ndarray:
        return np.array([[9 * i, 7 * i, 9 * i + 60, 7 * i + 50] for i in range(row % 5)], np.float32).reshape(-1, 4)

    def size(self, row: int) -> None:
        return None


@pytest.fixture
def coco(shared_data: Path, tmp_path: Path) -> Path:
    """Twelve photographs of COCO."""
    files = sorted((shared_data / "coco256" / "images").rglob("*.jpg"))[:12]
    for file in files:
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def pair(folder: Path, workers: int = 0, start: int = 0) -> tuple[list[Batch], list[Batch]]:
    """Batches that the workers decode, and those that the device does: twice half of the images each."""
    index = index_images(folder)
    dataset, size = ViewDataset(index, SPECS, Grid(), seed=5), len(index) // 2
    orders = [TrainingSampler(len(index), size, start, 2, 5) for _ in range(2)]
    decoder = Decoder(dataset)
    there = [decoder(batch, CPU) for batch in encoded_batches(dataset, orders[1], workers)]
    return list(view_batches(dataset, orders[0], 0, CPU)), there


def encoded(folder: Path) -> set[str]:
    """The images of a folder that are left to the device."""
    index = index_images(folder)
    dataset = EncodedDataset(ViewDataset(index, SPECS, None, seed=0))
    return {Path(index.path(row)).stem for row in range(len(index)) if isinstance(dataset[0, row], Encoded)}


def differences(ours: Batch, theirs: Batch) -> torch.Tensor:
    """Levels by which pixels of two batches differ, all else being equal."""
    assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.valid, theirs.valid)
    assert set(ours.skipped) == set(theirs.skipped)
    found = []
    for a, b in zip(ours.views, theirs.views, strict=True):
        assert (a is None) == (b is None)
        if isinstance(a, View) and isinstance(b, View):
            assert a.image.dtype == b.image.dtype == torch.uint8
            assert a.image.stride() == b.image.stride() and torch.equal(a.from_source, b.from_source)
            found.append((a.image.float() - b.image.float()).abs().flatten())
    return torch.cat(found)


def test_views_are_those_that_workers_cut(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_decoding, "DECODED_AT_ONCE", 3_000_000)  # three or four of them at a time
    assert len(encoded(coco)) == 12
    by_workers, by_device = pair(coco, workers=2)
    assert len(by_device) == 2
    levels = torch.cat([differences(*each) for each in zip(by_device, by_workers, strict=True)])
    assert levels.max() <= 1 and levels.mean() < 0.2  # 8-bit and float resizing round otherwise
    _, resumed = pair(coco, start=1)
    assert len(resumed) == 1 and not differences(resumed[0], by_device[1]).any()


def smooth(row: int) -> Image.Image:
    y, x = np.mgrid[:90, :120]
    return Image.fromarray(np.stack([x * 2, y * 2, x + y + row], -1).astype(np.uint8))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images that a GPU may decode otherwise than Pillow, those that nobody can decode, and a few plain ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth(0).save(tmp_path / "png.png")
    smooth(1).convert("CMYK").save(tmp_path / "cmyk.jpg")
    smooth(2).save(tmp_path / "turned.jpg", exif=exif)
    smooth(3).save(tmp_path / "rgb.jpg", keep_rgb=True)
    smooth(4).convert("L").save(tmp_path / "grey.jpg")
    smooth(5).save(tmp_path / "progressive.jpg", progressive=True)
    smooth(6).save(tmp_path / "plain.jpg", quality=95)
    whole = (tmp_path / "plain.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    table = whole.index(b"\xff\xc4") + 5
    (tmp_path / "tables.jpg").write_bytes(whole[:table] + b"\xff" * 16 + whole[table + 16 :])  # Huffman's, impossible
    (tmp_path / "words.jpg").write_bytes(b"not an image")
    return tmp_path


def test_other_images_are_decoded_by_workers_and_broken_ones_replaced(
    mixed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert encoded(mixed) == {"grey", "progressive", "plain", "tables"}
    by_workers, by_device = pair(mixed)
    for ours, theirs in zip(by_device, by_workers, strict=True):
        assert differences(ours, theirs).max() <= 1
    skipped = {Path(path).stem: reason for batch in by_device for path, reason in batch.skipped}
    assert skipped.keys() == {"truncated", "tables", "words"} and skipped["truncated"] == "truncated"
    assert "decoder=gpu" not in capfd.readouterr().err  # nothing that the processor could decode was refused


def test_what_the_device_refuses_is_decoded_by_the_processor(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls, original = [], device_decoding.decode_on
    refused = [torch.frombuffer(bytearray((mixed / f"{name}.jpg").read_bytes()), dtype=torch.uint8) for name in NAMES]

    def choosy(device: torch.device, files: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(len(files))
        if any(torch.equal(file, other) for file in files for other in refused):
            raise RuntimeError("Error while decoding JPEG images: Unknown chroma subsampling\nand a trace")
        return original(device, files)

    monkeypatch.setattr(device_decoding, "decode_on", choosy)
    by_workers, by_device = pair(mixed)
    for ours, theirs in zip(by_device, by_workers, strict=True):
        assert differences(ours, theirs).max() <= 1
    assert max(calls) > 1 and min(calls) == 1
    told = capfd.readouterr().err.splitlines()
    told = [line for line in told if "decoder=gpu" in line]
    assert len(told) == 1 and "refused (Error while decoding JPEG images: Unknown chroma subsampling)" in told[0]

    def full(device: torch.device, files: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("Error while decoding JPEG images: CUDA out of memory")

    monkeypatch.setattr(device_decoding, "decode_on", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        pair(mixed)


def test_a_device_without_a_decoder_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^decoder=gpu: needs a CUDA device, and there is none; set decoder=processor$"
    ):
        require_gpu_decoder(CPU)

    def without(device: torch.device, files: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nException raised from")

    monkeypatch.setattr(device_decoding, "decode_on", without)
    with pytest.raises(UserError, match=r"^decoder=gpu: .* \(decode_jpegs_cuda: .* nvJPEG support\); set decoder=.*$"):
        require_gpu_decoder(torch.device("cuda"))
