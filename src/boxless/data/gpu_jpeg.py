"""JPEGs that the device decodes and cuts: workers read files and draw windows, and the GPU does what takes long.

A worker hands over a file where every decoder gives Pillow's image, but for rounding and how colours are enlarged. All
other images it decodes itself, and what the device refuses is decoded here by the processor. Windows are those of
`ViewDataset`, from the same random draws, but they are not rounded to an image of reduced size: none is made here.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler

from boxless.data.dataloader import make_loader
from boxless.data.images import BadImage, open_image
from boxless.data.transforms.crops import ViewSpec, Window
from boxless.data.unlabelled import Batch, Sample, ViewDataset, collate
from boxless.errors import UserError, is_out_of_memory

DECODED_AT_ONCE = 1 << 28
"""Bytes of decoded pixels that the device holds at a time beside the views.

One image alone may have more, and while a view is cut its window lies there in float too, at four times its bytes.
"""


@dataclass(frozen=True)
class Encoded:
    """A JPEG whose views are still to be cut.

    Attributes:
        place: epoch and row.
        file: (bytes,) uint8; None in a batch, where all files lie in one tensor.
        size: width and height, px.
        windows: windows of the views that are cut, xyxy in whole source px.
        boxes: (N, 4), source px.
    """

    place: tuple[int, int]
    file: Tensor | None
    size: tuple[int, int]
    windows: tuple[Window, ...]
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class EncodedBatch:
    """A batch as a worker hands it over; few tensors, because each takes a file descriptor on its way.

    Attributes:
        jpegs: in the order of the batch.
        lengths: lengths of their files, bytes.
        files: (bytes,) uint8, one after another.
        others: the images that the worker decoded, in the order of the batch; None if there are none.
        encoded: for each image of the batch, true if it is among `jpegs`.
    """

    jpegs: tuple[Encoded, ...]
    lengths: tuple[int, ...]
    files: Tensor
    others: Batch | None
    encoded: tuple[bool, ...]


class EncodedDataset(Dataset[Sample | Encoded]):
    """A data set's samples, plain JPEGs among them still encoded."""

    def __init__(self, dataset: ViewDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, place: tuple[int, int]) -> Sample | Encoded:
        """Return a row's JPEG with an epoch's windows, or the finished sample if it is not a plain JPEG."""
        _, row = place
        try:
            image = open_image(self.dataset.index.path(row))
        except BadImage:
            return self.dataset[place]
        if image.jpeg is None:
            return self.dataset[place]
        boxes, windows = self.dataset.drawn(row, place, image.size)
        file = torch.frombuffer(bytearray(image.jpeg), dtype=torch.uint8)
        return Encoded(place, file, image.size, tuple(windows), boxes)


def collate_encoded(samples: Sequence[Sample | Encoded], specs: Sequence[ViewSpec]) -> EncodedBatch:
    """Samples as a batch."""
    jpegs = [sample for sample in samples if isinstance(sample, Encoded)]
    others = [sample for sample in samples if isinstance(sample, Sample)]
    files = [jpeg.file for jpeg in jpegs if jpeg.file is not None]
    return EncodedBatch(
        tuple(replace(jpeg, file=None) for jpeg in jpegs),
        tuple(len(file) for file in files),
        torch.cat(files) if files else torch.zeros(0, dtype=torch.uint8),
        collate(others, specs) if others else None,
        tuple(isinstance(sample, Encoded) for sample in samples),
    )


def encoded_batches(
    dataset: ViewDataset, sampler: Sampler[list[tuple[int, int]]], workers: int
) -> DataLoader[EncodedBatch]:
    """Batches in the sampler's order for a `Decoder`."""
    return make_loader(EncodedDataset(dataset), sampler, workers, partial(collate_encoded, specs=dataset.specs))


