"""Ways to break bytes, JSON and text, drawn at random."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Case = Callable[[Random, Path], None]
"""Writes one input into a folder of its own and has it read; returns where what was read is sound."""

LENGTHS = (0, 1, 2, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
NAMES = (
    "../outside.png",
    "/etc/passwd",
    "/dev/zero",
    "a/../../outside.png",
    "..",
    ".",
    "",
    " ",
    "\0",
    "a\0b.png",
    "x" * 300 + ".png",
    "d/" * 3000 + "x.png",
    "\ud800.png",
    "<img src=x onerror=alert(1)>",
    "line\nbreak.png",
    "\x1b[31mred.png",
    "http://127.0.0.1:9/x.png",
    "C:\\x.png",
    "写真.png",
)


def broken_bytes(random: Random, data: bytes, other: bytes = b"") -> bytes:
    """Bytes with a few bits flipped, cut, doubled, overwritten, or mixed with another file's."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(out)) if out else 0
        if random.random() < 0.5:  # the beginning of a file decides most
            at = min(at, random.randrange(200))
        match random.randrange(9):
            case 0 | 1 | 2 if out:
                out[min(at, len(out) - 1)] ^= 1 << random.randrange(8)
            case 3:
                del out[at:]
            case 4:
                del out[at : at + random.choice((1, 2, 4, 64))]
            case 5:
                out[at:at] = random.randbytes(random.choice((1, 2, 4, 64, 1000)))
            case 6:
                size = random.choice((2, 4, 8))
                number = random.choice(LENGTHS) & (1 << 8 * size) - 1
                out[at : at + size] = number.to_bytes(size, random.choice(("big", "little")))
            case 7:
                out[at : at + 64] = out[at : at + 64] * random.choice((2, 50))
            case 8:
                cut = random.randrange(len(other) + 1)
                out[at:] = other[cut:]
    return bytes(out)


def hostile(random: Random) -> Any:
    """A value that nobody expects."""
    return random.choice(
        (
            None, True, False, "", "7", -1, 0, 1, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
            10**8, 10**19, 2**31, 2**63, -(2**63), 10**400, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [0] * 4,
            [1e9] * 4, [float("nan")] * 4, ["1", "2", "3", "4"], [[1, 2], [3, 4]], "x" * 5000,
            [[[[[[[[1]]]]]]]], *NAMES,
        )
    )  # fmt: skip


def broken_json(random: Random, content: Any) -> Any:
    """A copy of JSON values with up to four places changed: a key gone, a value of another kind, an entry twice."""
    root = [json.loads(json.dumps(content))]
    for _ in range(random.choice((1, 1, 2, 4))):
        holder, key = random.choice(_places(root))
        match random.randrange(6):
            case 0 if holder is not root:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 2 if isinstance(holder[key], int | float) and abs(holder[key]) < 1e300:
                holder[key] = holder[key] * random.choice((-1, 1e-9, 1e3, 1e12)) + random.choice((-1, 0, 0.5, 1))
            case 3 if isinstance(holder[key], list) and holder[key]:
                random.shuffle(holder[key])
                holder[key] *= random.choice((0, 1, 2, 30))
            case 4 if isinstance(holder, dict):
                holder[random.choice(("id", "name", "size", "__class__", "\ud800", ""))] = hostile(random)
            case _:
                holder[key] = hostile(random)
    return root[0]


def json_bytes(random: Random, content: Any) -> bytes:
    """Its text, now and then damaged as text too."""
    text = json.dumps(content).encode()
    match random.randrange(12):
        case 0:
            return broken_bytes(random, text)
        case 1:
            depth = random.choice((100, 1100, 100_000))
            return text.replace(b"[", b"[" * depth, 1) if random.random() < 0.5 else text[:-1] + b',"x":' + b"[" * depth
        case 2:
            return b"\xef\xbb\xbf" + text
        case 3:
            return text.decode().encode("utf-16")
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found
