import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from boxless.errors import UserError
from boxless.runs.run import Run
from boxless.training.health import Alarm
from boxless.training.logger import MetricLogger


def journal(folder: Path, start: int = 0, total: int = 10, every: int = 4, quiet: bool = True) -> MetricLogger:
    folder.mkdir(exist_ok=True)
    return MetricLogger(folder, start, total, images_per_step=2, every=every, quiet=quiet)


def write(kept: MetricLogger, steps: range, checkpoint: int = 3) -> None:
    for step in steps:
        if step % 5 == 0:
            kept.write(step, {"health": step / 7})
        kept.record(step, {"loss": torch.tensor(step / 3), "rate": step * 0.1}, now=(step + 1) % checkpoint == 0)


def test_means_are_written_when_due_and_before_checkpoints(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    write(kept, range(10))
    kept.close()
    metrics = Run(tmp_path).metrics
    assert metrics["loss"][0] == [2, 3, 5, 7, 8, 9]
    assert metrics["loss"][1] == pytest.approx([1 / 3, 1, 4.5 / 3, 6.5 / 3, 8 / 3, 3])
    assert metrics["rate"][1] == pytest.approx([0.1, 0.3, 0.45, 0.65, 0.8, 0.9])
    assert metrics["health"] == ([0, 5], [0.0, 5 / 7])  # to the last bit


@pytest.mark.parametrize("killed_after", [6, 7, 8])
def test_resumed_file_equals_an_undisturbed_one(killed_after: int, tmp_path: Path) -> None:
    whole = journal(tmp_path / "whole")
    write(whole, range(10))
    whole.close()
    first = journal(tmp_path / "killed")
    write(first, range(killed_after))
    with (tmp_path / "killed" / "metrics.csv").open("a") as file:
        file.write(f"{killed_after},lo")  # what a kill may leave
    again = journal(tmp_path / "killed", start=6)
    write(again, range(6, 10))
    again.close()
    first.close()
    assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_a_line_that_was_cut_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,name,value\n0,loss,1.0\n1,loss,2.0\n1,lo")
    journal(tmp_path, start=5).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n0,loss,1.0\n1,loss,2.0\n"


def test_start_from_0_forgets_an_earlier_try(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,name,value\n0,loss,1.0\n")
    journal(tmp_path).close()
    assert Run(tmp_path).metrics == {}


def test_alarms_are_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = journal(tmp_path, quiet=False)
    kept.alarm(Alarm(3, "gradient_norm", 250.0, "gradient norm 9 at step 3"))
    kept.close()
    assert capsys.readouterr().err == "train: gradient norm 9 at step 3\n"
    assert Run(tmp_path).metrics == {"alarm/gradient_norm": ([3], [250.0])}


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    write(kept, range(10))
    kept.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    steps, values = Run(tmp_path).metrics["loss"]
    assert [event.step for event in events] == steps
    assert [event.value for event in events] == pytest.approx(values)


def test_line_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = journal(tmp_path, quiet=False)
    kept.status = "healthy"
    write(kept, range(10))
    kept.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train: step 10/10, loss 3.0000, ") and last.endswith(" left, healthy")


def test_newest_report_is_kept_as_json_with_the_verdict(tmp_path: Path) -> None:
    kept = journal(tmp_path)
    write(kept, range(10))
    kept.status = "healthy"
    kept.close()
    report = json.loads((tmp_path / "progress.json").read_text())
    assert (report["step"], report["total"], report["loss"], report["status"]) == (10, 10, 3.0, "healthy")


def test_time_spent_on_waiting_for_batches_is_told(tmp_path: Path) -> None:
    def batches(wait: float) -> Iterator[int]:
        for step in range(4):
            time.sleep(1.0 if step == 0 else wait)  # workers start
            yield step

    for wait, least, most in ((0.2, 0.5, 1.0), (0.0, 0.0, 0.2)):
        kept = journal(tmp_path, total=4, every=100)
        for step in kept.timed(batches(wait)):
            time.sleep(0.05)
            kept.record(step, {"loss": 1.0})
        kept.close()
        report = json.loads((tmp_path / "progress.json").read_text())
        assert least < report["data_wait"] + 1e-9 <= most and report["images_per_second"] < 2 / 0.05


def test_lines_of_json_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOXLESS_PROGRESS", "json")
    kept = journal(tmp_path, quiet=False)
    write(kept, range(10))
    kept.close()
    reports = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert reports[-1] == json.loads((tmp_path / "progress.json").read_text())
    assert reports[-1]["seconds_left"] == 0


def test_bar_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXLESS_PROGRESS", "bar")
    monkeypatch.setenv("COLUMNS", "160")
    kept = journal(tmp_path, quiet=False)
    kept.status = "val [AP] 12 %"  # brackets are markup to rich
    write(kept, range(10))
    kept.close()
    shown = capsys.readouterr().err
    assert "train" in shown and "10/10" in shown and "images/s" in shown and "val [AP] 12 %" in shown


def test_progress_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOXLESS_PROGRESS", "none")
    kept = journal(tmp_path, quiet=False)
    write(kept, range(10))
    kept.close()
    assert not capsys.readouterr().err
    monkeypatch.setenv("BOXLESS_PROGRESS", "pretty")
    with pytest.raises(UserError, match="BOXLESS_PROGRESS=pretty: expected auto, none, bar, plain, json"):
        journal(tmp_path, quiet=False)


def test_other_loggers_get_the_same_scalars(tmp_path: Path) -> None:
    own = CSVLogger(tmp_path / "csv")
    tmp_path.joinpath("run").mkdir()
    kept = MetricLogger(tmp_path / "run", 0, 10, images_per_step=2, every=5, quiet=True, loggers=[own])
    write(kept, range(10), checkpoint=100)
    kept.close()
    rows = csv.DictReader((Path(own.log_dir) / "metrics.csv").read_text().splitlines())
    losses = [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]
    ours = zip(*Run(tmp_path / "run").metrics["loss"], strict=True)
    assert losses == [(step, pytest.approx(value)) for step, value in ours]
