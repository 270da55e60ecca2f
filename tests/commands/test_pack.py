"""Pretraining from shards is pretraining from the folder; a pack that is killed goes on to the same bytes."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PRETRAIN, TRUNK
from PIL import Image
from safetensors.torch import load_file

import boxless
from boxless.data.shards.read import open_shards
from boxless.data.shards.write import Unpacked
from boxless.errors import UserError


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def trained(data: str, out: Path, method: str, **changes: object) -> Path:
    recipe = {"soco": "soco-r50-fpn", "byol": "byol-r50"}[method]
    settings = {key: value for key, value in PRETRAIN.items() if method == "soco" or "small_size" not in key}
    few = {**TRUNK, **settings, "method.hidden": 32, "method.output": 16, "epochs": 2, "workers": 0, **changes}
    return boxless.pretrain(data, str(out), recipe, quiet=True, **few).path


def assert_same(a: Path, b: Path) -> None:
    ours, theirs = (load_file(run / "weights.safetensors") for run in (a, b))
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()


@pytest.fixture
def packed(digits: SimpleNamespace, tmp_path: Path) -> Path:
    """Eight scenes with proposals in several shards."""
    big = tmp_path / "scenes"  # uncompressed, for a shard has a million bytes at least
    big.mkdir()
    for file in Path(digits.unlabelled).iterdir():
        Image.open(file).resize((320, 320)).save(big / f"{file.stem}.bmp")
    boxless.propose(str(big), str(tmp_path / "boxes.parquet"), "grid", workers=1, quiet=True)
    boxless.pack(str(big), str(tmp_path / "packed"), str(tmp_path / "boxes.parquet"), 1, quiet=True)
    assert len(list((tmp_path / "packed").glob("*.tar"))) >= 2
    return tmp_path


@pytest.mark.parametrize("method", ["soco", "byol"])
def test_pretraining_from_shards_is_pretraining_from_the_folder(method: str, packed: Path) -> None:
    folder = trained(str(packed / "scenes"), packed / "a", method)
    shards = trained(str(packed / "packed" / "manifest.json"), packed / "b", method)
    assert_same(folder, shards)
    assert len(list(packed.glob("proposals-*.parquet"))) == (method == "soco")  # shards bring their own


def test_broken_off_in_an_epoch_goes_on_through_the_shards(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boxless.methods.byol import BYOL

    few = {"shard_buffer": 1, "checkpoint_every": 6, "batch_size": 2, "epochs": 2, "workers": 2}  # 4 steps an epoch
    whole = trained(str(packed / "packed"), packed / "whole", "byol", **few)
    after_step = BYOL.after_step

    def break_off(self: BYOL, step: int, total: int) -> None:
        if step == 6:
            raise KeyboardInterrupt
        after_step(self, step, total)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BYOL, "after_step", break_off)
        trained(str(packed / "packed"), packed / "broken", "byol", **few)
    assert_same(trained(str(packed / "packed"), packed / "broken", "byol", **few), whole)


def test_killed_pack_goes_on_to_the_same_bytes(shared_data: Path, tmp_path: Path) -> None:
    data, out = str(shared_data / "coco256" / "images"), tmp_path / "killed"
    boxless.pack(data, str(tmp_path / "whole"), shard_mb=2, quiet=True)
    code = (  # a read that hangs in the middle of the third shard, so that the kill always comes in time
        "import sys, time, boxless\nfrom boxless.data.shards.write import Unpacked\n"
        "read, seen = Unpacked.packed, []\n"
        "def slow(self):\n    seen.append(self)\n    if len(seen) == 80:\n"
        "        print('now', flush=True)\n        time.sleep(600)\n    return read(self)\n"
        "Unpacked.packed = slow\nboxless.pack(sys.argv[1], sys.argv[2], shard_mb=2, workers=1, quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, data, str(out)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"now\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    finished = list(out.glob("shard-*.tar"))
    assert finished and not (out / "manifest.json").exists()
    with pytest.raises(
        UserError, match=r"holds shards of other data or settings \(shard_mb was \d, is \d\); delete it"
    ):
        boxless.pack(data, str(out), shard_mb=3, quiet=True)
    finished[0].write_bytes(finished[0].read_bytes()[:-10])  # as a machine without power may leave it
    result = boxless.pack(data, str(out), shard_mb=2, quiet=True)
    assert result.written == result.shards - len(finished) + 1
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_that_finish_while_another_fails_are_kept(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, boxes, whole = str(packed / "scenes"), str(packed / "boxes.parquet"), packed / "packed"
    shards = len(list(whole.glob("*.tar")))
    read, local, all_at_work = Unpacked.packed, threading.local(), threading.Barrier(shards)

    def one_fails(self: Unpacked) -> bytes:
        if not hasattr(local, "at_work"):
            local.at_work = True
            all_at_work.wait(60)
            if self.name == "000000000":
                raise UserError("no room")
            time.sleep(0.2)  # the command has heard of the failure before the others finish
        return read(self)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="no room"):
        patched.setattr(Unpacked, "packed", one_fails)
        boxless.pack(data, str(packed / "again"), boxes, 1, workers=shards, quiet=True)
    assert boxless.pack(data, str(packed / "again"), boxes, 1, workers=shards, quiet=True).written == 1
    assert contents(packed / "again") == contents(whole)


def test_a_shard_that_is_altered_ends_a_run_with_one_line(packed: Path) -> None:
    index = open_shards(packed / "packed")
    for row in range(1, len(index)):  # the first is looked at before there are workers
        sample = index.sample(row)
        with open(sample.shard.place, "r+b") as file:
            file.seek(sample.offset + 1000)
            file.write(b"rot")
    few = {**TRUNK, "method.size": 64, "batch_size": 4, "workers": 2}
    flags = [word for key, value in few.items() for word in (f"--{key}", str(value))]
    command = ["pretrain", "--data", index.place, "--recipe", "byol-r50", "--out", str(packed / "run"), *flags]
    done = subprocess.run(
        [sys.executable, "-m", "boxless", *command, "--quiet"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    *before, last = done.stderr.splitlines()
    assert re.fullmatch(r"boxless: error: \S+/shard-\d+\.tar: altered since it was packed: wrong .*", last)
    # PyTorch may warn before it, e.g. if there are more data workers than cores
    assert not any(line.startswith(("boxless: error", "Traceback")) for line in before), done.stderr


def test_says_what_it_did(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = {"data": str(packed / "scenes"), "proposals": str(packed / "boxes.parquet"), "shard_mb": 1}
    result = boxless.pack(out=str(packed / "packed"), **again)
    out = capsys.readouterr().out
    assert f"8 images in {result.shards} shards" in out and "0 written" in out
    with pytest.raises(UserError, match="is packed already"):
        boxless.pack(str(packed / "packed"), str(packed / "twice"))
    with pytest.raises(UserError, match="shards are given alone"):
        boxless.statistics([str(packed / "packed"), str(packed / "scenes")])
    with pytest.raises(UserError, match="shard_buffer=2: expected shards as data"):
        trained(str(packed / "scenes"), packed / "run", "byol", shard_buffer=2)


@pytest.mark.parametrize(
    ("places", "without"),
    [
        (["set"], "set"),
        (["set/labels.json"], None),
        (["set/labels.json", "more"], "set/labels.json"),
        (["more"], None),
    ],
)
def test_says_whose_labels_are_not_packed(
    places: list[str], without: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("set/a.png", "more/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9}
    document = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "set" / "labels.json").write_text(json.dumps(document))
    data = [str(tmp_path / place) for place in places]
    boxless.pack(data, str(tmp_path / "packed"))
    notes = [line for line in capsys.readouterr().err.splitlines() if "without labels" in line]
    assert [line.split(": ")[1] for line in notes] == ([str(tmp_path / without)] if without else [])
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
    assert (manifest["categories"] is None) == (places != ["set/labels.json"])
    boxless.pack(data, str(tmp_path / "packed"), quiet=True)
    assert not capsys.readouterr().err


def test_other_commands_take_shards(packed: Path) -> None:
    folder, shards = (boxless.statistics(str(packed / name), quiet=True) for name in ("scenes", "packed"))
    assert (folder.mean, folder.std) == (shards.mean, shards.std)
    boxless.propose(str(packed / "packed"), str(packed / "again.parquet"), "grid", workers=1, quiet=True)
    assert (packed / "again.parquet").read_bytes() == (packed / "boxes.parquet").read_bytes()
