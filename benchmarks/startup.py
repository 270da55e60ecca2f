"""What a million images cost before the first batch: seconds to find them, and memory of each process that knows them.

    python benchmarks/startup.py
    python benchmarks/startup.py --boxes --at /data/tmp

Makes hard links to a few photographs (those of coco256 in $BOXLESS_DATA, else embedded ones), 1,000 to a folder, and a
list file of the same paths. Each figure is taken in a fresh process; "first" searches the folders, or reads the list,
and "again" finds the cached index. Memory is that of two data workers, and of the process that trains, once the workers
have asked for every path in the order of an epoch: what comes on top of the same with a hundredth of the images, as
PSS, where pages that processes share are divided among them, and as private memory. Beside it the same paths in a
Python list and in torchvision's ImageFolder. With --boxes also a table of 100 random boxes per image, which takes three
more minutes and 2.5 GB of disk. Prints, and writes to benchmarks/results/startup.json. About a minute of one core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from environment import RESULTS, facts, write
from pipeline import photographs

from boxless.data.open import index_images
from boxless.data.sampler import TrainingSampler
from boxless.proposals.table import ProposalTable

FOLDER = 1000
"""Images per folder, as in ImageNet; also the size of a batch."""
WORKERS = 2
BOXES = 100

Figures = dict[str, Any]


class Asked:
    """A data set that asks for the path of a row, and for its boxes if there are any."""

    def __init__(self, paths: Any, boxes: ProposalTable | None) -> None:
        self.paths, self.boxes = paths, boxes

    def __getitem__(self, place: tuple[int, int]) -> int:
        boxes = 0 if self.boxes is None else len(self.boxes.boxes(place[1]))
        return len(self.paths.path(place[1])) + boxes


class Listed:
    """Paths in a Python list, alone or with a class each, behind the names that an index has."""

    def __init__(self, paths: list[Any]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> str:
        """The file of a row."""
        path = self.paths[row]
        return path if isinstance(path, str) else path[0]


def start(kind: str, where: str, cache: str) -> Figures:
    """Seconds until the images, and the boxes of the table beside them, are known; in all and of the processor."""
    began, worked = time.monotonic(), time.process_time()
    if kind == "index":
        paths: Any = index_images(where, Path(cache))
        assert len(paths.fingerprint) == 16
    elif kind == "list":
        paths = Listed([os.path.join(folder, name) for folder, _, names in os.walk(where) for name in names])
    elif kind == "boxes":
        paths = ProposalTable.open(f"{where}.parquet")
    else:
        from torchvision.datasets import ImageFolder

        paths = Listed(ImageFolder(where).samples)
    seconds = {"seconds": time.monotonic() - began, "processor": time.process_time() - worked}
    return {"images": len(paths), **seconds, "object": paths}


def memory(kind: str, where: str, cache: str) -> Figures:
    """Memory of this process and its workers after one epoch."""
    from torch.utils.data import DataLoader

    boxes = None
    paths = start("index" if kind == "boxes" else kind, where, cache)["object"]
    if kind == "boxes":
        boxes = ProposalTable.open(f"{where}.parquet").aligned_to(paths)
    order = TrainingSampler(len(paths), FOLDER, 0, len(paths) // FOLDER, seed=0)
    began = time.process_time()
    next(iter(order))
    drawn = time.process_time() - began
    batches = iter(DataLoader(Asked(paths, boxes), batch_sampler=order, num_workers=WORKERS, collate_fn=sum))
    for _ in range(len(order)):
        next(batches)
    workers = [resident(worker.pid) for worker in batches._workers]
    mean = {key: sum(worker[key] for worker in workers) // WORKERS for key in workers[0]}
    return {"images": len(paths), "order": drawn, "training": resident("self"), "worker": mean}


def resident(process: int | str) -> dict[str, int]:
    """Bytes of memory."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {
        "rss": kib["Rss"] << 10,
        "pss": kib["Pss"] << 10,
        "private": kib["Private_Dirty"] + kib["Private_Clean"] << 10,
    }


def make_links(root: Path, images: int, originals: list[Path]) -> None:
    """Images of the names that ImageNet has, and a list of them beside."""
    lines = []
    for first in range(0, images, FOLDER):
        folder = root / f"n{first // FOLDER:08d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FOLDER, images)):
            os.link(originals[number % len(originals)], f"{folder}/{folder.name}_{number}.JPEG")
            lines.append(f"{root.name}/{folder.name}/{folder.name}_{number}.JPEG\n")
    root.with_suffix(".txt").write_text("".join(lines))
    for path in (root.with_suffix(".txt"), root, *root.iterdir()):
        os.utime(path, (1_000_000_000, 1_000_000_000))  # of what has just changed no index is kept


