"""`make bench`: every comparison with another library in one run, as one table of what was found and what was wanted.

    python benchmarks/bench.py            # about an hour on two cores, 25 minutes more on a GPU
    python benchmarks/bench.py --quick    # one repeat and smaller batches, about a quarter of an hour
    python benchmarks/bench.py --table    # the table of what lies in benchmarks/results

Runs byol_step.py, pipeline.py, selective_search.py, methods.py cost (the steps that have a goal) and, where there is a
GPU, gpu.py. Each writes its figures, with machine and versions, to benchmarks/results (or --results); the table goes
beside them, to bench.md. Both sides of a ratio take turns on one core and count the time that it worked, so that other
programs matter less.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS
from gpu import lines as gpu_lines
from methods_table import GOALS as METHOD_GOALS
from methods_table import ratio

Row = tuple[str, str, str, str]
"""What, measured, goal, whether it was reached."""

WITH_GOALS = sorted({name for row, other, _ in METHOD_GOALS for name in (row, other)} - {"byol"})
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "byol_step": (["--threads", "1"], ["--repeats", "1", "--batch", "8"]),
    "pipeline": ([], ["--repeats", "3", "--count", "64"]),
    "selective_search": ([], ["--images", "8"]),
    "methods": (["cost", "--threads", "1", "--methods", ",".join(WITH_GOALS)], ["--repeats", "1", "--batch", "8"]),
}
"""Per benchmark what it is given, and what more with --quick."""


def run(name: str, results: Path, quick: bool) -> str | None:
    """Run one benchmark; what it said last where it failed."""
    own, fewer = RUNS.get(name, ([], []))
    if name == "methods":  # figures of other settings are in the way, and belong to docs/methods.md
        results = results / "bench"
        (results / "methods_cost.json").unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--results", str(results), *own]
    print(f"{name}.py ...", file=sys.stderr, flush=True)
    command += fewer if quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return None
    print(done.stdout, file=sys.stderr)
    return f"exit status {done.returncode}, {(done.stdout.strip().splitlines() or ['no word'])[-1]}"


def against(name: str, ours: float, peer: float, unit: str, goal: float | None) -> Row:
    """A row for two speeds."""
    times = ours / peer
    verdict = "" if goal is None else "reached" if round(times, 2) >= goal else "not reached"
    return name, f"{times:.2f} times ({ours:.3g} against {peer:.3g} {unit})", f"{goal} times" if goal else "", verdict


def byol_rows(content: dict[str, Any]) -> list[Row]:
    """BYOL's step against lightly's."""
    speeds = {side: row["median"] for side, row in content["images_per_second"].items()}
    ours = speeds.pop("boxless")
    step = f"BYOL step, {content['arch']}, {content['size']} px, batch {content['batch']}, {content['precision']}"
    goals = {"lightly": 2.5}
    return [against(f"{step} / {peer}", ours, speed, "images/s", goals.get(peer)) for peer, speed in speeds.items()]


def pipeline_rows(content: dict[str, Any]) -> list[Row]:
    """Files to views against lightly's."""
    speeds = {side: row["median"] for side, row in content["images_per_second"].items()}
    peer = speeds.pop("lightly, in a worker")
    goals = {"boxless, in a worker": 4.0}
    return [
        against(
            f"files to two views, {side.removeprefix('boxless, ')} / lightly", own, peer, "images/s", goals.get(side)
        )
        for side, own in speeds.items()
    ]


def proposal_rows(content: dict[str, Any]) -> list[Row]:
    """Selective search against SoCo's package, at its code's and at its paper's settings."""
    speeds = {name: 1 / row["seconds_per_image"] for name, row in content["results"].items()}
    pairs = [("fast", "official-code", 6.0), ("fast", "paper", 6.0), ("official-code", "official-code", None)]
    return [
        against(
            f"selective search, {a} / SoCo's package, {b}",
            speeds[f"boxless {a}"],
            speeds[f"selectivesearch {b}"],
            "images/s",
            goal,
        )
        for a, b, goal in pairs
    ]


def method_rows(content: dict[str, Any]) -> list[Row]:
    """Steps of methods over other methods' steps."""
    rows = []
    for row, other, most in METHOD_GOALS:
        measured = ratio(content["rows"], row, other)
        if measured is not None:
            verdict = "" if most is None else "reached" if round(measured[0], 2) <= most else "not reached"
            goal = f"at most {most} times" if most else ""
            rows.append((f"step of {row} / {other}", f"{measured[0]:.2f} times", goal, verdict))
    return rows


READERS = {
    "byol_step.json": byol_rows,
    "pipeline.json": pipeline_rows,
    "selective_search.json": proposal_rows,
    "bench/methods_cost.json": method_rows,
}


def page(results: Path, failed: dict[str, str]) -> str:
    """The table of all that lies there."""
    rows: list[Row] = []
    machines = []
    for name, reader in READERS.items():
        if (results / name).is_file():
            content = json.loads((results / name).read_text())
            rows += reader(content)
            machines.append(content.get("environment") or content["settings"])
    for file in sorted(results.glob("gpu-*.json")):
        content = json.loads(file.read_text())
        card = content["environment"]["gpu"] or "CPU"
        rows += [(f"{card}: {what}", *rest) for what, *rest in gpu_lines(content["rows"])]
    table = ["| | measured | goal | |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    notes = [f"{name}.py failed: {reason}" for name, reason in failed.items()]
    return "\n".join(["# Speed", "", *table, "", *notes, *_machine(machines)]) + "\n"


def _machine(environments: list[dict[str, Any]]) -> list[str]:
    """What the comparisons on a processor ran on."""
    if not environments:
        return []
    first, loads = environments[0], [each["load"][0] for each in environments]
    return [
        f"{first['processor']}, {first['cores']} core(s), {'with' if first['bf16'] else 'without'} bf16, "
        f"load {min(loads):.0f} to {max(loads):.0f} with all that ran beside; Python {first['python']}, "
        f"torch {first['torch']}, lightly {first.get('lightly', 'none')}."
    ]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat, smaller batches")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    names = [] if arguments.table else [*RUNS, *(["gpu"] if torch.cuda.is_available() else [])]
    failed = {name: reason for name in names if (reason := run(name, arguments.results, arguments.quick)) is not None}
    text = page(arguments.results, failed)
    (arguments.results / "bench.md").write_text(text)
    print(text)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
