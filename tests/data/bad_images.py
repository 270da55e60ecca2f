"""Writes one image file of every odd or broken kind, with what reading it must give."""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Expected:
    """Either the upright pixels (H, W, 3) uint8 and how far a lossy format may be off, or the reason of refusal."""

    pixels: np.ndarray | None = None
    tolerance: int = 0
    reason: str = ""


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Return a smooth picture (H, W, 3) uint8 with no symmetry, so that a wrong turn or colour order shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([40 + 2 * x, 50 + 3 * y, 20 + x + y], axis=-1).clip(0, 255).astype(np.uint8)


RGB = picture()
GREY = RGB[..., 1]
GREY3 = np.repeat(GREY[..., None], 3, axis=-1)
RAMP16 = (np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16)  # 0 .. 64,487
RAMP16_AS_8 = np.repeat((RAMP16 / 65535 * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def _encoded(array: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _jpeg(array: np.ndarray | Image.Image = RGB, **options: object) -> bytes:
    return _encoded(array, "JPEG", quality=95, subsampling=0, **options)


def _turned(orientation: int) -> bytes:
    """Return a JPEG whose stored pixels are RGB turned so that `orientation` makes them upright again."""
    undo = {2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2)}
    undo |= {6: np.rot90(RGB, 1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _jpeg(np.ascontiguousarray(undo.get(orientation, RGB)), exif=exif)


def _png_16_bit_rgb() -> bytes:
    """Return a 48-bit PNG, which Pillow reads but cannot write."""
    rows = b"".join(b"\0" + (RGB[y].astype(">u2") * 257).tobytes() for y in range(len(RGB)))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _transparent() -> tuple[np.ndarray, np.ndarray]:
    """Return RGBA whose left half is transparent over black, and how it looks over white."""
    rgba = np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])
    rgba[:, :32] = 0
    over_white = RGB.copy()
    over_white[:, :32] = 255
    return rgba, over_white


def _palette_with_transparency() -> tuple[bytes, np.ndarray]:
    index = np.zeros((48, 64), np.uint8)
    index[:, 32:] = 1
    image = Image.fromarray(index).convert("P")
    image.putpalette([9, 8, 7, 200, 100, 50])
    expected = np.full((48, 64, 3), 255, np.uint8)
    expected[:, 32:] = 200, 100, 50
    return _encoded(image, "PNG", transparency=0), expected


def _animation(format: str) -> bytes:
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy()), Image.fromarray(RGB[:, ::-1].copy())]
    options = {"lossless": True} if format == "WEBP" else {}
    return _encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)


def _two_pictures() -> bytes:
    return _encoded(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())])


def _float_tiff(values: np.ndarray) -> bytes:
    return _encoded(Image.fromarray(values.astype(np.float32)), "TIFF")


def _damaged(data: bytes) -> bytes:
    """Return the file with its middle overwritten by markers that no decoder accepts."""
    middle = len(data) // 2
    return data[:middle] + b"\xff\xd8\xff\xc0" * 20 + data[middle + 80 :]


