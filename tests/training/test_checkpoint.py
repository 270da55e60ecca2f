import hashlib
import re
from pathlib import Path

import pytest
import torch

from boxless.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(
            folder, step, {"module": {"w": torch.full((1000,), float(step))}, "skipped": {"a.png": "empty"}}
        )


def test_newest_state_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "new", 3, 6, 9, 12)
    kept = sorted((tmp_path / "new").iterdir())
    assert [re.sub("[0-9a-f]{16}", "<sum>", path.name) for path in kept] == [
        "step-00000009-<sum>.pt",
        "step-00000012-<sum>.pt",
    ]
    for path in kept:
        assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem[-16:])
    state = load_checkpoint(tmp_path / "new")
    assert state is not None and state["step"] == 12 and state["skipped"] == {"a.png": "empty"}
    assert torch.equal(state["module"]["w"], torch.full((1000,), 12.0))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_falls_back_to_the_one_before(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3, 6)
    damage(checkpoints(tmp_path)[-1], how)
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 3
    assert [path.name[:13] for path in checkpoints(tmp_path)] == ["step-00000003"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "damaged (its checksum does not hold)" in said
    assert said.endswith("continuing from the one before, of step 3\n")
    damage(checkpoints(tmp_path)[-1], how)
    assert load_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.endswith("continuing from the start, because there is none before\n")


def test_checkpoints_with_their_proof_beside_them_are_read(tmp_path: Path) -> None:
    for step in (3, 6):  # as they were written before checksums went into names
        path = tmp_path / f"step-{step:08d}.pt"
        torch.save({"step": step}, path)
        path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    assert load_checkpoint(tmp_path) == {"step": 6}
    (tmp_path / "step-00000006.sha256").unlink()
    assert load_checkpoint(tmp_path) == {"step": 3}
    save(tmp_path, 9, 12)
    assert len(list(tmp_path.iterdir())) == 2  # the proofs of old ones go with them


def test_leftover_of_a_kill_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step.partial").write_bytes(b"half")
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 3)
    assert not (tmp_path / "step.partial").exists()


def test_no_folder_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nothing") is None
