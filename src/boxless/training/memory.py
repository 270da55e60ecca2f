"""Memory for training: smaller micro-batches if it runs out, and kept between steps on a processor."""

import ctypes
import gc
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


class OutOfMemory(Exception):
    """A step did not fit.

    Attributes:
        step: step that did not fit.
        batch: batch of this process.
    """

    def __init__(self, step: int, batch: Any) -> None:
        super().__init__(f"out of memory at step {step}")
        self.step, self.batch = step, batch


class MicroBatches:
    """Equal parts of a batch, gone through one after the other if memory is short; gradients are averaged over them.

    Args:
        images: number of images of a batch, on this process.
        accumulate: number of parts; auto: more and more of them, as memory runs out.
    """

    def __init__(self, images: int, accumulate: int | Literal["auto"] = 1) -> None:
        self.images, self.adaptive = images, accumulate == "auto"
        self.parts = 1 if accumulate == "auto" else accumulate

    @property
    def size(self) -> int:
        """Images of a part."""
        return self.images // self.parts

    def split(self, batch: Any) -> Sequence[Any]:
        """The parts of a batch: a list, which may be longer than `images`, or else a batch that is one part."""
        if not isinstance(batch, list):
            return (batch,)
        return [batch[first : first + self.size] for first in range(0, len(batch), self.size)]

    def shrink(self) -> bool:
        """Use the next larger number of parts, and return whether there is one."""
        before = self.parts
        self.parts = next((parts for parts in self._numbers() if parts >= 2 * before), before)
        return self.parts > before

    def restore(self, size: int) -> None:
        """Use parts of at most `size` images, which fitted before, perhaps with other processes."""
        if self.adaptive:
            self.parts = next(parts for parts in self._numbers() if self.images // parts <= max(1, size))

    def _numbers(self) -> list[int]:
        return [parts for parts in range(1, self.images + 1) if self.images % parts == 0]


def release() -> None:
    """Let go of what a failed step held, for a smaller one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for the tensors of its next step; return whether that took effect.

    glibc hands large blocks back to Linux, which clears each page again when the next tensor of that size is made: a
    tenth to a third of a training step on a processor. Elsewhere (musl, macOS, Windows) nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
