"""What a power cut leaves of checkpoints and files: never less than was there before."""

import errno
import importlib
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boxless.errors import UserError
from boxless.files import lock, make_folder, write_text
from boxless.training.checkpoint import load_checkpoint, save_checkpoint
from boxless.training.faults import one_line_faults


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stress"))
    return importlib.import_module("power_cut")


def test_no_power_cut_costs_a_checkpoint_that_was_saved(power_cut: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    tried = 0
    for step in range(1, 6):
        folder.mkdir(exist_ok=True)
        with power_cut.recorded(folder) as disk:
            save_checkpoint(folder, step, {"w": torch.full((50,), float(step))})
        for what, content in disk.ends():
            power_cut.leave(tmp_path / "left", content)
            state = load_checkpoint(tmp_path / "left")
            found = 0 if state is None else state["step"]
            assert found in (step - 1, step), what
            assert state is None or torch.equal(state["w"], torch.full((50,), float(found)))
            tried += 1
        power_cut.leave(
            tmp_path / "left", {name: disk.content_there.get(n, b"") for name, n in disk.names_there.items()}
        )
        state = load_checkpoint(tmp_path / "left")
        assert state is not None and state["step"] == step  # once it has returned, nothing takes it away
    assert tried >= 60


def test_a_file_is_the_old_or_the_new_one_at_any_moment(power_cut: Any, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("old")
    with power_cut.recorded(tmp_path) as disk:
        write_text(tmp_path / "summary.json", "new")
    ends = {content["summary.json"] for _, content in disk.ends()}
    assert ends == {b"old", b"new"}
    with power_cut.recorded(tmp_path) as disk:  # that the look-out sees what is done wrongly
        (tmp_path / "half").write_text("newest")
        (tmp_path / "half").replace(tmp_path / "summary.json")
        disk.moment("after rename")
    assert b"" in {content["summary.json"] for _, content in disk.ends()}


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file.partial").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(
        UserError, match=r"x/file: cannot be written to \(Read-only file system\); what was saved stays"
    ):
        refused(tmp_path / "x" / "file")


@pytest.mark.parametrize("make", [make_folder, lambda path: write_text(path, "new"), lambda path: lock(path, "run")])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.txt/run", "Not a directory|File exists"),
        ("x" * 300, "File name too long"),
        ("locked/run", "Permission denied"),
    ],
)
def test_a_path_that_the_system_refuses_is_named_in_a_line(
    name: str, reason: str, make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    if name.startswith("locked"):  # root, which tests may run as, is let in everywhere
        monkeypatch.setattr(os, "mkdir", denied)
        monkeypatch.setattr(io, "open", denied)
    with pytest.raises(UserError) as caught:
        make(tmp_path / name)
    assert re.fullmatch(
        rf"{tmp_path}/\S+: cannot be used \(({reason})\); fix that, or name another place", str(caught.value)
    )
    monkeypatch.undo()
    assert [path.name for path in tmp_path.rglob("*")] == ["notes.txt"]


def denied(path: Path, *_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def refused(path: Path) -> None:
    from boxless.files import written

    path.parent.mkdir()
    with written(path):
        raise RuntimeError("a library's own words") from OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_worker_that_dies_while_a_checkpoint_is_written_is_named(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> Any:  # PyTorch's handler of SIGCHLD raises wherever this process is
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with (
        pytest.raises(
            UserError, match=r"run: a data worker died \(DataLoader worker \(pid 7\) is killed by signal: Killed"
        ),
        one_line_faults(tmp_path / "run"),
    ):
        try:
            save_checkpoint(tmp_path, 1, {"w": Broken()})
        except RuntimeError as error:
            raise RuntimeError("unexpected pos 704 vs 598") from error
    assert list(tmp_path.iterdir()) == []


def test_a_worker_whose_connection_ends_before_its_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multiprocessing.connection import Client, Listener

    said: list[type] = []
    monkeypatch.setattr(threading, "excepthook", lambda of: said.append(of.exc_type))
    with Listener(str(tmp_path / "worker")) as listener:
        with Client(listener.address) as batches:
            listener.accept().close()
            with (
                pytest.raises(UserError, match=r"run: a data worker died \(.*; what was saved stays"),
                one_line_faults(tmp_path / "run"),
            ):
                batches.recv()
            with one_line_faults(tmp_path / "run"):  # with a GPU a thread asks for the batches
                for target in (batches.recv, [].pop):
                    (thread := threading.Thread(target=target)).start()
                    thread.join()
            assert said == [IndexError]
        for other in (EOFError("of something else"), BrokenPipeError("of standard output")):
            with pytest.raises(type(other)), one_line_faults(tmp_path / "run"):
                raise other
        with pytest.raises(RuntimeError, match="increase"), one_line_faults(tmp_path / "run"):  # as PyTorch words it
            try:
                Client(str(tmp_path / "nobody"))
            except FileNotFoundError:
                raise RuntimeError("Too many open files: increase ulimit -n") from None
