"""Training on a GPU: images per second against goals and peers, the roofline, and where the time goes.

    pip install lightly
    python benchmarks/gpu.py                          # every part, about 20 minutes
    python benchmarks/gpu.py roofline byol files      # some of them
    python benchmarks/gpu.py --profile                # time by kernel group, eager and compiled

Every figure is taken in a process of its own: steps to warm up (and to compile), then steps that count, with one wait
for the device at the end. Parts: `roofline` (rates of the card, FLOPs and bytes of a BYOL step), `byol` (synthetic
views: ours eager and compiled, lightly's documented loop as written and in bf16-mixed), `files` (the same from JPEG
files, ours with either decoder and lightly's, and the input without training), `soco`, `detector` (Faster R-CNN at
800 px against torchvision's reference loop), `waits` (where the host waits for the device within a step, and how long a
measure of health takes), `decoder` (one core's JPEG decoding with and without crops, and the GPU's decoder).

Images are the given folder, else coco256 in $BOXLESS_DATA, else embedded photographs of 640 x 640 px. Without lightly,
a plain PyTorch loop of the same network stands in for it, and its row says so. Each figure is written as soon as it is
there, to gpu-<device>.json and .md in benchmarks/results (or --results), and what is there is not measured again
without --again. --tiny is for trying the script out: small networks, one step, on any machine.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, cores, facts, installed, write
from gpu_parts import PARTS, TINY, Figures, Sizes
from pipeline import photographs

GOALS = {
    "byol, compiled": ("images/s", 3000),
    "byol, compiled / lightly as written": ("times", 5),
    "byol, compiled / lightly, bf16-mixed": ("times", 1.5),
    "byol from files": ("images/s", 2500),
    "soco, compiled": ("images/s", 1500),
    "faster_rcnn / torchvision": ("times", 1.5),
}
RATIOS = {
    "byol, compiled / lightly as written": ("byol, compiled", "lightly as written"),
    "byol, compiled / lightly, bf16-mixed": ("byol, compiled", "lightly, bf16-mixed"),
    "byol, compiled / byol, eager": ("byol, compiled", "byol, eager"),
    "byol from files / lightly from files": ("byol from files", "lightly from files"),
    "faster_rcnn / torchvision": ("faster_rcnn", "torchvision's reference loop"),
    "faster_rcnn / torchvision, fp16": ("faster_rcnn", "torchvision's reference loop, fp16"),
}


STANDS_IN = "plain PyTorch in its place"
"""What the rows say of a loop that is not lightly's."""


def in_process(part: Callable[[Sizes, str], Figures], sizes: Sizes, images: str) -> dict[str, Any]:
    """A part's figures by a process of its own, or what went wrong."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(part, sizes, images, there))  # no daemon: it has data workers
    process.start()
    there.close()
    try:
        result: dict[str, Any] = here.recv()
    except EOFError:
        result = {"failed": "the process ended without a result"}
    process.join()
    return result


def _send(part: Callable[[Sizes, str], Figures], sizes: Sizes, images: str, pipe: Connection) -> None:
    torch.manual_seed(0)
    try:
        pipe.send(part(sizes, images))
    except Exception as error:  # one part's failure is a result
        traceback.print_exc()
        pipe.send({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
    pipe.close()
    os._exit(0)  # a loader that was left in the middle of its files would wait for its workers


def lines(rows: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What, measured, goal and verdict of every speed and ratio."""
    speeds = {name: row["images/s"] for name, row in rows.items() if "images/s" in row}
    ratios = {name: speeds[a] / speeds[b] for name, (a, b) in RATIOS.items() if a in speeds and b in speeds}
    found = []
    for name, value in {**speeds, **ratios}.items():
        unit, goal = GOALS.get(name, ("images/s" if name in speeds else "times", None))
        verdict = "" if goal is None else "reached" if value >= goal else "not reached"
        measured = f"{value:,.0f}" if value > 100 else f"{value:.2f}"
        stands_in = any(STANDS_IN in rows[part] for part in (RATIOS[name] if name in ratios else (name,)))
        note = f" ({STANDS_IN})" if stands_in else ""
        found.append((name + note, f"{measured} {unit}", f"{goal:,} {unit}" if goal else "", verdict))
    return found


def page(rows: dict[str, Any], environment: dict[str, Any]) -> str:
    """All figures, in Markdown."""
    peer = environment["lightly"] or "not installed: a plain PyTorch loop stands in its place"
    text = [
        f"# {environment['gpu'] or environment['processor']}",
        "",
        f"torch {environment['torch']}, torchvision {environment['torchvision']}, {environment['cores']} cores, "
        f"lightly {peer}.",
        "",
        "| | measured | goal | |",
        "|---|---|---|---|",
        *("| " + " | ".join(line) + " |" for line in lines(rows)),
    ]
    card, fastest = rows.get("roofline", {}), rows.get("byol, compiled", {})
    if "GFLOP per image" in card and "images/s" in fastest:
        reached = fastest["images/s"] * card["GFLOP per image"] / 1e3
        share = reached / card["TFLOP/s, bf16 matrix product"]
        text += ["", f"BYOL's step runs at {reached:.3g} TFLOP/s, {share:.1%} of the card's bf16 matrix product."]
    for name, row in rows.items():
        rest = [f"{key} {_short(value)}" for key, value in row.items() if key != "images/s"]
        text += ["", f"**{name}**: {'; '.join(rest)}"] if rest else []
    return "\n".join(text) + "\n"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all but profile by default")
    parser.add_argument("--images", help="a folder of JPEG files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--profile", action="store_true", help="the part profile alone")
    parser.add_argument("--again", action="store_true", help="measure even if results exist")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script out")
    arguments = parser.parse_args(words)
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    chosen = ["profile"] if arguments.profile else arguments.parts or [part for part in PARTS if part != "profile"]
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("no GPU is found; --tiny tries the script out without one")

    sizes = TINY if arguments.tiny else replace(Sizes(), workers=min(Sizes.workers, cores()))
    environment = {**facts("torch", "torchvision"), "lightly": installed("lightly")}
    device = (environment["gpu"] or "cpu").replace("NVIDIA ", "").replace(" ", "-").lower()
    file = arguments.results / f"gpu-{device}.json"
    content = read(file) | {"sizes": vars(sizes), "environment": environment}
    rows = content.setdefault("rows", {})
    with tempfile.TemporaryDirectory() as made:
        images = photographs(arguments.images, Path(made))
        content["images"] = "/".join(Path(images).parts[-3:])
        for name, part in ((name, part) for group in chosen for name, part in PARTS[group].items()):
            if not arguments.again and name in rows and "failed" not in rows[name]:
                continue
            rows[name] = in_process(part, sizes, images)
            print(f"{name}: " + "; ".join(f"{key} {_short(value)}" for key, value in rows[name].items()), flush=True)
            write(file, content)
            file.with_suffix(".md").write_text(page(rows, environment))
    print(page(rows, environment))


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


if __name__ == "__main__":
    main()
