"""Is a run well, and what to do next: rules in words, each from the run's own numbers."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from boxless.report.run_report import RunReport
from boxless.runs.reading import NUMBER, fits
from boxless.training.progress import duration

Level = Literal["good", "note", "warn", "bad"]

FEW_LABELS = 20
"""Labelled images below which the choice of images moves AP more than most methods do."""
FEW_EPOCHS = 20
"""The shortest pretraining in the papers has 100."""
SLOW_DATA = 0.2
"""Share of the time spent on waiting for images from which it is worth a word."""


@dataclass(frozen=True)
class Advice:
    """Something that the numbers say: a headline, its reason, and perhaps a command."""

    level: Level
    title: str
    reason: str
    command: str = ""


def verdict(report: RunReport) -> Advice:
    """Verdict on a run in words."""
    if not report.finished:
        return _unfinished(report)
    return _pretrained(report) if report.pretrains else _finetuned(report)


def advise(report: RunReport) -> list[Advice]:
    """Recommended next steps, the most serious first."""
    rules = [*_of_any(report), *(_of_pretraining(report) if report.pretrains else _of_finetuning(report))]
    return _gravest_first(rules)


def together(reports: Sequence[RunReport]) -> list[Advice]:
    """The advice of several runs, each once, with the runs that it is for."""
    groups: dict[tuple[Level, str], list[tuple[str, Advice]]] = {}
    for report in reports:
        for advice in advise(report):
            groups.setdefault((advice.level, advice.title), []).append((report.name, advice))
    merged = []
    for (level, title), items in groups.items():
        reasons = dict.fromkeys(advice.reason for _, advice in items)
        names = "all runs" if len(items) == len(reports) else _listed([name for name, _ in items])
        reasons_by_run = [f"{name}: {advice.reason}" for name, advice in items[:3]]
        more = [f"And {len(items) - 3} more."] if len(items) > 3 else []
        reason = f"{items[0][1].reason} ({names})" if len(reasons) == 1 else " ".join(reasons_by_run + more)
        commands = {advice.command for _, advice in items}
        merged.append(Advice(level, title, reason, commands.pop() if len(commands) == 1 else ""))
    return _gravest_first(merged)


def _gravest_first(items: list[Advice]) -> list[Advice]:
    return sorted(items, key=lambda advice: ("bad", "warn", "note", "good").index(advice.level))


def still_falling(values: list[float]) -> float | None:
    """The share of its whole fall that a loss fell over its last fifth, where that is more than chance; else None.

    The last tenth is compared with the one before it: means that differ by more than twice their standard error.
    """
    tenth = len(values) // 10
    if tenth < 2:
        return None
    before, last, first = values[-2 * tenth : -tenth], values[-tenth:], values[:tenth]
    fall, whole = _mean(before) - _mean(last), _mean(first) - _mean(last)
    error = math.sqrt((_variance(before) + _variance(last)) / tenth)
    return fall / whole if whole > 0 and fall > 2 * error and fall > 0.01 * whole else None


def _unfinished(report: RunReport) -> Advice:
    done, total = report.steps
    where = f"step {done:,}" + (f" of {total:,}" if total else "")
    status = str(report.progress.get("status", ""))
    if any(word in status for word in ("collaps", "stopped")):
        return Advice("bad", status, f"The run stands at {where}; it has no weights and no scores yet.")
    health = f"; so far: {status}" if status else ""
    return Advice("warn", "not finished", f"The run stands at {where}{health}. It has no weights and no scores yet.")


def _pretrained(report: RunReport) -> Advice:
    word = str(report.summary.get("health", "unknown"))
    health = str(report.summary.get("health_report", ""))
    reason, _, numbers = health.partition(" - ")[2].partition("\n")
    level: Level = "good" if word == "healthy" else "warn" if word in ("unknown", "collapsing") else "bad"
    sentence = reason or "no measure of the embeddings was taken"
    measures = "; ".join(line.strip() for line in numbers.replace("->", "to").splitlines())
    return Advice(level, word, f"{sentence[:1].upper()}{sentence[1:]}. {measures[:1].upper()}{measures[1:]}".strip())


def _finetuned(report: RunReport) -> Advice:
    name, score = report.main_score, report.scores.get(report.main_score)
    loss = [value for value in report.metrics.get("loss", ([], []))[1] if math.isfinite(value)]
    fell = f" The training loss went from {loss[0]:.3g} to {loss[-1]:.3g}." if len(loss) > 1 else ""
    if score is None:
        return Advice("warn", "not measured", f"The labels to measure with have no object of these classes.{fell}")
    if score == 0:
        return Advice("bad", "found nothing", f"{name} is 0: no object was found where it is.{fell}")
    if len(loss) > 1 and loss[-1] > loss[0]:
        return Advice("bad", "diverged", f"{name} is {_percent(score)}.{fell}")
    level: Level = "good" if score >= 0.05 else "warn"
    word = "learned" if score >= 0.05 else "learned little"
    return Advice(level, word, f"{name} is {_percent(score)}.{fell}")


def _of_any(report: RunReport) -> Iterator[Advice]:
    if not report.finished:
        reason = "Its command, given again, goes on at the last checkpoint."
        yield Advice("warn", "Continue the run", reason, command_of(report))
    skipped = report.summary.get("skipped", {})
    if skipped:
        first = ", ".join(list(skipped)[:3])
        yield Advice("warn", f"{len(skipped)} images could not be read", f"Mend or remove them: {first}.")
    wait = report.progress.get("data_wait", 0.0)
    if wait > SLOW_DATA:
        reason = f"{wait:.0%} of the time went into waiting for images: give more workers, or smaller files on disk."
        yield Advice("note", "Training waits for data", reason, "--workers N")


def _of_pretraining(report: RunReport) -> Iterator[Advice]:
    health = str(report.summary.get("health") or report.progress.get("status", ""))
    if "collaps" in health:
        reason = "Images with one embedding teach nothing. Lower the learning rate, or let the target move more slowly."
        yield Advice("bad", f"{health[:1].upper()}{health[1:]}", reason, "--optim.base_lr ... --method.momentum ...")
        return
    if not report.finished:
        return
    epochs: Any = report.settings.get("epochs")
    if fits(epochs, NUMBER):
        yield from _of_length(report, float(epochs))
    reason = "A loss says little of detection: compare with a start from scratch, over seeds, on your labels."
    command = f"boxless compare --data IMAGES --labels TRAIN --val VAL --out OUT --methods none,{report.path}"
    yield Advice("good", "See what it buys", reason, command)


def _of_length(report: RunReport, epochs: float) -> Iterator[Advice]:
    share = still_falling(report.metrics.get("loss", ([], []))[1])
    if share is not None:
        reason = f"{share:.0%} of the loss's fall came in the last fifth of {epochs:.3g} epochs. " + _longer(report)
        yield Advice("note", "More epochs may still help", reason, f"--epochs {epochs * 2:g}")
    elif epochs < FEW_EPOCHS:
        reason = f"Each image was seen {epochs:.3g} times; the papers' shortest runs have 100 epochs."
        yield Advice("note", "This was a short run", reason, f"--epochs {max(100, epochs):g}")


def _longer(report: RunReport) -> str:
    seconds = report.summary.get("seconds")
    return f"This one took {duration(seconds)}." if seconds else ""


def _of_finetuning(report: RunReport) -> Iterator[Advice]:
    weights = str(report.summary.get("weights", ""))
    if weights == "from scratch":
        reason = "No pretrained weights were loaded. Pretrain on images without labels, and compare."
        yield Advice("note", "This started from scratch", reason, "boxless pretrain --data IMAGES --out PRETRAINED")
    count = report.summary.get("labelled_images")
    if count is not None and count < FEW_LABELS:
        reason = f"With {count} labelled images, which ones they are moves AP a lot: look at several seeds."
        yield Advice("warn", "Few labels", reason, "boxless compare --seeds 5 ...")
    if report.finished:
        yield from _of_scores(report)
        yield from _of_classes(report.per_class, report.main_score)


def _of_scores(report: RunReport) -> Iterator[Advice]:
    name, scores = report.main_score, report.scores
    final = scores.get(name)
    looks = report.metrics.get(f"val/{name}", ([], []))[1]
    if final and looks and max(looks) > final * 1.1 and max(looks) - final > 0.01:
        reason = f"{name} was {_percent(max(looks))} on the way and is {_percent(final)} at the end: it over-fits."
        yield Advice("warn", "A shorter run may be better", reason, "--iterations N")
    elif final and looks and final > looks[-1] * 1.05 and final - looks[-1] > 0.01:
        reason = f"{name} rose from {_percent(looks[-1])} at the last look to {_percent(final)} at the end."
        yield Advice("note", "A longer run may still help", reason, "--iterations N")
    loose, tight = scores.get("AP50"), scores.get("AP75")
    if loose and tight is not None and loose > 0.1 and tight < 0.25 * loose:
        reason = f"AP50 is {_percent(loose)} and AP75 {_percent(tight)}: objects are found, their outlines are rough."
        yield Advice("note", "Boxes are not tight yet", f"{reason} A longer run or larger images help most.")
    small, large = scores.get("APs"), scores.get("APl")
    if small is not None and large and large > 0.1 and small < 0.25 * large:
        reason = f"AP is {_percent(small)} on small objects and {_percent(large)} on large ones: try larger images."
        yield Advice("note", "Small objects are missed", reason, "--min_size N --max_size N")
    counts = report.galleries[0].get("counts", {}) if report.galleries else {}
    pairs = report.galleries[0].get("confusions", []) if report.galleries else []
    if counts.get("wrong class", 0) > max(counts.get("missing", 0), counts.get("extra", 0)) and pairs:
        mixed = ", ".join(f"{truth} for {taken} ({n})" for truth, taken, n in pairs[:3])
        yield Advice("note", "Most errors are mixed-up classes", f"Taken for another: {mixed}. Are their labels clear?")


def _of_classes(per_class: dict[str, float | None], name: str) -> Iterator[Advice]:
    known = {label: value for label, value in per_class.items() if value is not None}
    lost = [label for label, value in known.items() if value == 0]
    absent = len(per_class) - len(known)
    if lost and len(lost) < len(known):
        reason = f"{name} is 0 for {_listed(lost)}: look at how many labels each has."
        yield Advice("warn", f"{len(lost)} of {len(known)} classes are not found at all", reason)
    if absent and known:
        reason = "The labels to measure with have no object of them; they are in no mean."
        yield Advice("note", f"{absent} of {len(per_class)} classes were not measured", reason)


def command_of(report: RunReport) -> str:
    """The command line that made the run; "" where it is not known."""
    words = [str(word) for word in report.environment.get("command", [])]
    program = [words[0].rpartition("/")[2]] if words else []
    return shlex.join([*program, *words[1:]])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _variance(values: list[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
