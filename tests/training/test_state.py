from pathlib import Path

import pytest
import torch

from boxless.training.state import checkpoints, load_checkpoint, save_checkpoint


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(
            folder, step, {"module": {"w": torch.full((1000,), float(step))}, "skipped": {"a.png": "empty"}}
        )


def test_newest_state_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "new", 3, 6, 9, 12)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "step-00000009.pt",
        "step-00000009.sha256",
        "step-00000012.pt",
        "step-00000012.sha256",
    ]
    state = load_checkpoint(tmp_path / "new")
    assert state is not None and state["step"] == 12 and state["skipped"] == {"a.png": "empty"}
    assert torch.equal(state["module"]["w"], torch.full((1000,), 12.0))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.with_suffix(".sha256").unlink()  # killed between the two files


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "without checksum"])
def test_damaged_checkpoint_falls_back_to_the_one_before(how: str, tmp_path: Path) -> None:
    save(tmp_path, 3, 6)
    damage(tmp_path / "step-00000006.pt", how)
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 3
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003.pt"]
    damage(tmp_path / "step-00000003.pt", how)
    assert load_checkpoint(tmp_path) is None


def test_leftover_of_a_kill_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000003.partial").write_bytes(b"half")
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 3)
    assert not (tmp_path / "step-00000003.partial").exists()


def test_no_folder_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nothing") is None
