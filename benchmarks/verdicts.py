"""Is the health verdict right? Short runs made to collapse, and whole ones: the tables of docs/reliability.md.

    python benchmarks/verdicts.py --data $BOXLESS_DATA --out runs/verdicts
    python benchmarks/verdicts.py table

Each run trains timm's test_resnet (0.37 million weights) on two thirds of NEU-DET's images of steel (1770, six kinds of
defect), at 32 px, for a few epochs. What became of it is judged by its frozen backbone and not by the embeddings that
the verdict sees: by how well 20 nearest neighbours tell the kinds of the last third apart, beside the random weights
that it began with, and by the effective rank of those features. A run is done once; given again, only what is missing
is done, and what the other runs' measures say by today's thresholds is updated.
"""

import argparse
import json
import math
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from environment import RESULTS, facts, write
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

import boxless
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.evaluation.probes import knn_predict
from boxless.interop.weights import load_trunk
from boxless.methods.method import MethodOutput
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe
from boxless.runs.run import Run
from boxless.training.health import Alarm, Health, HealthRecord

TRUNK = TrunkConfig("timm:test_resnet", neck="none")
SIZE, BATCH, RATE = 32, 64, 1e-3
OPTIM = {"name": "adamw", "base_lr": RATE, "reference_batch": BATCH, "final_lr": 0.0}
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
MARKS = "<!-- verdicts -->", "<!-- end of verdicts -->"


def no_predictor(method: Any) -> None:
    method.predictor = nn.Identity()


def apart(first: Tensor, second: Tensor, *_: Any) -> Tensor:
    """2 - 2 cos, with gradients both ways: what is left of a contrastive loss without its negatives."""
    return 2 - 2 * cosine_similarity(first, second).mean()


def no_stop_gradient(method: Any) -> None:
    def compare(self: Any, h: list[Tensor], h_target: list[Tensor]) -> MethodOutput:
        z1, z2 = (self.projector(each) for each in h)
        loss = apart(self.predictor(z1), z2) + apart(self.predictor(z2), z1)
        return MethodOutput(loss, {}, z1.detach(), z2.detach())

    method.compare = types.MethodType(compare, method)


def no_momentum(method: Any) -> None:
    method.momentum = lambda step, total: 0.0


def without_negatives(method: str, loss: str) -> Callable[[], Any]:
    return lambda: patch(f"boxless.methods.{method}.{loss}", apart)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any], None] | None, Callable[[], Any] | None]] = {
    **{f"{name}, whole": (name, {}, None, None) for name in ("byol", "simclr", "moco", "vicreg", "barlow", "dino")},
    "byol, no predictor": ("byol", {}, no_predictor, None),
    "byol, no stop-gradient": ("byol", {}, no_stop_gradient, None),
    "byol, momentum 0": ("byol", {}, no_momentum, None),
    "byol, momentum 0, no predictor": ("byol", {}, lambda m: (no_momentum(m), no_predictor(m))[0], None),
    "byol, LR x100": ("byol", {"base_lr": 100 * RATE}, None, None),
    "simclr, LR x100": ("simclr", {"base_lr": 100 * RATE}, None, None),
    "simclr, no negatives": ("simclr", {}, None, without_negatives("simclr", "nt_xent_loss")),
    "moco, no negatives": ("moco", {}, None, without_negatives("moco", "info_nce_loss")),
    "moco, momentum 0": ("moco", {}, no_momentum, None),
    "vicreg, invariance alone": (
        "vicreg",
        {"variance_weight": 0.0, "covariance_weight": 0.0},
        None,
        None,
    ),
    "vicreg, no variance": ("vicreg", {"variance_weight": 0.0}, None, None),
    "dino, no centre": ("dino", {"center_momentum": 1.0}, None, None),
}
"""A method, keys of it or its optimiser that differ, what is done to it once it is built, and what is patched
while it trains."""


