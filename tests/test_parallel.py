"""Proposals and packing on a real Ray cluster of two workers on this machine."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import boxless
from boxless.data import retry
from boxless.data.open import index_images
from boxless.data.shards.pack import _check_seen, pack_images
from boxless.data.shards.read import open_shards
from boxless.data.shards.write import LOCK, ShardTask, Unpacked, plan_shards, write_shard
from boxless.errors import UserError
from boxless.proposals.baselines import Grid
from boxless.proposals.generate import make_proposals, parts_folder
from boxless.proposals.selective_search import PRESETS
from boxless.proposals.table import ProposalTable

PATIENCE = {  # with machines that are busy
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes with one core each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'boxless[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in PATIENCE.items():
            patched.setenv(name, value)
        try:
            try:
                cluster.add_node(num_cpus=1, include_dashboard=False, **free_ports())
                cluster.add_node(num_cpus=1, **free_ports())
            except Exception as error:  # Ray gives its parts 15 seconds and raises no class of its own
                pytest.skip(f"Ray did not start, perhaps for this machine is too busy: {error}")
            yield cluster.address
        finally:
            cluster.shutdown()


def free_ports() -> dict[str, int]:
    """Ports of a node's agents, which Ray would otherwise wait for."""
    sockets = [socket.socket() for _ in AGENTS]
    for each in sockets:
        each.bind(("", 0))
    ports = {name: each.getsockname()[1] for name, each in zip(AGENTS, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def working() -> list[int]:
    """Processes of Ray that are at a task of ours: Ray writes so into their titles."""
    found = []
    for title in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title.read_bytes().startswith(b"ray::boxless_task"):
                found.append(int(title.parent.name))
        except OSError:
            continue
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def started(cluster: str, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "boxless", *command, "--engine", "ray", "--ray-address", cluster],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")


@needs_proc
def test_a_killed_worker_of_a_cluster_loses_nothing(cluster, shared_data, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((shared_data / "coco256" / "images" / "val").iterdir())[:32]:
        (images / file.name).symlink_to(file)
    (images / "broken.jpg").write_bytes(b"no image")
    out, local = tmp_path / "p.parquet", tmp_path / "local.parquet"
    command = ["propose", "--data", str(images), "--out", str(out), "--max-side", "96"]
    process = started(cluster, command)
    while process.poll() is None and not (list(parts_folder(out).glob("*.parquet")) and working()):
        time.sleep(0.005)
    parts = len(list(parts_folder(out).glob("*.parquet")))
    assert process.poll() is None and not out.exists(), process.communicate()[0]
    os.kill(working()[0], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 0 and "33 images" in printed, printed
    assert 1 <= parts < 8  # of blocks of four images
    make_proposals(index_images(images), local, replace(PRESETS["fast"], max_side=96), workers=1, quiet=True)
    assert out.read_bytes() == local.read_bytes()
    keys = ProposalTable.open(out).keys.to_pylist()
    assert keys == index_images(images).keys().to_pylist() and len(set(keys)) == 33
    assert not parts_folder(out).exists()


def reader_of(pipe: Path, process: subprocess.Popen[str]) -> tuple[int, int]:
    """The worker that reads from a pipe, once there is one, and the pipe's other end, which lets it wait there."""
    end = None
    while process.poll() is None:
        try:
            end = end or os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            for pid in working():
                if any(file.samefile(pipe) for file in Path(f"/proc/{pid}/fd").iterdir() if file.exists()):
                    return pid, end
        except OSError:  # nobody reads
            pass
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


@needs_proc
def test_a_worker_that_is_killed_while_it_packs_loses_nothing(cluster, shared_data, tmp_path):
    images = sorted((shared_data / "coco256" / "images" / "val").iterdir())[:60]
    pipe, listed, out = tmp_path / "pipe.jpg", tmp_path / "images.txt", tmp_path / "packed"
    os.mkfifo(pipe)  # the worker that comes to it waits there, in the middle of its shard
    listed.write_text("\n".join(map(str, [*images, pipe])))
    command = ["pack", "--data", str(listed), "--out", str(out), "--shard-mb", "1"]
    process = started(cluster, command)
    pid, end = reader_of(pipe, process)
    while process.poll() is None and not list(out.glob("shard-*.tar")):
        time.sleep(0.01)
    finished = sorted(out.glob("shard-*.tar"))
    assert process.poll() is None and list(out.glob("*.partial")) and not (out / "manifest.json").exists()
    (tmp_path / "empty").touch()
    (tmp_path / "empty").replace(pipe)  # of the same size for the plan; whoever is next reads it
    os.kill(pid, signal.SIGKILL)
    os.close(end)
    printed, _ = process.communicate()
    assert process.returncode == 0 and "61 images" in printed, printed
    local = boxless.pack(str(listed), str(tmp_path / "local"), shard_mb=1, quiet=True)
    assert 1 <= len(finished) < local.shards and contents(out) == contents(local.manifest.parent)
    assert open_shards(out).keys().to_pylist() == index_images(listed).keys().to_pylist()

    rotten = sorted(out.glob("shard-*.tar"))[1]
    rotten.write_bytes(rotten.read_bytes()[:-10])
    process = started(cluster, command)
    printed, _ = process.communicate()
    assert f"{local.shards - 1} shards were there already, their checksums are right; 1 written" in printed
    assert contents(out) == contents(local.manifest.parent)


def test_what_several_workers_of_a_cluster_raise_is_told_in_one_line(cluster, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom boxless.data.shards.write import ShardTask, write_shard\n"
        "from boxless.parallel import ray_cluster\nfrom boxless.errors import UserError\n"
        "tasks = [ShardTask(number, Path(sys.argv[2], 'nowhere', f'{number}.tar'), [], 'us') for number in range(8)]\n"
        "with ray_cluster(sys.argv[1]) as cluster:\n    try:\n        list(cluster.run(write_shard, tasks))\n"
        "    except UserError as error:\n        print(error)"
    )
    words = [sys.executable, "-c", code, cluster, str(tmp_path)]
    printed = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    assert printed.startswith(
        f"{tmp_path / 'nowhere'}: No such file or directory for a worker on {socket.gethostname()}"
    )
    assert printed.count("\n") == 1, printed


def test_workers_that_see_other_files_are_told_of_in_one_line(tmp_path):
    def mistake(action: Callable[[], object]) -> str:
        with pytest.raises(UserError) as caught:
            action()
        assert "\n" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as Ray brings it
        return str(caught.value)

    image, out = tmp_path / "1.jpg", tmp_path / "out"
    image.write_bytes(b"image")
    (tmp_path / "broken.jpg").mkdir()
    here = [
        Unpacked(row, str(tmp_path / name), str(row), "jpg", {}) for row, name in enumerate(["1.jpg", "broken.jpg"])
    ]
    task = ShardTask(0, out / "shard-000000.tar", here, "process 1 on first\n")
    assert f"{out}: No such file or directory for a worker on {socket.gethostname()}" in mistake(
        lambda: write_shard(task)
    )
    out.mkdir()
    (out / LOCK).write_text("process 1 on second\n")
    assert f"{out}: another folder for a worker on" in mistake(lambda: write_shard(task))
    (out / LOCK).write_text("process 1 on first\n")
    meanwhile = lambda images: (out / LOCK).write_text("process 2 on first\n")  # noqa: E731
    assert "another folder" in mistake(lambda: write_shard(task, meanwhile))
    assert [file.name for file in out.iterdir()] == [LOCK]  # nothing half written stays
    (out / LOCK).write_text("process 1 on first\n")
    part = write_shard(task)
    _check_seen(task, part)  # what is broken is so here too
    image.rename(tmp_path / "elsewhere.jpg")
    part = write_shard(task)
    image.write_bytes(b"image")
    assert f"{image}: No such file or directory for a worker on another" in mistake(lambda: _check_seen(task, part))


@dataclass(frozen=True)
class Elsewhere:
    """An engine that does not see an image."""

    image: Path
    slots: int = 1

    def run(self, function, tasks):
        hidden = self.image.rename(self.image.with_suffix(".hidden"))
        done = [(task, function(task)) for task in tasks]
        hidden.rename(self.image)
        yield from done


def test_shards_of_workers_that_see_other_files_are_not_kept(tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(bytes(300_000))
    plan = plan_shards(index_images(images), lambda row: {}, 500_000)
    assert len(plan.ends) == 3
    with pytest.raises(UserError, match="for a worker on another machine"):
        pack_images(plan, {}, out, 1, engine=Elsewhere(images / "1.jpg"))
    packing = pack_images(plan, {}, out, 1)
    assert (packing.written, packing.images, packing.left_out) == (1, 3, [])


@dataclass(frozen=True)
class Fresh:
    """An engine whose workers have read nothing before; a folder vanishes after its first task."""

    folder: Path
    slots: int = 1

    def run(self, function, tasks):
        for number, task in enumerate(tasks):
            with patch.object(retry, "_known", set()):
                result = function(task)
            yield task, result
            if not number:
                self.folder.rename(self.folder.with_suffix(".away"))


@pytest.mark.parametrize("command", ["pack", "propose"])
def test_a_folder_that_vanishes_on_all_machines_costs_no_image(command, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.2)
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(9):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)).save(
            images / f"{number}.png"
        )
    index = index_images(images)

    def make(engine):
        if command == "pack":
            return pack_images(plan_shards(index, lambda row: {}, 40_000), {}, out, 1, engine=engine).images
        return len(make_proposals(index, out, Grid(), quiet=True, engine=engine).table)

    with pytest.raises(UserError, match="images: vanished, and did not return"):
        make(Fresh(images))
    images.with_suffix(".away").rename(images)
    assert make(None) == 9


@pytest.mark.parametrize("command", [boxless.propose, boxless.pack])
def test_mistakes_about_clusters_are_told_in_one_line(command, tmp_path, monkeypatch):
    (tmp_path / "1.jpg").touch()

    def mistake(**arguments: str) -> str:
        with pytest.raises(UserError) as caught:
            command(str(tmp_path), str(tmp_path / "p.parquet"), **arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "engine=slurm: expected local or ray" in mistake(engine="slurm")
    assert "ray_address=a:1" in mistake(ray_address="a:1")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ray", None)
        assert "pip install 'boxless[ray]'" in mistake(engine="ray")
    pytest.importorskip("ray", reason="needs Ray: pip install 'boxless[ray]'")
    for address in ("127.0.0.1:1", "127.0.0.1", "ray://127.0.0.1:1", "127.0.0.1:port"):
        assert f"ray_address={address}: no Ray cluster there" in mistake(engine="ray", ray_address=address)
