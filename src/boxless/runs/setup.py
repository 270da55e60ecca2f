"""What every training run sets up: device, precision, processes."""

import os
from typing import Literal

import torch
from lightning.fabric import Fabric

from boxless.recipes.schema import Precision
from boxless.training.memory import keep_freed_memory


def make_fabric(precision: Precision) -> Fabric:
    """Fabric on the GPU where there is one, in the asked precision."""
    torch.set_float32_matmul_precision("high")
    if not torch.cuda.is_available():
        keep_freed_memory()
    return Fabric(accelerator="auto", devices=1, precision=resolve_precision(precision))


def resolve_precision(precision: Precision) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """`auto` as what this machine computes fast: bf16 on GPUs and processors that have it, else float32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if has_fast_bf16() else "32-true"


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm's BF16)."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def worker_count(asked: int | None, most: int) -> int:
    """Data workers: as asked, else one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked if asked is not None else min(cores, most)
