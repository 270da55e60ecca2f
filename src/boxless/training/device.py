"""Setup of every training run: device, precision, processes."""

import inspect
import logging
import os
import sys
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.precision.amp import MixedPrecision
from lightning.fabric.plugins.precision.precision import Precision as PrecisionPlugin
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from boxless.errors import UserError
from boxless.launch import Processes
from boxless.training.distributed import cpu_group
from boxless.training.memory import keep_freed_memory

_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters


class Autocast(MixedPrecision):
    """Mixed precision that leaves a module's inputs alone: Lightning's rounds them to 16 bits, boxes included.

    From 256 px on, places in bf16 are whole multiples of 2 px; torchvision's detectors refuse such boxes.
    """

    def convert_input(self, data: Any) -> Any:
        """The data as it is; autocast rounds what it multiplies."""
        return data

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module, whose strided convolutions on a processor take narrow maps widened by zeros.

        Of a map narrower than the stride, oneDNN leaves parts of the weights' bf16 gradient as they lie in memory
        (PyTorch 2.14.1): RetinaNet's P6 of 64 px, layer4 of views up to 16 px.
        """
        for part in module.modules() if self.device == "cpu" else ():
            if isinstance(part, nn.Conv2d) and part.stride[1] > 1 and 2 * part.padding[1] == part.kernel_size[1] - 1:
                part.register_forward_pre_hook(_widen)
        return module


def _widen(conv: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Pad a narrow map with zeros like the padding's: the convolution's result stays the same."""
    assert isinstance(conv, nn.Conv2d)
    (maps,) = inputs
    missing = conv.stride[1] - maps.shape[3]
    return (pad(maps, (0, missing)),) if missing > 0 else inputs


def make_fabric(precision: str) -> Fabric:
    """Make a Fabric on the GPU, if there is one, in the requested precision."""
    _set_up()
    return Fabric(accelerator="auto", devices=1, plugins=[precision_plugin(precision)])


def training_fabric(precision: str) -> Fabric:
    """Fabric over all processes that torchrun or srun started, which wait here for each other; else `make_fabric`'s.

    Raises:
        UserError: there are more processes than GPUs.
    """
    processes = Processes.of(os.environ)
    return make_fabric(precision) if processes.world == 1 else _distributed_fabric(precision, processes)


def _distributed_fabric(precision: str, processes: Processes) -> Fabric:
    """Fabric by DDP.

    Parameters may have no gradient, such as those of a pyramid level without boxes or of a part that a step leaves out.
    Buffers are not broadcast before each step: norms that should agree are synchronised, others use their own images,
    and the first process's buffers are saved.
    """
    _set_up()
    _check_gpus(processes)
    handed_out = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"  # torch 2.14
    options: Any = {"find_unused_parameters": True, handed_out: False}
    fabric = Fabric(
        accelerator="auto",
        strategy=DDPStrategy(**options),
        devices=processes.local_world,
        num_nodes=processes.machines,
        plugins=[
            precision_plugin(precision),
            TorchElasticEnvironment() if processes.launcher == "torchrun" else SLURMEnvironment(),
        ],
    )
    logging.disable(logging.INFO)  # Lightning's banner
    try:
        fabric.launch()
    finally:
        logging.disable(logging.NOTSET)
    cpu_group()
    return fabric


def _set_up() -> None:
    torch.set_float32_matmul_precision("high")
    if not torch.cuda.is_available():
        keep_freed_memory()


def _check_gpus(processes: Processes) -> None:
    gpus = torch.cuda.device_count()
    if gpus and gpus < processes.local_world:
        own = " each" if processes.launcher == "srun" else ""
        raise UserError(
            f"{processes.local_world} processes on this machine see {gpus} GPU(s){own}: start one process per GPU, and "
            "with srun give them all GPUs of the machine (--gpus-per-node, without --gpus-per-task and --gpu-bind)"
        )


def precision_plugin(precision: str) -> PrecisionPlugin:
    """Fabric's plugin for the requested precision."""
    resolved: Any = resolve_precision(precision)
    if resolved == "32-true":
        return PrecisionPlugin()
    if precision not in ("auto", resolved):
        print(f"precision: {precision} is for GPUs; this processor takes {resolved}", file=sys.stderr, flush=True)
    return Autocast(resolved, "cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str) -> str:
    """`auto` as what this machine computes fast: bf16 on GPUs and processors that have it, else fp16 or float32.

    Processors, which take forty times as long in fp16, compute in bf16 instead.
    """
    if precision == "16-mixed" and not torch.cuda.is_available():
        return "bf16-mixed"
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if has_fast_bf16() else "32-true"


def has_fast_bf16() -> bool:
    """Return whether this processor multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm's BF16)."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def worker_count(asked: int | None, most: int) -> int:
    """Number of data workers of this process: as requested, or else one for each core in its share."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = Processes.of(os.environ)
    if processes.launcher == "srun" and "SLURM_CPUS_PER_TASK" in os.environ:  # which srun may bind a task to, or not
        return min(cores, int(os.environ["SLURM_CPUS_PER_TASK"]), most)
    return max(1, min(cores // processes.local_world, most))