def surfaces(folder: Path, out: Path, part: str) -> tuple[Tensor, Tensor]:
    """Two thirds of NEU-DET's images, or the last third: (N, 3, SIZE, SIZE) of 0..255 and their kind of defect (N,).

    They are written as small files too, to train from.
    """
    (out / part).mkdir(parents=True, exist_ok=True)
    files = sorted((folder / "neu-det" / "JPEGImages").glob("*.jpg"))
    kinds = sorted({file.stem.rpartition("_")[0] for file in files})
    images, labels = [], []
    for number, file in enumerate(files):
        if (number % 3 == 2) == (part == "val"):
            small = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
            small.save(out / part / f"{file.stem}.png")
            images.append(torch.from_numpy(np.array(small.resize((SIZE, SIZE)))).permute(2, 0, 1))
            labels.append(kinds.index(file.stem.rpartition("_")[0]))
    return torch.stack(images).float(), torch.tensor(labels)


@torch.no_grad()
def features(trunk: Trunk, images: Tensor) -> Tensor:
    """(N, C): pooled C5, with each batch's own statistics, which random weights have too."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (TRUNK.mean, TRUNK.std))
    body = trunk.backbone.body.train()
    return torch.cat([body((part / 255 - mean) / std)["3"].mean((2, 3)) for part in images.split(256)])


def effective_rank(values: Tensor) -> float:
    singular = torch.linalg.svdvals(normalize(values, dim=1) - normalize(values, dim=1).mean(0))
    shares = singular / singular.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


def judged(trunk: Trunk, known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> dict[str, Any]:
    train, queries = features(trunk, known[0]), features(trunk, asked[0])
    if not (train.isfinite().all() and queries.isfinite().all()):
        return {"right": [False] * len(queries), "rank": 0.0}
    right = knn_predict(train, known[1], queries, 6, 20) == asked[1].numpy()
    return {"right": right.tolist(), "rank": round(effective_rank(queries), 2)}


def truth(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, float]:
    """better, alike or worse than the random weights at the start, by the images that one of them alone gets right."""
    gained = sum(a and not b for a, b in zip(after["right"], before["right"], strict=True))
    lost = sum(b and not a for a, b in zip(after["right"], before["right"], strict=True))
    z = (gained - lost) / math.sqrt(max(1, gained + lost))  # McNemar
    return "better" if z > 2 else "worse" if z < -2 else "alike", z


@contextmanager
def changed(config: Any, change: Callable[[Any], None] | None, patched: Callable[[], Any] | None) -> Iterator[None]:
    """While in it, methods of a config are built and then changed."""
    build = type(config).build

    def built(self: Any, trunk: Trunk) -> Any:
        method = build(self, trunk)
        if change is not None:
            change(method)
        return method

    with ExitStack() as stack:
        stack.enter_context(patch.object(type(config), "build", built))
        if patched is not None:
            stack.enter_context(patched())
        yield


def one(name: str, seed: int, data: Path, out: Path, steps: int) -> Run:
    method, keys, change, patched = CASES[name]
    optim = {**OPTIM, **{key: value for key, value in keys.items() if key in OPTIM}}
    keys = {key: value for key, value in keys.items() if key not in OPTIM}
    recipe = load(f"{method}-small", PretrainRecipe)
    settings = {
        "trunk": TRUNK,
        "method": replace(recipe.method.at_size(SIZE), **keys),
        "optim": replace(recipe.optim, **optim),
        "batch_size": BATCH,
        "epochs": steps / (len(list(data.iterdir())) // BATCH),
        **{"workers": 0, "health_every": 5, "checkpoint_every": steps, "precision": "32-true"},
        **{"stop_on_collapse": False, "seed": seed},
    }
    with changed(recipe.method, change, patched):
        return boxless.pretrain(str(data), str(out), f"{method}-small", quiet=True, **settings)


def warned(metrics: dict[str, tuple[list[int], list[float]]]) -> tuple[str, int | None]:
    """The last verdict, and the first step at which it was not healthy."""
    names = ("spread", "rank", "alignment", "uniformity")
    record, first = HealthRecord(), None
    alarms = [
        (s, Alarm(s, k.partition("/")[2], 0.0, k)) for k in metrics if k.startswith("alarm/") for s in metrics[k][0]
    ]
    for number, step in enumerate(metrics["health/spread"][0]):
        record.alarms = [alarm for at, alarm in alarms if at <= step]
        record.add(step, Health(*(metrics[f"health/{each}"][1][number] for each in names)))
        if record.verdict != "healthy" and first is None:
            first = step
    return record.verdict, first


def row(name: str, seed: int, steps: int, out: Path, data: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(seed)
    before, stopped = judged(Trunk(TRUNK), data["train"], data["val"]), None
    folder = folder_of(out, name, seed)
    try:
        run = one(name, seed, data["folder"], folder, steps)
        trunk = Trunk(TRUNK)
        load_trunk(trunk, run.weights, 1.0)
        after = judged(trunk, data["train"], data["val"])
    except UserError as error:
        if "stopped, step" not in str(error):
            raise
        stopped = str(error).partition("stopped, ")[2].partition(";")[0]
        after = {"right": [False] * len(before["right"]), "rank": 0.0}
    found, z = truth(before, after)
    knn = [round(float(np.mean(each["right"])), 3) for each in (before, after)]
    judged_by = {"knn": knn, "z": round(z, 1), "feature_rank": [before["rank"], after["rank"]], "truth": found}
    return {"stopped": stopped, **judged_by, **said(folder, stopped)}


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"


def said(folder: Path, stopped: str | None) -> dict[str, Any]:
    """What a run said of itself, and from which step on."""
    metrics = Run(folder).metrics
    verdict, first = warned(metrics) if "health/spread" in metrics else ("unknown", None)
    measures = {
        key: [round(metrics[f"health/{key}"][1][at], 3) for at in (0, -1)] if f"health/{key}" in metrics else []
        for key in ("spread", "rank")
    }
    alarms = {key: metrics[key][0] for key in metrics if key.startswith("alarm/")}
    known = {"verdict": "stopped" if stopped else verdict, "first": 0 if stopped and first is None else first}
    return {**known, **measures, "alarms": alarms}


def measure(arguments: argparse.Namespace) -> None:
    images = arguments.out / "images"
    data: dict[str, Any] = {part: surfaces(arguments.data, images, part) for part in ("train", "val")}
    data["folder"] = images / "train"
    file = arguments.results / "verdicts.json"
    settings = {"steps": arguments.steps, "images": [len(data[part][1]) for part in ("train", "val")]}
    content = (
        json.loads(file.read_text()) if file.exists() else {**settings, "facts": facts("torch", "timm"), "rows": {}}
    )
    for seed in arguments.seeds:
        for name in arguments.cases:
            key = f"{name} #{seed}"
            if key in content["rows"]:
                known = content["rows"][key]
                if folder_of(arguments.out, name, seed).is_dir():
                    known |= said(folder_of(arguments.out, name, seed), known["stopped"])
                    write(file, content)
            else:
                content["rows"][key] = row(name, seed, arguments.steps, arguments.out, data)
                write(file, content)
                print(key, content["rows"][key], flush=True)


def table(arguments: argparse.Namespace) -> None:
    content = json.loads((arguments.results / "verdicts.json").read_text())
    rows = content["rows"].values()
    said = {True: "a warning", False: "healthy"}
    counts = Counter((each["verdict"] != "healthy", each["truth"]) for each in rows)
    lines = ["| verdict \\ frozen features, beside the start's | better | alike | worse |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {said[w]} | {' | '.join(str(counts[w, t]) for t in ('better', 'alike', 'worse'))} |" for w in (False, True)
    ]
    lines += ["", "| run | seeds | verdicts | first warning, step | k-NN, start to end | rank of features |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name in CASES:
        own = [each for key, each in content["rows"].items() if key.rpartition(" #")[0] == name]
        if own:
            verdicts = ", ".join(f"{n} {v}" for v, n in Counter(e["verdict"].partition(" at")[0] for e in own).items())
            first = ", ".join(str(each["first"]) if each["first"] is not None else "none" for each in own)
            knn = ", ".join(f"{each['knn'][0]:.2f} to {each['knn'][1]:.2f}" for each in own)
            rank = ", ".join(f"{each['feature_rank'][0]:.0f} to {each['feature_rank'][1]:.0f}" for each in own)
            lines.append(f"| {name} | {len(own)} | {verdicts} | {first} | {knn} | {rank} |")
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--data", type=Path, help="the folder that holds neu-det")
    parser.add_argument("--out", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (table if arguments.what == "table" else measure)(arguments)


if __name__ == "__main__":
    main()
