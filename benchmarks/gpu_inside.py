"""What a training step consists of: operations, bytes, kernels, and places where the host waits for the device."""

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler_util import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training_step import Step

GROUPS = {
    "norms": r"batch_?norm|cudnn.*bn|\bbn_|layer_?norm|welford",
    "optimizer and target": r"multi_tensor|foreach|_lerp",
    "compiled": r"^triton",
    "layouts": r"nchwtonhwc|nhwctonchw|converttensor",
    "convolutions and products": r"gemm|conv|cudnn|cutlass|xmma|nvjet|wgrad|dgrad|implicit|::mm|addmm|::bmm",
    "copies": r"memcpy|memset|copy|_to_copy",
    "pooling": r"pool|roi",
    "sums": r"reduce|::sum|::mean|softmax",
    "element by element": r"elementwise|vectorized|index|flip|where|clamp|::add|::mul|::div|::sub|::cat|relu|threshold",
}
"""Kernels by their names, the first that fits."""


def matrix_rate(side: int) -> float:
    """Operations per second of a product of two random bf16 matrices."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=_device()) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b)


def copy_rate(side: int) -> float:
    """Bytes per second, read and written, of a copy on the device."""
    source = torch.randn(8, side, side, device=_device())
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _seconds(lambda: target.copy_(source))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    _wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait()
    return (time.perf_counter() - began) / repeats


def step_flops(step: Step) -> float:
    """Floating-point operations of a step's convolutions and products; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        float(step())
    return float(counter.get_total_flops())


class _Bytes(TorchDispatchMode):
    """Sums what every operation reads and writes, as if nothing stayed in caches."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs or {}, result))
            self.total += sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
        return result


def byte_count(step: Step) -> float:
    """Bytes that a step's operations read and write, one by one: what compiling can save from."""
    with _Bytes() as counter:
        step()
    return float(counter.total)


def kernel_times(step: Step, steps: int) -> dict[str, float]:
    """Milliseconds of a step by group of kernels; on a processor, of operations."""
    on_gpu = torch.cuda.is_available()
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind], acc_events=True) as recorded:  # PyTorch 2.11 warns without
        began = time.perf_counter()
        for _ in range(steps):
            step()
        _wait()
        wall = time.perf_counter() - began
    times: Counter[str] = Counter()
    for event in recorded.key_averages():
        if on_gpu and event.device_type == DeviceType.CUDA:
            times[group_of(event.key)] += event.self_device_time_total / 1000 / steps
        elif not on_gpu:
            times[group_of(event.key)] += event.self_cpu_time_total / 1000 / steps
    busy = sum(times.values())
    return {f"ms, {name}": value for name, value in times.most_common()} | {
        "ms, all": busy,
        "ms by the clock": 1000 * wall / steps,
    }


def group_of(kernel: str) -> str:
    """The group of a kernel."""
    return next((group for group, names in GROUPS.items() if re.search(names, kernel.lower())), "other")


def waits_of(step: Step) -> dict[str, float]:
    """Waits of the host for the device in a step, and the lines of code that they come from."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no device to wait for")
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(entry.filename).name}:{entry.lineno}" for entry in caught if "synchroniz" in str(entry.message)
    )
    return {"waits per step": float(sum(places.values())), **{f"at {place}": float(n) for place, n in places.items()}}
