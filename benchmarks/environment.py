"""What a measurement depends on besides the code: versions, processor, GPU and load. And where results go."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from boxless.training.device import has_fast_bf16

RESULTS = Path(__file__).parent / "results"


def facts(*packages: str) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "bf16": has_fast_bf16(),
        "cores": cores(),
        "load": os.getloadavg(),
    }


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