class Decoder:
    """Decodes and cuts the JPEGs of batches on a device.

    Args:
        dataset: gives the samples of what the device refuses, and the images in place of what nobody can decode.
    """

    def __init__(self, dataset: ViewDataset) -> None:
        self.dataset, self.said = dataset, False

    def __call__(self, batch: EncodedBatch, device: torch.device) -> Batch:
        """The batch that `ViewDataset` gives, with its images on the device."""
        files = torch.split(batch.files, list(batch.lengths)) if batch.lengths else ()
        chunks = _chunks([replace(jpeg, file=file) for jpeg, file in zip(batch.jpegs, files, strict=True)])
        jpegs = iter([sample for chunk in chunks for sample in self._cut(chunk, device)])
        others = iter([] if batch.others is None else _samples(batch.others.to(device)))
        whole = collate([next(jpegs if encoded else others) for encoded in batch.encoded], self.dataset.specs)
        views = tuple(view and view.with_image(view.image.round().to(torch.uint8)) for view in whole.views)
        return replace(whole, views=views)

    def _cut(self, jpegs: Sequence[Encoded], device: torch.device) -> list[Sample]:
        """Cut samples of JPEGs, with views in float; a refused image is found by bisection."""
        try:
            images = decode_on(device, [jpeg.file for jpeg in jpegs if jpeg.file is not None])
            return [self._sample(*each) for each in zip(jpegs, images, strict=True)]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            refused = error
        if len(jpegs) == 1:
            return [self._by_processor(jpegs[0], device, refused)]
        half = len(jpegs) // 2
        return self._cut(jpegs[:half], device) + self._cut(jpegs[half:], device)

    def _sample(self, jpeg: Encoded, image: Tensor) -> Sample:
        views = tuple(_view(image, *each) for each in zip(jpeg.windows, self.dataset.sizes, strict=True))
        return Sample(views, self.dataset.maps(jpeg.windows), torch.from_numpy(jpeg.boxes), ())

    def _by_processor(self, jpeg: Encoded, device: torch.device, refused: RuntimeError) -> Sample:
        sample = self.dataset[jpeg.place]
        if not sample.skipped and not self.said:
            self.said = True
            path, reason = self.dataset.index.path(jpeg.place[1]), _line(refused)
            print(
                f"boxless: decoder=gpu: {path}: refused ({reason}); the processor decodes such images", file=sys.stderr
            )
        return replace(sample, views=tuple(view.to(device).float() for view in sample.views))


def decode_on(device: torch.device, files: list[Tensor]) -> list[Tensor]:
    """JPEG files, (bytes,) uint8, as (3, H, W) uint8 RGB on a device; RuntimeError if one of them is refused."""
    from torchvision.io import ImageReadMode, decode_jpeg  # deprecated since 0.29: a run without it must not need it

    if device.type == "cuda":
        # The decoder writes on a stream of its own, and does not wait until kernels of this one are done with memory
        # that was freed since (pytorch/vision#9606).
        torch.cuda.current_stream(device).synchronize()
    images: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device=device)
    return images


def require_gpu_decoder(device: torch.device) -> None:
    """Raise UserError if a device has no JPEG decoder that works."""
    if device.type != "cuda":
        raise UserError("decoder=gpu: needs a CUDA device, and there is none; set decoder=processor")
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    try:
        decode_on(device, [torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)])
    except (RuntimeError, ImportError) as error:
        raise UserError(
            f"decoder=gpu: torchvision cannot decode here ({_line(error)}); set decoder=processor"
        ) from error


def _view(image: Tensor, window: Window, size: int) -> Tensor:
    """Result of `cut` as float, because anti-aliasing on a GPU does not support uint8."""
    x1, y1, x2, y2 = (int(edge) for edge in window)
    part = image[None, :, y1:y2, x1:x2].float()
    return interpolate(part, (size, size), mode="bilinear", antialias=True)[0]


def _chunks(jpegs: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """The same JPEGs, as many at a time as have room."""
    chunk: list[Encoded] = []
    room = DECODED_AT_ONCE
    for jpeg in jpegs:
        taken = 3 * jpeg.size[0] * jpeg.size[1]
        if chunk and taken > room:
            yield chunk
            chunk, room = [], DECODED_AT_ONCE
        chunk.append(jpeg)
        room -= taken
    if chunk:
        yield chunk


def _samples(batch: Batch) -> list[Sample]:
    """The samples that a batch was made of, their views in float; the first has all that was skipped."""
    cut = [view for view in batch.views if view is not None]
    return [
        Sample(
            tuple(view.image[row].float() for view in cut),
            tuple(view.from_source[row] for view in cut),
            batch.boxes[row][batch.valid[row]],
            batch.skipped if row == 0 else (),
        )
        for row in range(len(batch.boxes))
    ]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
