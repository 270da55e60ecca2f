import os
import pickle
import re
import tempfile
import warnings

import cv2
import numpy as np
import pytest
from bad_images import good_images, picture, refused_images, write_bad_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boxless.data.images import BadImage, dark_report, decode, decode_reduced, image_size, open_image

GOOD, REFUSED = sorted(good_images()), sorted([*refused_images(), "folder.jpg", "dangling.jpg"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return folder, write_bad_images(folder)


@pytest.mark.parametrize("name", GOOD)
def test_odd_images_are_read_upright_and_quietly(written, name, capfd):
    folder, expected = written
    pixels = decode(folder / name)
    wanted = expected[name].pixels
    assert pixels.shape == wanted.shape and pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - wanted).max() <= expected[name].tolerance
    assert image_size(folder / name) == (wanted.shape[1], wanted.shape[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", REFUSED)
def test_broken_images_are_refused_with_a_reason_and_quietly(written, name, capfd):
    folder, expected = written
    with pytest.raises(BadImage) as caught:
        decode(folder / name)
    assert re.search(expected[name].reason, caught.value.reason)
    assert "\n" not in caught.value.reason and len(caught.value.reason) < 120
    assert caught.value.path == str(folder / name)
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_refused_by_its_header(written):
    with pytest.raises(BadImage, match="too large: more than"):
        image_size(written[0] / "bomb.png")


def test_warning_filters_of_the_caller_are_left_alone(written):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = list(warnings.filters)
        decode(written[0] / "broken_exif.jpg")
        assert warnings.filters == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_no_permission(tmp_path):
    path = tmp_path / "locked.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    with pytest.raises(BadImage, match="no permission"):
        decode(path)


def test_bad_image_crosses_processes():
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "empty file")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "empty file", "a.jpg: empty file")


@pytest.mark.parametrize(("min_scale", "shrink"), [(1.0, 1), (0.7, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.01, 8)])
def test_reduced_jpeg_never_falls_below_the_scale(written, min_scale, shrink):
    pixels, size = decode_reduced(written[0] / "big.jpg", min_scale)
    assert size == (1600, 1200)
    assert pixels.shape == (1200 // shrink, 1600 // shrink, 3)
    wanted = cv2.resize(picture(1200, 1600), None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - wanted)[:-1, :-1].max() <= 8


def test_reduced_decoding_of_odd_sizes_keeps_the_frame(tmp_path):
    """w = ceil(W / s), source x at x / s: of a turned image the padding would come first, so it is read in full."""
    Image.fromarray(picture(101, 203)).save(tmp_path / "a.jpg", quality=95)
    pixels, size = decode_reduced(tmp_path / "a.jpg", 0.5)
    assert size == (203, 101) and pixels.shape == (51, 102, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(101, 203)).save(tmp_path / "b.jpg", exif=exif)
    assert decode_reduced(tmp_path / "b.jpg", 0.5)[0].shape == (101, 203, 3)


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from([1.0, 0.5, 0.25, 0.125, 0.01]),
    st.sampled_from(["RGB", "L"]),
    st.fixed_dictionaries(
        {"quality": st.integers(5, 100), "subsampling": st.integers(0, 2), "progressive": st.booleans()}
    ),
)
@settings(max_examples=100, deadline=None)
def test_plain_jpegs_have_pillow_s_pixels_at_a_scale_that_the_width_tells(size, min_scale, mode, options):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.jpg"
        Image.fromarray(picture(*size[::-1])).convert(mode).save(path, "JPEG", **options)
        pixels, full = decode_reduced(path, min_scale)
        source = open_image(path)
        with Image.open(path) as image:
            step = round(size[0] / pixels.shape[1])
            image.draft(None, (size[0] // step, size[1] // step))
            np.testing.assert_array_equal(pixels, np.array(image.convert("RGB")))
    assert pixels.shape == (-(-size[1] // step), -(-size[0] // step), 3) and 1 / step >= min_scale
    assert full == source.size == size
    assert source.jpeg is not None  # and the file is no longer there
    np.testing.assert_array_equal(source.pixels(min_scale), pixels)


def test_other_formats_and_turned_images_reduced(written):
    assert decode_reduced(written[0] / "plain.bmp", 0.1)[0].shape == (48, 64, 3)
    pixels, size = decode_reduced(written[0] / "turned_6.jpg", 0.5)
    assert size == (64, 48) and pixels.shape == (24, 32, 3)


def test_agrees_with_opencv_on_photographs(shared_data):
    for path in sorted((shared_data / "coco256" / "images" / "val").glob("*.jpg"))[:8]:
        assert np.abs(decode(path).astype(int) - cv2.imread(str(path))[..., ::-1]).max() <= 1


@pytest.mark.parametrize(("scale", "told"), [(16, "12 bits"), (1, "8 bits"), (257, "")])
def test_images_in_a_small_part_of_their_range_are_told(scale, told, tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30), np.uint16) * scale
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / f"{number}.png")
    line = dark_report(sorted(tmp_path.glob("*.png")))
    assert told in line and bool(line) == bool(told)
    Image.new("L", (30, 20)).save(tmp_path / "1.png")  # one image of 8 bits among them
    assert not dark_report(sorted(tmp_path.glob("*.png")))


@pytest.mark.parametrize("kind", ["unspecified", "unassalpha"])
def test_a_fourth_band_of_a_tiff_is_transparency_only_where_it_says_so(kind, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 200, (20, 30, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind])
    assert np.array_equal(decode(tmp_path / "a.tif"), pixels[..., :3]) == (kind == "unspecified")
