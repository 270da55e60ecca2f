"""From files to BYOL's two augmented views on one core: ours against lightly's transforms on images that Pillow opens.

    pip install lightly
    python benchmarks/pipeline.py ../shared/data/coco256/images/train

Without a folder, coco256 in $BOXLESS_DATA is taken where there is one, else embedded photographs of 640 x 640 px.
Prints, and writes to benchmarks/results/pipeline.json: images per second of one core, median and range over the
repeats. Ours decodes and cuts in the data workers and leaves colours, blur and flips to the training device; lightly's
workers do all of that. The second row adds what the first leaves out, as it costs where the device is this very core.
About a minute. Times are those that the core worked, so that other programs matter less.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import torch
from environment import RESULTS, facts, write
from PIL import Image

from boxless.data.index import ImageIndex
from boxless.data.open import index_images
from boxless.data.scenes import make_scenes
from boxless.data.transforms.color import augment
from boxless.data.unlabelled import ViewDataset, collate
from boxless.methods.byol import BYOLConfig
from boxless.training.memory import keep_freed_memory

Pipeline = Callable[[range], None]
BATCH = 32


def ours(index: ImageIndex, with_colours: bool) -> Pipeline:
    specs = BYOLConfig().views()
    dataset = ViewDataset(index, specs, None, seed=0)
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def run(rows: range) -> None:
        for first in range(0, len(rows), BATCH):
            batch = collate([dataset[0, row] for row in rows[first : first + BATCH]], specs)
            for view, spec in zip(batch.views, specs, strict=True):
                if with_colours and view is not None:
                    augment(view, spec.photometric, generator).image.sub_(mean).div_(std)

    return run


def theirs(index: ImageIndex) -> Pipeline:
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    transform = BYOLTransform(BYOLView1Transform(), BYOLView2Transform())  # solarisation and less blur in the second

    def run(rows: range) -> None:
        for first in range(0, len(rows), BATCH):
            pairs = []
            for row in rows[first : first + BATCH]:
                with Image.open(index.path(row)) as image:
                    pairs.append(transform(image.convert("RGB")))  # as lightly.data.LightlyDataset opens files
            for views in zip(*pairs, strict=True):
                torch.stack(views)

    return run


def measure(pipelines: dict[str, Pipeline], rows: range, repeats: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in pipelines}
    for repeat in range(repeats + 1):
        for name, run in pipelines.items():  # in turns, so that a busy machine is unfair to none
            start = time.process_time()
            run(rows[:BATCH] if repeat == 0 else rows)  # the first warms up
            if repeat:
                speeds[name].append(len(rows) / (time.process_time() - start))
                print(f"repeat {repeat}: {name} {speeds[name][-1]:.0f} images/s", flush=True)
    return speeds


def photographs(folder: str | None, made: Path) -> str:
    shared = (
        Path(os.environ.get("BOXLESS_DATA", Path(__file__).parents[2] / "shared" / "data")) / "coco256/images/train"
    )
    if folder is not None or shared.is_dir():
        return folder or str(shared)
    make_scenes(made / "scenes", 64, 1, 1, size=640)
    return str(made / "scenes" / "images" / "unlabelled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="a folder of images")
    parser.add_argument("--count", type=int, default=128, help="images per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()  # for both sides alike
    warnings.simplefilter("ignore")  # lightly's about torchvision
    with tempfile.TemporaryDirectory() as made:
        folder = photographs(arguments.images, Path(made))
        index = index_images(folder)
        pipelines = {
            "boxless, in a worker": ours(index, with_colours=False),
            "boxless, all on this core": ours(index, with_colours=True),
            "lightly, in a worker": theirs(index),
        }
        count = min(arguments.count, len(index))
        speeds = measure(pipelines, range(count), arguments.repeats)
    results = {
        name: {"median": round(statistics.median(s), 1), "min": round(min(s), 1), "max": round(max(s), 1)}
        for name, s in speeds.items()
    }
    print(f"{'images/s on one core':28}{'median':>8}{'min':>8}{'max':>8}")
    for name, line in results.items():
        print(f"{name:28}{line['median']:8.0f}{line['min']:8.0f}{line['max']:8.0f}")
    *mine, peer = results
    ratios = {f"{name} over lightly": round(results[name]["median"] / results[peer]["median"], 2) for name in mine}
    for pair, ratio in ratios.items():
        print(f"{pair}: {ratio} times faster")
    environment = {**facts("torch", "torchvision", "lightly", "pillow"), "opencv": cv2.__version__}
    measured = {"folder": "/".join(Path(folder).parts[-3:]), "images": count, "repeats": arguments.repeats}
    content = {**measured, "images_per_second": results, "ratios": ratios, "environment": environment}
    write(arguments.results / "pipeline.json", content)


if __name__ == "__main__":
    main()
