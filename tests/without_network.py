"""A day's work with sockets denied: `python without_network.py SCENES OUT`, for a process of its own.

Python's audit events name who asks for a connection; on Linux a filter in the kernel (seccomp) also ends the process at
the first socket of the internet that any library of C or Rust asks for. Sockets between processes of a machine stay.
"""

import ctypes
import platform
import socket
import struct
import sys
from pathlib import Path
from typing import Any

INTERNET = (socket.AF_INET, socket.AF_INET6)
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect", "ssl.wrap_socket")


def deny_in_python() -> None:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        internet = event in ("socket.connect", "socket.bind", "socket.sendto") and arguments[0].family in INTERNET
        if internet or event in LOOKUPS:
            print(f"NETWORK: {event} {arguments!r}", file=sys.stderr)
            raise PermissionError(f"{event} {arguments!r}")

    sys.addaudithook(refuse)


def deny_in_kernel() -> bool:
    """Whether the kernel took the filter: socket(AF_INET or AF_INET6, ...) ends the process."""
    number = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
    end, allow = 0x80000000, 0x7FFF0000  # SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ALLOW
    steps = [(load, 0, 0, 0), (equal, 0, 4, number), (load, 0, 0, 16)]  # the call's number, then its first argument
    steps += [(equal, 1, 0, int(INTERNET[0])), (equal, 0, 1, int(INTERNET[1])), (give, 0, 0, end), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return int(libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0)) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def a_day(scenes: str, out: str) -> None:
    """Each command on small images; what it should not do is to ask for the network."""
    import torch

    from boxless.cli import main

    Path(out).mkdir()
    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}}, f"{out}/old.pth")
    small = (
        "--trunk.backbone=resnet18 --trunk.fpn_channels=16 --trunk.box_head_width=32 --precision=32-true --workers=0"
    )
    views = "--proposals.method=grid --method.size=48 --method.small_size=24 --batch_size=4 --epochs=1 --loggers=[]"
    steps = "--iterations=2 --batch_size=2 --min_size=64 --max_size=96 --detector.rpn_proposals=30"
    images, train, val = (
        f"{scenes}/{part}" for part in ("images/val", "annotations/train.json", "annotations/val.json")
    )
    lines = [
        f"statistics --data {images} --workers 1",
        f"propose --data {images} --out {out}/boxes.parquet --method grid --workers 1",
        f"pack --data {images} --out {out}/packed --proposals {out}/boxes.parquet",
        f"pretrain --data {images} --out {out}/pre --recipe soco-small {small} {views}",
        f"finetune --data {train} --val {val} --out {out}/fine --weights {out}/pre {small} {steps}",
        f"evaluate --run {out}/fine --data {val} --out {out}/evaluation",
        f"predict --run {out}/fine --data {images} --out {out}/predictions",
        f"export --run {out}/pre --to torchvision-backbone --out {out}/backbone.safetensors",
        f"report --run {out}/pre {out}/fine --out {out}/report.html",
        f"convert --file {out}/old.pth --out {out}/converted.safetensors",
        f"publish --run {out}/pre --to {out}/published",
        f"probe --weights {out}/pre --data {images} --out {out}/probe --kind correspondence --size 65 --workers 0",
        f"compare --data {images} --labels {train} --val {val} --out {out}/compare --methods none,{out}/pre --seeds 1 "
        f"--label-fraction 1 {small.replace('--', '--pretrain.')} {steps.replace('--', '--finetune.')} "
        "--finetune.workers 0",
        f"figures --run {out}/fine --data {images} --kinds curves,pca",
        "recipes",
    ]
    for line in lines:
        code = main(line.split())
        if code:
            sys.exit(f"{line.split()[0]}: exit code {code}")
        print(f"DONE {line.split()[0]}", flush=True)


def attempt() -> None:
    """What must be noticed."""
    socket.create_connection(("127.0.0.1", 9), timeout=1)


if __name__ == "__main__":
    print(f"KERNEL {deny_in_kernel()}", flush=True)
    deny_in_python()
    attempt() if sys.argv[1] == "attempt" else a_day(*sys.argv[1:])
