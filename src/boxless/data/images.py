"""Files to pixels: every image that Pillow can read becomes (H, W, 3) uint8 RGB, upright, or raises `BadImage`.

Pillow reads every header and decodes all formats but plain JPEG, which simplejpeg decodes to the same pixels in three
quarters of the time (1.5 against 2.0 ms for 640 x 480 on one thread) and, unlike OpenCV and torchvision, refuses where
it is damaged, without a line of libjpeg's on stderr; Pillow has the last word then. One noise is left: libtiff prints a
line for a TIFF whose compressed data is damaged, which Pillow gives no way to silence.
"""

import contextlib
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from boxless.data.retry import retry
from boxless.untrusted import is_there

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)

_ORIENTATION_TAG = 0x0112
_EXTRA_SAMPLES = 338  # of TIFF: 1 and 2 are transparency, 0 anything else
_UPRIGHT = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOOKED_AT = 8  # images of a set
_SWAPS_SIDES = (5, 6, 7, 8)
_END_OF_JPEG = b"\xff\xd9"  # a file that is cut short lacks it
_WARNINGS = threading.Lock()  # warnings.catch_warnings changes the whole process


class BadImage(Exception):
    """An image file that cannot be used: `path`, and `reason` in one short line."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str, str]]:
        return BadImage, (self.path, self.reason)  # crosses worker processes


class StoredImage(str, ABC):
    """The path, as messages show it, of an image that is no file of its own, such as one inside a tar file.

    `boxless.data.shards` has such images; it imports this module, which therefore knows only what they can do.
    """

    @abstractmethod
    def content(self) -> bytes:
        """The bytes of the image's file."""

    @abstractmethod
    def stamp(self) -> str:
        """A text that differs if the bytes differ."""


@dataclass(frozen=True)
class OpenImage:
    """An image of which the header was read.

    Attributes:
        path: path of its file.
        size: (W, H) px, EXIF orientation applied.
        jpeg: its file, where every decoder gives what `decode` does: an upright, whole, grey or YCbCr JPEG of 8 bits.
            Else None.
    """

    path: str | Path
    size: tuple[int, int]
    jpeg: bytes | None

    def pixels(self, min_scale: float) -> np.ndarray:
        """Result of `decode_reduced`, without reading the file again if `jpeg` is complete."""
        pixels = None if self.jpeg is None else _decode_jpeg(self.jpeg, self.size, min_scale)
        return decode_reduced(self.path, min_scale)[0] if pixels is None else pixels


@retry
def open_image(path: str | Path) -> OpenImage:
    """Read an image's header, and its file if it is a plain JPEG; raises `BadImage` like `image_size`."""
    with _open(path) as (image, orientation):
        return OpenImage(path, upright_size(image, orientation), _plain_jpeg(image, orientation))


def decode(path: str | Path) -> np.ndarray:
    """Return the image as (H, W, 3) uint8 RGB, EXIF orientation applied; the first frame of an animation.

    Transparent pixels are laid over white, as the person who draws the boxes sees them; the colour stored below them is
    arbitrary. 16-bit images are scaled by their full range (65535 -> 255). Integers beyond 16 bits and floats beyond
    0..1 have no agreed range: they are stretched from their own minimum to maximum.

    Raises:
        BadImage: the file is missing, unreadable, truncated, no image, or larger than Pillow's bomb limit.
    """
    return decode_reduced(path, 1.0)[0]


