import random

import torch

from boxless.training.health import Alarm, AlarmDetector, HealthRecord, measure


def told(norms: list[float], losses: list[float] | None = None, scales: list[float] | None = None) -> list[Alarm]:
    alarms = AlarmDetector()
    found = []
    for step, norm in enumerate(norms):
        values = {"loss": losses[step] if losses else 1.0, "gradient_norm": norm}
        found += alarms.see(step, values | ({"loss_scale": scales[step]} if scales else {}))
    return found


def noise(count: int = 300) -> list[float]:
    draw = random.Random(0)
    return [draw.lognormvariate(0, 1) for _ in range(count)]


def test_noise_and_falling_losses_of_either_sign_alarm_nobody() -> None:
    assert told(noise()) == []
    assert told(noise(), [8 * 0.98**step for step in range(300)]) == []
    assert told(noise(), [0.5 - step / 60 for step in range(300)]) == []  # of cosines, from 0.5 to -4.5
    assert told(noise(), scales=[2.0 ** (16 - step // 30) for step in range(300)]) == []


def test_a_large_gradient_is_told_once() -> None:
    norms = noise()
    norms[150] = norms[151] = 500.0
    (alarm,) = told(norms)
    assert (alarm.step, alarm.kind) == (150, "gradient_norm") and alarm.value > 100
    assert alarm.text.startswith("gradient norm 500 at step 150, ")
    norms[10] = 500.0  # nothing is known yet of what is usual
    assert [alarm.step for alarm in told(norms)] == [150]
    norms[200] = float("inf")  # half precision passes over such a step
    assert [alarm.step for alarm in told(norms)] == [150]


def test_an_exploding_curve_is_told_and_makes_a_run_unstable() -> None:
    losses = [2.0] * 100 + [2.0 * 1.1**step for step in range(100)]
    (alarm,) = told(noise(200), losses)
    assert alarm.kind == "loss" and 130 < alarm.step < 150
    kept = HealthRecord(alarms=[alarm])
    embeddings = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    kept.add(0, measure(embeddings, embeddings))
    assert kept.verdict == "unstable" and alarm.text in kept.report() and "the loss exploded" in kept.report()
    jump = told(noise(), [2.0] * 100 + [200.0] + [2.0] * 199)  # one batch is no curve
    assert jump == []


def test_a_lost_scale_is_told() -> None:
    (alarm,) = told(noise(40), scales=[2.0 ** (16 - step) for step in range(40)])
    assert (alarm.step, alarm.kind) == (16, "loss_scale") and "precision=bf16-mixed" in alarm.text