def make_table(root: Path, cache: Path) -> None:
    """Random boxes in whole pixels, which pack a little better than real ones."""
    index = index_images(root, cache)
    count = len(index)
    values = np.empty((count * BOXES, 2, 2), np.float32)
    for first in range(0, len(values), 1 << 22):
        part = values[first : first + (1 << 22)]
        part[:] = np.sort(np.random.default_rng(first).integers(0, 500, part.shape), axis=1)
        part[:, 1] += 1  # a box has two sides
    table = ProposalTable(
        keys=index.keys(),
        values=values.reshape(-1, 4),
        starts=BOXES * np.arange(count),
        ends=BOXES * np.arange(1, count + 1),
        sizes=np.full((count, 2), 500, np.int32),
        fallback=np.zeros(count, np.int8),
        skipped=pa.nulls(count, pa.large_string()),
        settings={"method": "benchmark"},
    )
    table.write(f"{root}.parquet")


def fresh(what: str, kind: str, where: Path, cache: Path) -> Figures:
    """What `start` or `memory` finds in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, kind, str(where), str(cache)]
    figures: Figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return figures


def per_image(large: Figures, small: Figures, process: str, kind: str) -> float:
    """Bytes."""
    return (large[process][kind] - small[process][kind]) / (large["images"] - small["images"])


def measured(images: int, at: Path, with_boxes: bool) -> Figures:
    """All figures, said as they come."""
    cache = at / "cache"
    shutil.copytree(photographs(None, at), at / "originals")
    originals = sorted((at / "originals").rglob("*.jpg"))
    for name, count in (("few", images // 100), ("all", images)):
        make_links(at / name, count, originals)
    starts: Figures = {}
    for name, kind, place in (
        ("folders", "index", at / "all"),
        ("list file", "index", at / "all.txt"),
        ("Python list", "list", at / "all"),
        ("torchvision ImageFolder", "ImageFolder", at / "all"),
    ):
        starts[name] = {time: fresh("start", kind, place, cache) for time in ("first", "again")}
        print_start(name, starts[name])
    kinds = {"folders": "index", "Python list": "list", "torchvision ImageFolder": "ImageFolder"}
    if with_boxes:
        for name in ("few", "all"):
            make_table(at / name, cache)
        name, kinds["folders and boxes"] = f"table of {BOXES} boxes each", "boxes"
        starts[name] = {time: fresh("start", "boxes", at / "all", cache) for time in ("first", "again")}
        print_start(name, starts[name])
    held: Figures = {}
    for name, kind in kinds.items():
        few, all_ = (fresh("memory", kind, at / part, cache) for part in ("few", "all"))
        added = {
            process: {which: round(per_image(all_, few, process, which), 1) for which in ("pss", "private")}
            for process in ("training", "worker")
        }
        held[name] = {"bytes_per_image": added, "few": few, "all": all_}
        print_memory(name, added)
    order = held["folders"]["all"]["order"]
    print(f"order of an epoch: {order:.3f} s, {8 * images / 1e6:.0f} MB, in the training process alone")
    key_bytes = index_images(at / "all", cache).keys().nbytes / images
    return {"images": images, "folders": images // FOLDER, "key_bytes": key_bytes, "starts": starts, "memory": held}


def print_start(name: str, figures: Figures) -> None:
    columns = (
        f"{time} {found['seconds']:6.2f} s ({found['processor']:5.2f} s of a core)" for time, found in figures.items()
    )
    print(f"{name:28}", *columns, sep="  ", flush=True)


def print_memory(name: str, added: Figures) -> None:
    columns = (f"{process} {found['pss']:6.1f} (private {found['private']:6.1f})" for process, found in added.items())
    print(f"{name:28}", *columns, "bytes per image", sep="  ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="a multiple of 100,000")
    parser.add_argument("--at", type=Path, help="folder to make the links in, by default one for temporary files")
    parser.add_argument("--boxes", action="store_true", help="a table of proposals too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=4, metavar=("WHAT", "KIND", "WHERE", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, *rest = arguments.measure
        found = {"start": start, "memory": memory}[what](*rest)
        print(json.dumps({name: value for name, value in found.items() if name != "object"}))
        return
    with tempfile.TemporaryDirectory(dir=arguments.at, prefix="startup-") as at:
        figures = measured(arguments.images, Path(at), arguments.boxes)
    environment = facts("torch", "torchvision", "pyarrow", "numpy")
    write(arguments.results / "startup.json", {**figures, "environment": environment})


if __name__ == "__main__":
    main()
