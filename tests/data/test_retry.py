"""A folder that vanishes is waited for; a file that is missing alone is not."""

import errno
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from boxless.data import retry
from boxless.data.images import BadImage, decode, image_size
from boxless.errors import UserError


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mounted folder with two folders of images, one of which was read from."""
    monkeypatch.setattr(retry, "_known", set())
    for name in ("mnt/a/1.png", "mnt/a/2.png", "mnt/b/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    assert image_size(tmp_path / "mnt/a/1.png") == (8, 6)
    return tmp_path / "mnt"


def unmount(drive: Path) -> None:
    drive.rename(drive.with_name("elsewhere"))
    drive.mkdir()


def mount(drive: Path) -> None:
    drive.rmdir()
    drive.with_name("elsewhere").rename(drive)


@pytest.mark.parametrize("name", ["a/2.png", "b/3.png"])
def test_images_of_a_folder_that_comes_back_are_read(
    name: str, drive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unmount(drive)
    later = threading.Timer(0.5, mount, [drive])
    later.start()
    assert decode(drive / name).shape == (6, 8, 3)
    later.join()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"boxless: {drive}: has vanished; waiting up to 300 s for it (a network drive?)",
        f"boxless: {drive}: is back",
    ]


def test_a_folder_that_stays_away_ends_with_its_name(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PATIENCE", 0.2)
    unmount(drive)
    with pytest.raises(UserError, match=f"{drive}: vanished, and did not return in 0 s; mount it again"):
        decode(str(drive / "a/2.png"))


def test_what_alone_is_missing_or_was_never_there_is_not_waited_for(drive: Path) -> None:
    began = time.monotonic()
    (drive / "a/2.png").unlink()
    (drive / "a/1.png").write_bytes(b"")
    (drive / "c").mkdir()
    for name, reason in {
        "a/2.png": "no such file",
        "a/1.png": "empty file",
        "c/4.png": "no such",
        "d/e/5.png": "no such",
    }.items():
        with pytest.raises(BadImage, match=reason):
            decode(drive / name)
    assert time.monotonic() - began < 2


def test_a_storage_that_fails_for_a_moment_is_asked_again(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0, 0.01))

    @retry.retry
    def read(path: str | Path) -> str:
        if failures:
            raise OSError(failures.pop(), "failed")
        return "content"

    assert read(str(drive / "a/1.png")) == "content"
    failures += [errno.EIO] * 9
    with pytest.raises(OSError, match="failed"):
        read(str(drive / "a/1.png"))
    assert len(failures) == 5