def good_images() -> dict[str, tuple[bytes, Expected]]:
    """Return file name -> content and pixels of everything odd that must be read."""
    big = _jpeg(picture(1200, 1600))
    rgba, over_white = _transparent()
    palette, palette_pixels = _palette_with_transparency()
    unit = np.linspace(0, 1, 48 * 64).reshape(48, 64)
    unit_pixels = np.repeat((unit.astype(np.float32) * 255.0).round().astype(np.uint8)[..., None], 3, axis=-1)
    with_nan = 1000 * unit - 300
    with_nan[0, 0] = np.nan
    with_nan_pixels = unit_pixels.copy()
    bits = GREY > 100
    cmyk = Image.fromarray(RGB).convert("CMYK")
    exact, near = Expected(RGB), Expected(RGB, 6)
    return {
        "plain.jpg": (_jpeg(), near),
        "big.jpg": (big, Expected(picture(1200, 1600), 6)),
        "progressive.jpg": (_jpeg(progressive=True), near),
        "grey.jpg": (_jpeg(GREY), Expected(GREY3, 6)),
        "cmyk_adobe.jpg": (_jpeg(cmyk), near),
        "two_pictures.jpg": (_two_pictures(), Expected(RGB, 20)),
        **{f"turned_{n}.jpg": (_turned(n), near) for n in (2, 3, 4, 5, 6, 7, 8)},
        "turned_99.jpg": (_turned(99), near),
        "broken_exif.jpg": (_jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\x7fjunk"), near),
        "noise_before_marker.jpg": (_jpeg()[:-2] + b"\x00" * 12 + b"\xff\xd9", near),
        "trailing_bytes.jpg": (_jpeg() + b"appended by a phone" * 9, near),
        "png_named.jpg": (_encoded(RGB, "PNG"), exact),
        "jpeg_named.png": (_jpeg(), near),
        "UPPER.PNG": (_encoded(RGB, "PNG"), exact),
        "alpha.png": (_encoded(rgba, "PNG"), Expected(over_white)),
        "grey_alpha.png": (
            _encoded(Image.fromarray(rgba).convert("LA"), "PNG"),
            Expected(_grey_over_white(over_white), 1),
        ),
        "palette.png": (
            _encoded(Image.fromarray(bits.astype(np.uint8) * 255).convert("P"), "PNG"),
            Expected(_bits3(bits)),
        ),
        "palette_transparent.png": (palette, Expected(palette_pixels)),
        "grey_16_bit.png": (_encoded(RAMP16, "PNG"), Expected(RAMP16_AS_8)),
        "colour_16_bit.png": (_png_16_bit_rgb(), exact),
        "one_bit.png": (_encoded(Image.fromarray(bits), "PNG"), Expected(_bits3(bits))),
        "grey_16_bit.tif": (_encoded(RAMP16, "TIFF"), Expected(RAMP16_AS_8)),
        "float_unit.tif": (_float_tiff(unit), Expected(unit_pixels)),
        "float_any_with_nan.tif": (_float_tiff(with_nan), Expected(with_nan_pixels, 1)),
        "deflate.tif": (_encoded(RGB, "TIFF", compression="tiff_adobe_deflate"), exact),
        "turned_6.tif": (_encoded(np.ascontiguousarray(np.rot90(RGB)), "TIFF", tiffinfo={0x0112: 6}), exact),
        "one_bit.tif": (_encoded(Image.fromarray(bits), "TIFF", compression="group4"), Expected(_bits3(bits))),
        "animated.gif": (_animation("GIF"), Expected(RGB, 24)),
        "animated.webp": (_animation("WEBP"), exact),
        "plain.bmp": (_encoded(RGB, "BMP"), exact),
        "plain.ppm": (_encoded(RGB, "PPM"), exact),
        "one_pixel_wide.png": (_encoded(RGB[:, :1].copy(), "PNG"), Expected(RGB[:, :1])),
        "one_pixel_high.jpg": (_jpeg(RGB[:1].copy()), Expected(RGB[:1], 6)),
        "one_pixel.jpg": (_jpeg(RGB[:1, :1].copy()), Expected(RGB[:1, :1], 6)),
        "name with späces & 写真.png": (_encoded(RGB, "PNG"), exact),
    }


def refused_images() -> dict[str, tuple[bytes, Expected]]:
    """Return file name -> content and reason of everything that must be refused."""
    big = _jpeg(picture(1200, 1600))
    flat = _encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), "PNG")
    cut = {f"cut_at_{share}.jpg": (big[: len(big) * share // 100], "truncated") for share in (30, 60, 95)}
    progressive = _jpeg(picture(1200, 1600), progressive=True)
    tiff = _encoded(picture(200, 200), "TIFF", compression="tiff_adobe_deflate")
    reasons = {
        **cut,
        "cut_progressive.jpg": (progressive[: len(progressive) // 2], "truncated"),
        "cut_header.jpg": (_jpeg()[:60], ""),
        "damaged.jpg": (_damaged(big), ""),
        "cut.png": (flat[: len(flat) // 2], "truncated"),
        "damaged.png": (_damaged(flat), "cannot be decoded|broken"),
        "cut.gif": (_encoded(RGB, "GIF")[:-60], "truncated"),
        "cut.webp": (_encoded(RGB, "WEBP")[:60], ""),
        "cut.bmp": (_encoded(RGB, "BMP")[:2000], "truncated"),
        "cut.tif": (tiff[: len(tiff) // 3], ""),
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"<html>404 not found</html>", "not an image"),
        "zeros.jpg": (bytes(5000), "not an image"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "bomb.png": (_bomb_png(), "too large"),
    }
    return {
        name: (data, Expected(reason=reason or "cannot|truncated|not an image"))
        for name, (data, reason) in reasons.items()
    }


def write_bad_images(folder: Path) -> dict[str, Expected]:
    """Write all of them into `folder`, a folder and a dangling link named like images; return name -> expectation."""
    folder.mkdir(parents=True, exist_ok=True)
    files = good_images() | refused_images()
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    others = {"folder.jpg": Expected(reason="a folder"), "dangling.jpg": Expected(reason="no such file")}
    return {name: expected for name, (_, expected) in files.items()} | others


def _bits3(bits: np.ndarray) -> np.ndarray:
    return np.repeat(bits[..., None], 3, axis=-1).astype(np.uint8) * 255


def _grey_over_white(over_white: np.ndarray) -> np.ndarray:
    grey = np.asarray(Image.fromarray(over_white).convert("L"))
    return np.repeat(grey[..., None], 3, axis=-1)
