"""Memory for training: keeping it between steps on a processor, and what to do where it runs out."""

import ctypes
import gc
import sys
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


class OutOfMemory(Exception):
    """A step did not fit.

    Attributes:
        step: that did not.
        batch: of this process.
    """

    def __init__(self, step: int, batch: Any) -> None:
        super().__init__(f"out of memory at step {step}")
        self.step, self.batch = step, batch


def release() -> None:
    """Let go of what a failed step held, for a smaller one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the tensors of its next step; whether that took effect.

    glibc hands large blocks back to Linux, which clears each page again when the next tensor of that size is made: a
    tenth to a third of a training step on a processor. Elsewhere (musl, macOS, Windows) nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
