"""Images: real photographs, cut small and written in every format, then broken."""

import os
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from fuzz_mutations import LENGTHS, Case, broken_bytes
from PIL import Image

from boxless.data.images import BadImage, decode, decode_reduced, image_size

DATA = Path(os.environ.get("BOXLESS_DATA", Path(__file__).parents[3] / "shared" / "data"))
SIDES = (1, 2, 7, 16, 17, 64, 96)
MODES = ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "I;16", "F", "I")


@cache
def _photographs() -> tuple[Image.Image, ...]:
    files = sorted(DATA.glob("*/images/*/*.jpg"))[:20] + sorted(DATA.glob("*/JPEGImages/*"))[:4]
    if not files:  # a picture with edges and shades in place of photographs
        y, x = np.mgrid[0:200, 0:200]
        return (Image.fromarray(np.stack([x, y, (x * y) % 251], -1).astype(np.uint8)),)
    return tuple(Image.open(file).convert("RGB") for file in files)


def _picture(random: Random, modes: tuple[str, ...] = MODES) -> Image.Image:
    whole = random.choice(_photographs())
    width, height = (min(random.choice(SIDES), side) for side in whole.size)
    left, top = random.randint(0, whole.width - width), random.randint(0, whole.height - height)
    image, mode = whole.crop((left, top, left + width, top + height)), random.choice(modes)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert("L").convert(mode) if mode in ("F", "I", "LA") else image.convert(mode)


def _bytes(random: Random, format: str) -> bytes:
    modes = {"JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA"), "GIF": ("P", "L"), "PPM": ("RGB", "L", "1", "I;16")}
    modes |= {"PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"), "BMP": ("RGB", "L", "P", "1")}
    modes |= {"JPEG2000": ("RGB", "L"), "AVIF": ("RGB", "RGBA")}
    image = _picture(random, modes.get(format, MODES))
    options: dict[str, object] = {}
    if format in ("JPEG", "PNG", "WEBP") and random.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = random.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 99, 65535))
        options["exif"] = exif
    if format == "JPEG":
        options |= {"progressive": random.random() < 0.3, "quality": random.choice((30, 90))}
    if format == "TIFF":
        kinds = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4" if image.mode == "1" else "raw")
        options["compression"] = random.choice(kinds)
        if image.mode == "RGB" and random.random() < 0.2:
            options["compression"] = "jpeg"
    if format in ("GIF", "WEBP", "TIFF", "PNG") and random.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _check(path: Path) -> None:
    pixels = decode(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape) > 0
    assert image_size(path) == (pixels.shape[1], pixels.shape[0]), "its header tells another size"
    small, full = decode_reduced(path, 0.3)
    assert full == image_size(path) and small.shape[0] <= pixels.shape[0] and small.shape[2] == 3


def _rechecked(random: Random, png: bytes) -> bytes:
    """A PNG with chunks changed and their checksums right, so that the decoder sees the change."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        match random.randrange(8):
            case 0:
                body = broken_bytes(random, body)
            case 1 if kind == b"IHDR":
                sides = struct.pack(">II", random.choice(LENGTHS) % 2**32, random.choice(LENGTHS) % 2**32)
                body = sides + bytes(random.choice(((8, 2), (16, 0), (1, 3), (16, 6), (9, 9)))) + body[10:]
            case 2 if kind == b"IDAT":
                body = zlib.compress(bytes(random.choice((10, 10**5, 10**7))))
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        if random.random() < 0.05:
            text = random.choice((b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL"))
            body = (
                b"k\0\0" + zlib.compress(bytes(random.choice((9, 10**6, 3 * 10**7)))) if random.random() < 0.7 else b""
            )
            out += struct.pack(">I", len(body)) + text + body + struct.pack(">I", zlib.crc32(text + body))
        at += 12 + size
    return bytes(out)


def _case(format: str, suffix: str) -> Case:
    def run(random: Random, folder: Path) -> None:
        data = _bytes(random, format)
        if format == "PNG" and random.random() < 0.5:
            data = _rechecked(random, data)
        elif random.random() < 0.97:
            other = _bytes(random, random.choice(("JPEG", "PNG", "TIFF"))) if random.random() < 0.1 else b""
            data = broken_bytes(random, data, other)
        path = folder / f"image{suffix}"
        path.write_bytes(data)
        _check(path)

    return run


def _others(random: Random, folder: Path) -> None:
    format, suffix = random.choice(
        (("GIF", ".gif"), ("BMP", ".bmp"), ("PPM", ".ppm"), ("JPEG2000", ".jp2"), ("AVIF", ".avif"))
    )
    _case(format, suffix)(random, folder)


def _sizes(random: Random, folder: Path) -> None:
    """Sound images of odd shapes, which must be read, and some of a few kilobytes that would fill the memory."""
    long, short = random.choice((1, 1000, 20_000, 65_000)), random.choice((1, 2, 9))
    size = random.choice(((long, short), (short, long), (9000, 9000), (9400, 9500), (30_000, 30_000)))
    format = random.choice(("PNG", "GIF", "TIFF", "BMP", "JPEG", "WEBP"))
    mode = random.choice(
        ("1", "L", "I;16", "F") if format == "TIFF" else ("1", "L") if format in ("PNG", "GIF") else ("L",)
    )
    path = folder / f"image.{format.lower()}"
    if size[0] * size[1] > 8e8 or (format in ("WEBP", "JPEG") and size[0] * size[1] > 1e7):
        format, size, mode = "PNG", (1, 1), "L"
    if format == "WEBP" and max(size) > 16383:
        size = (min(size[0], 16383), min(size[1], 16383))
    options = {"compression": "tiff_adobe_deflate"} if format == "TIFF" else {}
    image = Image.new(mode, size)
    image.save(path, format, **options)
    if random.random() < 0.3:  # a header that claims what is not there
        data = path.read_bytes()
        path.write_bytes(data.replace(struct.pack(">I", size[0]), struct.pack(">I", random.choice(LENGTHS) % 2**32), 1))
        _check(path)
        return
    fits = size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or 0)
    try:
        pixels = decode(path)
    except BadImage:
        assert not fits, "a sound image was refused"
        raise
    assert fits and pixels.shape == (size[1], size[0], 3)


KINDS: dict[str, tuple[int, Case]] = {
    "jpeg": (3000, _case("JPEG", ".jpg")),
    "png": (3000, _case("PNG", ".png")),
    "webp": (1500, _case("WEBP", ".webp")),
    "tiff": (2500, _case("TIFF", ".tif")),
    "formats": (1500, _others),
    "sizes": (60, _sizes),
}
