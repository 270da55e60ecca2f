import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.proposals import generate as production
from boxless.proposals.baselines import Grid
from boxless.proposals.generate import make_proposals, parts_folder, settings_of
from boxless.proposals.selective_search import PRESETS
from boxless.proposals.table import ProposalTable

SMALL = replace(PRESETS["fast"], max_side=96)


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    """24 photographs and one broken file."""
    folder = tmp_path_factory.mktemp("images")
    for file in sorted((shared_data / "coco256" / "images" / "val").iterdir())[:24]:
        (folder / file.name).symlink_to(file)
    (folder / "000000002000.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "p.parquet"
    make_proposals(index_images(folder), out, SMALL, workers=1, quiet=True)
    return out


def test_rows_follow_the_index_and_bad_images_are_listed(folder, undisturbed):
    index = index_images(folder)
    table = ProposalTable.open(undisturbed)
    assert table.keys.to_pylist() == index.keys().to_pylist()
    assert table.skipped_images() == [("000000002000.jpg", "not an image in a known format")]
    assert table.settings == settings_of(SMALL)
    with Image.open(index.path(3)) as image:
        assert tuple(table.sizes[3]) == image.size
    assert not parts_folder(undisturbed).exists()


def test_workers_do_not_change_a_byte(folder, undisturbed, tmp_path):
    made = make_proposals(index_images(folder), tmp_path / "p.parquet", SMALL, workers=2, quiet=True)
    assert made.computed == 25
    assert made.path.read_bytes() == undisturbed.read_bytes()


def descendants(parent):
    """Process ids below `parent`, from /proc."""
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name_and_rest = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name_and_rest[0] != "Z":
            children.setdefault(int(name_and_rest[1]), []).append(int(status.parent.name))
    found, pending = [], [parent]
    while pending:
        found += children.get(pending[-1], [])
        pending = [*pending[:-1], *children.get(pending[-1], [])]
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_run_goes_on_where_it_was(folder, undisturbed, tmp_path):
    out = tmp_path / "p.parquet"
    code = (
        f"from boxless.commands.propose import propose; propose({str(folder)!r}, {str(out)!r}, max_side=96, workers=2)"
    )
    parts_at_kill = random.randint(1, 6)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while len(list(parts_folder(out).glob("*.parquet"))) < parts_at_kill and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = list(parts_folder(out).glob("*.parquet"))
    assert process.returncode == -signal.SIGKILL and not out.exists(), f"too late, with {len(finished)} parts"
    assert len(workers) >= 2
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive the killed process"
        time.sleep(0.05)

    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "continuing with" in again.stderr
    assert out.read_bytes() == undisturbed.read_bytes()
    assert not parts_folder(out).exists()


def test_broken_parts_are_discarded_and_other_ones_refused_with_a_word(folder, undisturbed, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    parts = parts_folder(out)
    parts.mkdir()
    good = ProposalTable.open(undisturbed).take(np.arange(20))
    good.write(parts / "good.parquet")
    replace(good, settings={**good.settings, "max_side": 7}).write(parts / "other.parquet")
    with pytest.raises(UserError, match=r"unfinished run with other settings \(max_side was 7, is 96\); restore these"):
        make_proposals(index_images(folder), out, SMALL, workers=1)
    (parts / "other.parquet").unlink()
    (parts / "broken.parquet").write_bytes((parts / "good.parquet").read_bytes()[:500])
    (parts / ".proposals-left").touch()
    made = make_proposals(index_images(folder), out, SMALL, workers=1)
    said = capsys.readouterr().err
    assert "broken.parquet: it is broken" in said
    assert made.computed == 5
    assert out.read_bytes() == undisturbed.read_bytes()
    assert os.listdir(tmp_path) == ["p.parquet"]


def test_only_new_images_are_computed(folder, undisturbed, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    index = index_images(folder)
    make_proposals(index.subset(range(0, 25, 2)), out, SMALL, workers=1, quiet=True)
    assert make_proposals(index, out, SMALL, workers=1, quiet=True).computed == 12
    assert out.read_bytes() == undisturbed.read_bytes()
    assert make_proposals(index, out, SMALL).computed == 0
    assert "nothing to do" in capsys.readouterr().err
    assert make_proposals(index.subset([4, 5]), out, SMALL, quiet=True).computed == 0
    assert out.read_bytes() == undisturbed.read_bytes()


def test_a_table_made_otherwise_is_not_overwritten(folder, undisturbed, tmp_path):
    index = index_images(folder)
    with pytest.raises(UserError, match=r"other settings \(max_side was 96, is"):
        make_proposals(index, undisturbed, PRESETS["fast"])
    Image.new("RGB", (40, 40)).save(tmp_path / "other.png")
    with pytest.raises(UserError, match="other images"):
        make_proposals(index_images(tmp_path), undisturbed, SMALL)
    (tmp_path / "thesis.parquet").write_text("years of work")
    with pytest.raises(UserError, match="broken, or no table"):
        make_proposals(index, tmp_path / "thesis.parquet", SMALL)
    assert (tmp_path / "thesis.parquet").read_text() == "years of work"


def test_a_folder_that_is_not_there_is_made(folder, tmp_path):
    out = tmp_path / "new" / "p.parquet"
    made = make_proposals(index_images(folder).subset([0]), out, Grid(), workers=1, quiet=True)
    assert len(made.table) == 1 and out.exists()


@dataclass(frozen=True)
class DiesOnce:
    """Kills its process at one image, the first time."""

    memory: str

    def propose(self, image, key):
        mark = Path(self.memory)
        if key == "d.png" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Grid().propose(image, key)


def test_a_dead_worker_is_reported_and_the_rest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(production, "LARGEST_BLOCK", 1)
    images = tmp_path / "images"
    images.mkdir()
    for name in "abcd":
        Image.new("RGB", (40, 30)).save(images / f"{name}.png")
    index = index_images(images)
    method, out = DiesOnce(str(tmp_path / "mark")), tmp_path / "p.parquet"
    with pytest.raises(UserError, match=r"worker process died.*kept in .*p.parquet.parts: repeat the command"):
        make_proposals(index, out, method, workers=2, quiet=True)
    kept = len(list(parts_folder(out).glob("*.parquet")))
    assert make_proposals(index, out, method, workers=1, quiet=True).computed == 4 - kept < 4
    assert len(ProposalTable.open(out)) == 4


class Elsewhere:
    """An engine of one worker, on a machine that has not all the files."""

    slots = 1

    def run(self, function, tasks):
        for task in tasks:
            yield task, function([(key, path.replace("b.png", "c.png")) for key, path in task])


def test_files_that_only_other_machines_lack_are_an_error(tmp_path):
    for name in ("a.png", "b.png", "d.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("a.png\nb.png\ngone.png\n")
    out = tmp_path / "p.parquet"
    with pytest.raises(UserError, match=r"/b.png: not there for a worker on another machine"):
        make_proposals(index_images(tmp_path / "list.txt"), out, Grid(), quiet=True, engine=Elsewhere())
    (tmp_path / "c.png").symlink_to("d.png")
    made = make_proposals(index_images(tmp_path / "list.txt"), out, Grid(), quiet=True, engine=Elsewhere())
    assert made.table.skipped_images() == [("gone.png", "no such file")] and made.computed == 2  # a.png was kept


def test_plain_progress_lines_give_rate_and_time_left(folder, tmp_path, capsys):
    make_proposals(index_images(folder).subset([0, 1]), tmp_path / "p.parquet", Grid(), workers=1)
    assert "proposals: 2 of 2 images" in capsys.readouterr().err
    make_proposals(index_images(folder).subset([0, 1]), tmp_path / "q.parquet", Grid(), workers=1, quiet=True)
    assert capsys.readouterr().err == ""
