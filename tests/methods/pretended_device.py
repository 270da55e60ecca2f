"""A GPU that computes nothing: shapes, types and devices as on a real one, and an error for whatever waits for it.

It goes by the name of a device that PyTorch knows and has no driver for, so that gradients flow without one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")


class HostWaits(Exception):
    """The program needs a number from the device, or copies to or from it without `non_blocking`."""


class _PretendedDevice(TorchDispatchMode):
    """What touches the device is faked; all else is computed."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        leaves = tree_leaves((args, options))
        on_device = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        to_device = any(isinstance(leaf, torch.device) and leaf == DEVICE for leaf in leaves)
        if not on_device and not to_device:
            with unset_fake_temporarily():
                return func(*args, **options)
        self._check_copy(func, args, options)
        args, options = tree_map(self._faked, (tuple(args), options))
        return func(*args, **options)  # raises where a shape or a number depends on values

    def _check_copy(self, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        name = str(func)
        if "_to_copy" in name:
            target = options.get("device") or args[0].device
            waits = target.type != args[0].device.type and not (
                target.type == DEVICE.type and options.get("non_blocking")
            )
        elif "copy_" in name and "index" not in name:
            source = args[1].device
            waits = source.type != args[0].device.type and args[1].ndim > 0
        else:
            waits = "_local_scalar_dense" in name
        if waits:
            raise HostWaits(name)

    def _faked(self, leaf: Any) -> Any:
        real = isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
        return self.fake.from_tensor(leaf) if real else leaf


def moved(module: nn.Module) -> None:
    """Put a module on the device; call it inside of `pretended_device`."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            there = torch.empty(parameter.shape, device=DEVICE)
            setattr(part, name, nn.Parameter(there, parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """The device, for the length of a block."""
    with FakeTensorMode() as fake, _PretendedDevice(fake):
        yield DEVICE