@retry
def decode_reduced(path: str | Path, min_scale: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the image, reduced by at most `min_scale` if that is cheaper to decode, and its full size (W, H).

    JPEG is decoded at 1/2, 1/4 or 1/8, the smallest that is >= `min_scale`; all else in full, as are images so small
    that s were not exact. With s = round(W / w), source pixel x lies at exactly x / s: w = ceil(W / s), so the last
    column may reach beyond the source's edge.
    """
    with _open(path) as (image, orientation):
        full = upright_size(image, orientation)
        file = _plain_jpeg(image, orientation)
        if file is not None and (pixels := _decode_jpeg(file, full, min_scale)) is not None:
            return pixels, full
        if image.format in ("JPEG", "MPO"):
            shrink = _shrink(image.size, min_scale, orientation)
            image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
        image.load()
        image = eight_bit(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return _array(image), full


@retry
def image_size(path: str | Path) -> tuple[int, int]:
    """Return (W, H) in px after EXIF orientation, from the header only; raises `BadImage` like `decode`."""
    with _open(path) as (image, orientation):
        return upright_size(image, orientation)


def alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes of an image differ by at most a pixel, as they do for some of VOC's."""
    return max(abs(size[0] - other[0]), abs(size[1] - other[1])) <= 1


def check_size(path: str | Path, size: tuple[int, int], labelled: tuple[int, int]) -> None:
    """Raise `BadImage` if an image of `size`, (W, H) px, is not the one of the size that its labels are for."""
    if not alike(size, labelled):
        raise BadImage(path, f"is {size[0]} x {size[1]} px, its labels are for {labelled[0]} x {labelled[1]}")


def _plain_jpeg(image: Image.Image, orientation: int) -> bytes | None:
    """Return the file of an image that is not loaded yet, if it is a plain JPEG."""
    if orientation != 1 or not isinstance(image, JpegImageFile) or not _is_plain(image):
        return None
    assert image.fp is not None, "no pixel was loaded"
    start = image.fp.tell()
    image.fp.seek(0)
    file = image.fp.read()
    image.fp.seek(start)
    return file if file.endswith(_END_OF_JPEG) else None


def _decode_jpeg(file: bytes, size: tuple[int, int], min_scale: float) -> np.ndarray | None:
    """A plain JPEG of (W, H) px, reduced as in `decode_reduced`; None if it is damaged."""
    shrink = _shrink(size, min_scale, 1)
    width, height = (-(-side // shrink) for side in size)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(file, "RGB", min_height=height, min_width=width, min_factor=shrink)
    except ValueError:
        return None
    return pixels


def _is_plain(image: JpegImageFile) -> bool:
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return False
    components = bytes(component[0] for component in image.layer)
    # Without YCbCr's transform: by Adobe's marker, or by the components' names where there is none (libjpeg's rule).
    return image.bits == 8 and image.info.get("adobe_transform", 1) == 1 and components != b"RGB"


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Return (W, H) of an image once its EXIF orientation (1..8) is applied."""
    return (image.height, image.width) if orientation in _SWAPS_SIDES else image.size


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[tuple[Image.Image, int]]:
    """Open an image and its orientation; whatever goes wrong inside the block becomes `BadImage`."""
    file = BytesIO(path.content()) if isinstance(path, StoredImage) else path
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            orientation = _orientation(image)
        with image:
            yield image, orientation
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on broken files
        raise BadImage(path, _reason(path, error)) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 that is still to be applied; 1 if there is none or it is broken."""
    if image.format == "TIFF":  # Pillow turns TIFF itself
        return 1
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # getexif would decode all pixels to look behind them
    try:
        value: Any = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata must not cost the image
        return 1
    return value if value in _UPRIGHT else 1


def _shrink(size: tuple[int, int], min_scale: float, orientation: int) -> int:
    """Largest of 8, 4, 2, 1 that `min_scale` allows; turned images must divide, or the padding would come first."""
    for s in (8, 4, 2):
        known_again = min(size) >= 2 * s * s  # then round(W / ceil(W / s)) is s
        if 1 / s >= min_scale and known_again and (orientation == 1 or (size[0] % s == 0 and size[1] % s == 0)):
            return s
    return 1


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB of 8 bits, as `decode` describes."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_scale(np.asarray(image)))
    elif isinstance(image, TiffImageFile) and image.mode == "RGBA" and image.tag_v2.get(_EXTRA_SAMPLES) in (None, (0,)):
        image = Image.merge("RGB", image.split()[:3])  # a fourth band that is not said to be transparency: infrared
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scale(values: np.ndarray) -> np.ndarray:
    """Wide grey values (H, W) to 0..255: by 65535 or 1 if all fit, else stretched from minimum to maximum."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    full = 1.0 if values.dtype.kind == "f" else 65535.0
    if low >= 0 and high <= full:
        low, high = 0.0, full
    share = (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return (np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)


def _array(image: Image.Image) -> np.ndarray:
    try:  # Pillow keeps RGB as RGBX; reading that in place saves a tenth of the whole decoding
        pixels = pa.array(image).flatten().to_numpy(zero_copy_only=True).reshape(image.height, image.width, 4)
    except (TypeError, ValueError, pa.ArrowException):  # old Pillow; beyond 16 MiB it lies in several blocks
        return np.array(image)
    rgb: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
    return rgb


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large: more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        size = len(path.content()) if isinstance(path, StoredImage) else os.path.getsize(path)
        return "empty file" if size == 0 else "not an image in a known format"
    if "truncated" in str(error).lower():
        return "truncated"
    return f"cannot be decoded ({' '.join(str(error).split())[:80] or type(error).__name__})"


def dark_report(paths: Sequence[str | Path]) -> str:
    """Say that the 16- or 32-bit images of a set use a small part of their range, so that they look almost black.

    Args:
        paths: paths of all images, of which a few are opened.

    Returns:
        A line with the remedy; empty if any of them is bright enough or of 8 bits.
    """
    highest = 0
    for path in paths[:: max(1, len(paths) // _LOOKED_AT)][:_LOOKED_AT]:
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if is_there(Path(path)) else None
        if values is None or values.dtype.kind not in "ui" or values.dtype.itemsize < 2:
            return ""
        highest = max(highest, int(values.max()))
    if not 0 < highest < 16384:
        return ""
    bits = max(8, highest.bit_length())
    return (
        f"{paths[0]}: like all that were looked at, of 16 or more bits and no value above {highest}: {bits} bits, "
        f"which look almost black as they are divided by 65535; multiply the files' values by {2 ** (16 - bits)}"
    )


def skipped_report(
    skipped: Mapping[str, str] | Iterable[tuple[str, str]],
    what: str = "images could not be read and were left out",
    more: str = "",
) -> str:
    """Count the images that were skipped and list the first 20 of them.

    Args:
        skipped: path -> reason, or such pairs.
        what: has become of them.
        more: place where the others are listed.
    """
    pairs = sorted(dict(skipped).items())
    lines = [f"{len(pairs)} {what}:", *(f"  {path}: {reason}" for path, reason in pairs[:20])]
    if len(pairs) > 20:
        lines.append(f"  and {len(pairs) - 20} more{more}")
    return "\n".join(lines)
