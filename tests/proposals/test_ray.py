"""Proposals on a real Ray cluster of two workers on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from boxless.commands.propose import propose
from boxless.data.index import index_images
from boxless.errors import UserError
from boxless.proposals.parts import Parts
from boxless.proposals.production import make_proposals
from boxless.proposals.selective_search import PRESETS
from boxless.proposals.table import ProposalTable

PATIENCE = {  # with machines that are busy
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@pytest.fixture
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


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_killed_worker_of_a_cluster_loses_nothing(cluster, shared_data, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((shared_data / "coco256" / "images" / "val").iterdir())[:32]:
        (images / file.name).symlink_to(file)
    (images / "broken.jpg").write_bytes(b"no image")
    out, local = tmp_path / "p.parquet", tmp_path / "local.parquet"
    command = ["propose", "--data", str(images), "--out", str(out), "--max-side", "96"]
    process = subprocess.Popen(
        [sys.executable, "-m", "boxless", *command, "--engine", "ray", "--ray-address", cluster],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not (list(Parts(out).folder.glob("*.parquet")) and working()):
        time.sleep(0.005)
    parts = len(list(Parts(out).folder.glob("*.parquet")))
    assert process.poll() is None and not out.exists(), process.communicate()[0]
    os.kill(working()[0], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 0 and "33 images" in printed, printed
    assert 1 <= parts < 8  # of blocks of four images
    make_proposals(index_images(images), local, replace(PRESETS["fast"], max_side=96), workers=1, quiet=True)
    assert out.read_bytes() == local.read_bytes()
    keys = ProposalTable.open(out).keys.to_pylist()
    assert keys == index_images(images).keys().to_pylist() and len(set(keys)) == 33
    assert not Parts(out).folder.exists()


def test_mistakes_about_clusters_are_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "1.jpg").touch()

    def mistake(**arguments: str) -> str:
        with pytest.raises(UserError) as caught:
            propose(str(tmp_path), str(tmp_path / "p.parquet"), **arguments)
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
