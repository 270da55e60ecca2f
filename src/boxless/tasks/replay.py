"""A step that gave NaN or infinity: saved unchanged, and repeated to find the first bad value."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from boxless.data.unlabelled import Batch
from boxless.errors import UserError
from boxless.files import written
from boxless.geometry.view import View
from boxless.recipes.load import load
from boxless.recipes.schema import PretrainRecipe
from boxless.tasks.pretrain import PretrainTask
from boxless.training.device import make_fabric, resolve_precision
from boxless.training.distributed import gather_objects, rank, world_size
from boxless.training.fit import seed_step
from boxless.training.nan_guard import NonFiniteStep

PACKAGE = Path(__file__).parents[1]
AROUND = Path("tasks/replay.py"), Path("tasks/pretrain.py")
"""Files of ours that every step goes through, whatever its method."""


def keep(out: Path, error: NonFiniteStep) -> Path:
    """Write the step of an error into a run's folder, in place of an earlier one, and return its file.

    It holds the module before the step's update, and the batch as it was cut (uint8). Of several processes the first
    whose own share broke writes it, with that share.
    """
    for old in out.glob("replay-step-*.safetensors") if rank() == 0 else ():
        old.unlink()
    path = out / f"replay-step-{error.step:08d}.safetensors"
    own = gather_objects(error.own)
    if rank() == (own.index(True) if any(own) else 0):
        batch: Batch = error.batch
        tensors = {f"module/{name}": value for name, value in error.state.items()}
        for number, view in enumerate(batch.views):
            if view is not None:
                tensors |= {f"view/{number}/image": view.image, f"view/{number}/from_source": view.from_source}
        tensors |= {"boxes": batch.boxes, "valid": batch.valid}
        whole = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        about = {"step": str(error.step), "process": str(rank()), "processes": str(world_size()), "said": str(error)}
        with written(path) as partial:
            save_file(whole, partial, metadata=about)
    return path


def replay(path: Path) -> str:
    """Repeat a saved step in float32 without changing a weight; return a line on the first value that is not finite.

    Random draws are those of the step. A share of several processes' batch is taken alone: norms then see no others,
    and flips and colours are drawn again.

    Raises:
        UserError: if the file is no kept step of a run.
    """
    tensors, about = _read(path)
    recipe = load(path.parent / "recipe.yaml", PretrainRecipe)
    fabric, step = make_fabric("32-true"), int(about["step"])
    task = PretrainTask(recipe, fabric, path.parent)
    task.build()
    state = {name.removeprefix("module/"): value for name, value in tensors.items() if name.startswith("module/")}
    task.module.load_state_dict(state)
    task.module.train()
    views = [_view(tensors, number) for number in range(len(task.specs))]
    batch = Batch(tuple(views), tensors["boxes"], tensors["valid"], ()).to(fabric.device)
    seed_step(recipe.seed, step, int(about["process"]))
    broken = [name for name, value in task.module.named_parameters() if not value.isfinite().all()]
    found = f"the weight {broken[0]}, before the step" if broken else _first(task, batch, step)
    if found is not None:
        return f"step {step} again in float32: the first that is not finite is {found}"
    used = resolve_precision(recipe.precision)
    reason = "this machine computes otherwise" if used == "32-true" else f"it is {used}; precision=32-true avoids it"
    return f"step {step} again in float32: all is finite, where the run had {about['said']}: {reason}"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _about(file.metadata(), path)  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--replay {path}: {' '.join(str(error).split())}; expected a run's replay-step-N file"
        ) from None


def _about(metadata: dict[str, str] | None, path: Path) -> dict[str, str]:
    if not metadata or "step" not in metadata:
        raise UserError(f"--replay {path}: holds no step of a run; expected its replay-step-N.safetensors")
    return metadata


def _view(tensors: Mapping[str, Tensor], number: int) -> View | None:
    image = tensors.get(f"view/{number}/image")
    return None if image is None else View(image, tensors[f"view/{number}/from_source"])


def _first(task: PretrainTask, batch: Batch, step: int) -> str | None:
    """Description of the first value that is not finite in a forward and backward pass; None if all are."""
    module = task.module
    with _watched(module) as found, warnings.catch_warnings(record=True) as traces:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly():
            terms = task.loss(module, batch, step)
            if found:
                return found[0]
            broken = [name for name, value in terms.items() if name != "loss" and not value.isfinite().all()]
            if broken or not terms["loss"].isfinite():
                return f"the term {broken[0]}" if broken else "the loss, of finite embeddings"
            try:
                terms["loss"].backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                if "returned nan" not in str(error):
                    raise
                return f"a gradient: {str(error).split(' in its ')[0]}{_place([str(w.message) for w in traces])}"
    grown = [
        name for name, value in module.named_parameters() if value.grad is not None and _largest(value.grad) == math.inf
    ]
    return f"the gradient of {grown[-1]}" if grown else None


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[str]]:
    """Yield a list that collects the parts of a module whose output is not finite, in order."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point() or math.isfinite(_largest(output)):
                return
            largest = max((_largest(value) for value in given if isinstance(value, Tensor)), default=0.0)
            before = f"of a finite input, at most {largest:.3g}"
            found.append(f"the output of {name}, {before}" if math.isfinite(largest) else f"what goes into {name}")

        return hook

    handles = [
        part.register_forward_hook(look(name)) for name, part in module.named_modules() if not list(part.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _largest(values: Tensor) -> float:
    """The largest size, infinite where one is NaN."""
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


def _place(traces: list[str]) -> str:
    """The line of boxless whose gradient it is, from PyTorch's trace of its forward pass."""
    frames = re.findall(r'File "(.+)", line (\d+)', "\n".join(traces))
    own = [(Path(file).relative_to(PACKAGE), line) for file, line in frames if Path(file).is_relative_to(PACKAGE)]
    lines = [(file.as_posix(), line) for file, line in own if file not in AROUND]
    return f" at boxless/{lines[-1][0]}, line {lines[-1][1]}" if lines else ""
