"""Broken and hostile inputs for every reader, thousands of each kind: `make fuzz`, or --kind jpeg --show for one.

An input may be read, if what comes out is sound, or refused in a line that names the file. Anything else is a fault:
another exception, more than 30 seconds of a core, more than 4 GiB, a dead process, or a result that cannot be right.
Input n of a kind depends on the seed, the kind and n alone; each kind runs in a process of its own.
"""

import argparse
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import fuzz_files
import fuzz_images
import fuzz_labels
from fuzz_mutations import Case

from boxless.data.images import BadImage
from boxless.errors import UserError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from environment import facts

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
KINDS: dict[str, tuple[int, Case]] = {**fuzz_images.KINDS, **fuzz_labels.KINDS, **fuzz_files.KINDS}
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SECONDS = 30
MEMORY = 4 << 30


@dataclass
class Tally:
    """What became of the inputs of a kind; `faults` are (number, what)."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    grown_mib: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        return {
            "inputs": sum(self.outcomes.values()),
            "read": self.outcomes["read"],
            "refused": self.outcomes["refused"],
            "faults": len(self.faults),
            "seconds": round(self.seconds, 1),
            "slowest_seconds": round(self.slowest, 2),
            "memory_grown_mib": self.grown_mib,
            **({"first_faults": [list(each) for each in self.faults[:5]]} if self.faults else {}),
        }


class Late(BaseException):
    """An input took too long."""


def attempt(case: Case, random: Random, folder: Path, show: bool = False) -> str:
    """What becomes of one input: "read", "refused", or a fault in a few words."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        case(random, folder)
        return "read"
    except (UserError, BadImage) as error:
        return "refused" if str(folder) in str(error) else f"names no file: {error!s:.200}"
    except Late:
        return f"hang: more than {SECONDS} s of a core"
    except Exception as error:
        if show:
            traceback.print_exc()
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "boxless" in f.filename] or [None]
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames[-1] else ""
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}{place}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def run_kind(kind: str, count: int, seed: int, folder: Path, show: bool) -> Tally:
    """All inputs of a kind, in processes that are started again where one dies."""
    tally, first, start = Tally(), 0, time.monotonic()
    while first < count:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(kind, range(first, count), seed, folder, show, writer)
        os.close(writer)
        first = _follow(reader, child, first, tally)
        os.close(reader)
    tally.seconds = time.monotonic() - start
    return tally


def _work(kind: str, numbers: range, seed: int, folder: Path, show: bool, writer: int) -> None:
    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGPROF, late)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, virtual + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    if not show:  # libraries written in C complain of their own
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    case = KINDS[kind][1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        place = folder / f"{kind}-{number}"
        place.mkdir()
        start = time.process_time()
        outcome = attempt(case, Random(f"{seed}/{kind}/{number}"), place, show)
        seconds = time.process_time() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writer, (json.dumps([number, outcome, seconds, grown >> 10]) + "\n").encode())
        shutil.rmtree(place, ignore_errors=True)
        if number % 50 == 0:
            gc.collect()
    os._exit(0)


def _follow(reader: int, child: int, first: int, tally: Tally) -> int:
    """Take in what a process says until it ends; returns the number of the input that comes next."""
    text = b""
    why = ""
    while True:
        if not select.select([reader], [], [], 6 * SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            why = f"hang: more than {6 * SECONDS} s inside a library"
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        *lines, text = (text + piece).split(b"\n")
        for line in lines:
            number, outcome, seconds, grown = json.loads(line)
            first = number + 1
            tally.outcomes[outcome if outcome in ("read", "refused") else "fault"] += 1
            if outcome not in ("read", "refused"):
                tally.faults.append((number, outcome))
            tally.slowest = max(tally.slowest, seconds)
            tally.grown_mib = max(tally.grown_mib, grown)
    _, status = os.waitpid(child, 0)
    if status:
        tally.outcomes["fault"] += 1
        tally.faults.append((first, why or f"died: signal {os.WTERMSIG(status)}, exit {status >> 8}"))
        return first + 1
    return first


def write_table(results: dict[str, Any]) -> None:
    """Put a table of the results between its marks in the page."""
    marks = "<!-- written by tests/stress/fuzz.py -->\n", "<!-- end of tests/stress/fuzz.py -->"
    before, _, rest = PAGE.read_text().partition(marks[0])
    rows = ["| kind | inputs | read | refused | faults |", "| --- | ---: | ---: | ---: | ---: |"]
    columns = ("inputs", "read", "refused", "faults")
    for kind, told in results["kinds"].items():
        rows.append(f"| {kind} | " + " | ".join(f"{told[name]:,}" for name in columns) + " |")
    sums = [sum(told[name] for told in results["kinds"].values()) for name in columns]
    rows.append("| **all** | " + " | ".join(f"**{value:,}**" for value in sums) + " |")
    PAGE.write_text(before + marks[0] + "\n".join(rows) + "\n" + marks[1] + rest.partition(marks[1])[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="*", choices=KINDS, default=[])
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of each kind")
    parser.add_argument("--only", type=int, help="this input alone")
    parser.add_argument("--show", action="store_true", help="print where faults come from")
    parser.add_argument("--out", type=Path, help=f"default {RESULTS.name} where all kinds run in full")
    arguments = parser.parse_args()
    folder = Path(mkdtemp(prefix="boxless-fuzz-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    tallies = {}
    try:
        for kind in arguments.kind or KINDS:
            if arguments.only is not None:
                place = folder / f"{kind}-{arguments.only}"
                place.mkdir()
                signal.signal(signal.SIGPROF, signal.SIG_IGN)
                print(attempt(KINDS[kind][1], Random(f"{arguments.seed}/{kind}/{arguments.only}"), place, True))
                continue
            count = max(1, round(KINDS[kind][0] * arguments.share))
            tally = tallies[kind] = run_kind(kind, count, arguments.seed, folder, arguments.show)
            told = tally.as_json()
            print(f"{kind:12} " + "  ".join(f"{name} {told[name]}" for name in list(told)[:7]), flush=True)
            for what, times in Counter(what.partition(" at ")[2] or what[:70] for _, what in tally.faults).items():
                number, example = next(each for each in tally.faults if what in each[1])
                print(f"    {times:5} x, such as --only {number}: {example}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine = facts("boxless", "pillow", "numpy", "pyarrow", "torch", "safetensors", "pyyaml")
    results = {"machine": machine, "seed": arguments.seed, "kinds": {k: t.as_json() for k, t in tallies.items()}}
    out = arguments.out or (None if arguments.kind or arguments.share != 1 else RESULTS)
    if out and tallies:
        out.write_text(json.dumps(results, indent=1) + "\n")
        if out == RESULTS:
            write_table(results)
    print(f"{sum(sum(t.outcomes.values()) for t in tallies.values()):,} inputs")
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
