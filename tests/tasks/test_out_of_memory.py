"""Runs whose memory is made to run out: PyTorch's errors are raised where a step is too large for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import finetuning, pretraining
from torch import Tensor

from boxless.cli import COMMANDS, main
from boxless.data.detection import DetectionSample
from boxless.data.unlabelled import Batch
from boxless.errors import UserError, is_out_of_memory
from boxless.tasks.finetune import DetectTask
from boxless.tasks.pretrain import PretrainTask
from boxless.training import fit as fit_file
from boxless.training.memory import MicroBatches

SHORT = {"batch_size": 4, "iterations": 4, "checkpoint_every": 3, "evaluate_every": 100}
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
PROCESSOR = RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Images that a step has room for, and the step from which on that is so."""
    limits = {"images": 100, "from": 0}
    detect, learn = DetectTask.loss, PretrainTask.loss

    def detected(self: Any, module: Any, samples: list[DetectionSample], step: int) -> Mapping[str, Tensor]:
        losses = detect(self, module, samples, step)  # norms have seen the images when memory runs out
        if len(samples) > limits["images"] and step >= limits["from"]:
            raise GPU
        return losses

    def learned(self: Any, module: Any, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if len(batch.valid) > limits["images"] and step >= limits["from"]:
            raise PROCESSOR
        return learn(self, module, batch, step)

    monkeypatch.setattr(DetectTask, "loss", detected)
    monkeypatch.setattr(PretrainTask, "loss", learned)
    return limits


def test_auto_takes_the_step_again_in_parts_that_fit_and_a_run_that_goes_on_knows_them(
    scenes: Path, tmp_path: Path, room: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = load_file(finetuning(scenes, tmp_path / "parts", **SHORT, accumulate=2).weights)
    room["images"] = 2
    save, detect = fit_file.save_checkpoint, DetectTask.loss

    def last(folder: Path, step: int, content: dict[str, Any]) -> Path:
        save(folder, step, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_file, "save_checkpoint", last)
        finetuning(scenes, tmp_path / "auto", **SHORT, accumulate="auto")
    sizes = []

    def counted(self: Any, module: Any, samples: list[DetectionSample], step: int) -> Mapping[str, Tensor]:
        sizes.append(len(samples))
        return detect(self, module, samples, step)

    monkeypatch.setattr(DetectTask, "loss", counted)
    made = load_file(finetuning(scenes, tmp_path / "auto", **SHORT, accumulate="auto").weights)
    assert set(sizes) == {2}  # memory did not run out once more
    assert [name for name, value in parted.items() if not torch.equal(value, made[name])] == []


@pytest.mark.parametrize(("asked", "batch", "expected"), [("auto", 8, 4), ("auto", 6, 3), ("auto", 1, 1), (8, 8, 8)])
def test_parts_that_fitted_fit_another_number_of_processes(asked: int | str, batch: int, expected: int) -> None:
    micro_batches = MicroBatches(batch, asked)  # type: ignore[arg-type]
    micro_batches.restore(2)
    assert (micro_batches.parts, micro_batches.size) == (expected, batch // expected)


def test_one_line_says_what_would_fit(scenes: Path, tmp_path: Path, room: dict[str, int]) -> None:
    room["images"] = 2
    with pytest.raises(UserError, match=r"out of memory at step 0; 4 images at a time do not fit; give --accumulate"):
        finetuning(scenes, tmp_path / "whole", **SHORT)
    with pytest.raises(
        UserError, match=r"step 0; 4 images do not fit; 2 fit, tried just now: give --batch-size 2 in a"
    ) as caught:
        pretraining(scenes, tmp_path / "pretrained", "byol")
    assert "\n" not in str(caught.value) and "--precision bf16-mixed" in str(caught.value)
    room["images"] = 0
    with pytest.raises(UserError, match=r"step 0; 1 images at a time do not fit; give smaller images"):
        finetuning(scenes, tmp_path / "none", **SHORT, accumulate="auto")
    with pytest.raises(UserError, match=r"4 images do not fit; give a smaller --batch-size"):
        pretraining(scenes, tmp_path / "nothing", "byol")


@pytest.mark.parametrize("error", [GPU, PROCESSOR, MemoryError()])
def test_elsewhere_it_is_one_line_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipes_() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "recipes", recipes_)
    assert is_out_of_memory(error) and main(["recipes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("boxless: error: out of memory (")
