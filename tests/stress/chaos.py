"""What survives kills, full disks, vanished drives, dead workers and power cuts: the tables of docs/reliability.md.

    make chaos                                   # all, about twenty minutes of a core
    python tests/stress/chaos.py --only kill,lock --scale 0.4 --seed 7

Each fault is tried on real commands with small data, at random moments. The command is then given again until it comes
to its end, and what it leaves is compared with what an undisturbed one left: weights and files byte for byte. Processes
are forks of this one after its imports, so that fifty kills do not cost fifty imports of PyTorch. Exits with 1 where
anything did not survive or came out otherwise. As root, disks are filled for real (a tmpfs of a few hundred KB).
"""

import argparse
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chaos_cases import Case, Started, cases, ran, rooms, start, wait_for
from power_cut import leave, recorded

import boxless
from boxless.data import retry
from boxless.files import write_text
from boxless.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from environment import facts, write

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "chaos.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tests/stress/chaos.py -->", "<!-- end of tests/stress/chaos.py -->"
TRAINING = ("pretrain", "finetune")


@dataclass
class Count:
    """Tries of a fault, those survived, those whose result was that of an undisturbed run, and what went wrong."""

    tried: int = 0
    survived: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, survived: bool, equal: bool, note: str = "", tries: int = 1) -> None:
        """Take note of tries that ended alike."""
        self.tried += tries
        self.survived += tries * survived
        self.equal += tries * (survived and equal)
        if not (survived and equal):
            self.wrong.append(note.replace(f"{ROOT}/", ""))
            print(f"  WRONG: {note}", file=sys.stderr)


class Chaos:
    """Faults, with their counts by what they are called in the table."""

    def __init__(self, room: Path, scale: float, only: list[str], keep: Callable[[dict[str, Count]], None]) -> None:
        self.room, self.scale = room, scale
        self.cases = {name: case for name, case in cases(room).items() if name in only}
        self.counts: dict[str, Count] = {}
        self.whole: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.rooms = self._rooms(keep)
        for case in self.cases.values():
            began = time.monotonic()
            done = ran(self._line(case, room / case.name), room / f"{case.name}.log")
            if done.code:
                raise SystemExit(f"{case.name}: undisturbed it ended with {done.code}:\n{done.said()}")
            self.seconds[case.name] = time.monotonic() - began
            self.whole[case.name] = case.result(room / case.name)
            print(f"{case.name}: {self.seconds[case.name]:.1f} s undisturbed", file=sys.stderr)

    def _rooms(self, keep: Callable[[dict[str, Count]], None]) -> Iterator[Path]:
        """A new folder for each try; what is known is kept before it begins."""
        for folder in rooms(self.room):
            keep(self.counts)
            yield folder

    def chosen(self, *names: str) -> list[str]:
        """Those of some commands that are to be disturbed."""
        return [name for name in names if name in self.cases]

    def times(self, usual: int) -> int:
        """How often to try."""
        return max(1, round(usual * self.scale))

    def _line(self, case: Case, out: Path, workers: int | None = None, data: Path | None = None) -> list[str]:
        usual = {"pretrain": 0, "finetune": 0, "propose": 1, "pack": 1}.get(case.name)
        more = {} if usual is None else {"workers": usual if workers is None else workers}
        return case.line(out, data, **more)

    def ends_alike(self, case: Case, out: Path, line: list[str], log: Path) -> tuple[bool, bool, str]:
        """Whether a command comes to its end, with the undisturbed result, and what it said."""
        done = ran(line, log)
        whole = done.code == 0 and "Traceback" not in done.said()
        equal = whole and case.result(out) == self.whole[case.name]
        return whole, equal, f"{case.name}: ended with {done.code}, equal: {equal}: {done.said()[-600:]}"

    def kill(self) -> None:
        """SIGKILL and SIGTERM at random moments, up to three of them before the command is left to its end."""
        for case in self.cases.values():
            share = {"compare": 6, "pack": 14}.get(case.name, 11)
            for number, name in ((signal.SIGKILL, "kill -9"), (signal.SIGTERM, "SIGTERM")):
                count = self.counts.setdefault(f"{name}, {case.name}", Count())
                wanted = self.times(share if number == signal.SIGKILL else 3)
                late = 0
                while count.tried < wanted and late < 30:
                    late += self._killed(case, number, count, wanted)

    def _killed(self, case: Case, number: signal.Signals, count: Count, wanted: int) -> int:
        folder = next(self.rooms)
        out = folder / "out"
        trains = case.name in TRAINING or case.name in ("pack", "propose")
        line = self._line(case, out, workers=random.choice([1, 2]) if trains and random.random() < 0.3 else None)
        done, well, notes, late = 0, True, "", 0
        for _ in range(min(random.randint(1, 3), wanted - count.tried)):
            started = start(line, folder / "log")
            time.sleep(random.uniform(0.02, 1.0) * self.seconds[case.name])
            if not started.running():
                late = 1
                break
            started.send(number)
            code = started.wait()
            if code == 0:  # it was at its end
                break
            done += 1
            fine = code == -9 if number == signal.SIGKILL else code in (75, -15)
            if not fine or "Traceback" in started.said():
                well, notes = False, f"{case.name} after {number.name}: {code}: {started.said()[-500:]}"
        if done:
            survived, equal, said = self.ends_alike(case, out, line, folder / "log")
            count.add(well and survived, equal, notes or said, done)
        return late

    def disk(self) -> None:
        """A disk that is full at a random moment, then a larger one."""
        if os.geteuid() or not shutil.which("mount"):
            print("disk: not tried, needs root", file=sys.stderr)
            return
        for name in self.chosen("pretrain", "finetune", "propose", "pack"):
            case, count = self.cases[name], self.counts.setdefault(f"full disk, {name}", Count())
            most = sum(path.stat().st_size for path in (self.room / name).rglob("*") if path.is_file())
            while count.tried < self.times(4):
                folder = next(self.rooms)
                out = folder / "out"
                with mounted(folder, max(20_000, int(random.uniform(0.01, 1.0) * most))) as grow:
                    started = ran(self._line(case, out), Path(f"{folder}.log"))
                    if started.code == 0:
                        continue
                    one = started.one_line()
                    grow()
                    survived, equal, said = self.ends_alike(case, out, self._line(case, out), Path(f"{folder}.again"))
                    count.add(
                        one and survived, equal, said if one else f"{name}: {started.code}: {started.said()[-900:]}"
                    )

    def worker(self) -> None:
        """A data worker that is killed."""
        for name in self.chosen(*TRAINING):
            case, count = self.cases[name], self.counts.setdefault(f"data worker killed, {name}", Count())
            for _ in range(self.times(4)):
                folder = next(self.rooms)
                line = self._line(case, folder / "out", workers=2)
                started = start(line, folder / "log")
                wait_for(lambda: len(started.children()) == 2, started)  # noqa: B023
                time.sleep(random.uniform(0, 0.3) * self.seconds[name])
                for pid in started.children()[:1]:
                    os.kill(pid, signal.SIGKILL)
                if started.wait(240) == 0:
                    continue  # the worker had done its work
                one = started.one_line()
                survived, equal, said = self.ends_alike(case, folder / "out", line, folder / "log2")
                count.add(one and survived, equal, said if one else f"{name}: {started.code}: {started.said()[-900:]}")

    def rank(self) -> None:
        """One of two processes that is killed, and both started again."""
        if "pretrain" not in self.cases:
            return
        case = self.cases["pretrain"]
        count = self.counts.setdefault("one of two processes killed, pretrain", Count())

        def pair(out: Path, log: str) -> list[Started]:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                port = str(found.getsockname()[1])
            common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            return [
                start(self._line(case, out), Path(f"{log}-{n}"), RANK=str(n), LOCAL_RANK=str(n), **common)
                for n in (0, 1)
            ]

        folder = self.room / "pair"
        folder.mkdir()
        codes = [each.wait(300) for each in pair(folder / "out", str(folder / "log"))]
        whole = case.result(folder / "out")
        for number in range(self.times(4)):
            folder = next(self.rooms)
            both = pair(folder / "out", str(folder / "log"))
            wait_for(lambda: list((folder / "out").glob("checkpoints/step-*.pt")), both[0])  # noqa: B023
            time.sleep(random.uniform(0, 0.2))
            lost, left = both[number % 2], both[1 - number % 2]
            lost.send(signal.SIGKILL)
            lost.wait()
            left.wait(240)
            again = [each.wait(300) for each in pair(folder / "out", str(folder / "again"))]
            equal = again == codes == [0, 0] and case.result(folder / "out") == whole
            count.add(left.one_line() and again == [0, 0], equal, f"{left.code}, {again}: {left.said()[-900:]}")

    def drive(self) -> None:
        """A folder of images that vanishes while it is read, and returns soon, or after the command has given up."""
        for name in self.chosen("pretrain", "finetune", "propose", "pack"):
            case = self.cases[name]
            for stays, word in ((False, "returns"), (True, "stays away")):
                count = self.counts.setdefault(f"folder of images vanishes and {word}, {name}", Count())
                late = 0
                while count.tried < self.times(3) and late < 20:
                    late += self._vanished(case, stays, count)

    def _vanished(self, case: Case, stays: bool, count: Count) -> int:
        folder = next(self.rooms)
        away = folder / "away"
        (folder / "mnt").mkdir()
        data = folder / "mnt" / "data"
        shutil.copytree(case.data, data)
        line = self._line(case, folder / "out", data=data)

        def patience() -> None:
            retry.PATIENCE = 0.5 if stays else 60.0

        started = start(line, folder / "log", before=patience)
        time.sleep(random.uniform(0.1, 0.9) * self.seconds[case.name])
        images = data / "images" if (data / "images").is_dir() else data
        images.rename(away)
        seen = wait_for(lambda: "has vanished" in started.said(), started, 20)
        if stays:
            started.wait(240)
        away.rename(images)
        code = started.wait(240)
        if not seen:
            return 1  # all was read already, or nothing yet
        fine = started.one_line() if stays else code == 0
        survived, equal, said = self.ends_alike(case, folder / "out", line, folder / "log2")
        count.add(fine and survived, equal, said if fine else f"{case.name}: {code}: {started.said()[-900:]}")
        return 0

    def damage(self) -> None:
        """A checkpoint that is cut, altered or emptied between a kill and the next start."""
        for name in self.chosen(*TRAINING):
            case, count = self.cases[name], self.counts.setdefault(f"newest checkpoint damaged, {name}", Count())
            for how in [("cut", "flipped", "empty")[n % 3] for n in range(self.times(3))]:
                folder = next(self.rooms)
                out = folder / "out"
                started = start(self._line(case, out), folder / "log")
                if not wait_for(lambda: len(list(out.glob("checkpoints/step-*.pt"))) == 2, started):  # noqa: B023
                    continue
                started.send(signal.SIGKILL)
                started.wait()
                newest = checkpoints(out / "checkpoints")[-1]
                content = bytearray(newest.read_bytes())
                content[len(content) // 2] ^= 4
                newest.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[how])
                survived, equal, said = self.ends_alike(case, out, self._line(case, out), folder / "log")
                found = "its checksum does not hold" in (folder / "log").read_text()
                count.add(survived and found, equal, said)

    def lock(self) -> None:
        """A second process on a folder that another one works on."""
        for case in self.cases.values():
            count = self.counts.setdefault(f"second process on one folder, {case.name}", Count())
            for _ in range(self.times(2)):
                folder = next(self.rooms)
                out = folder / "out"
                started = start(self._line(case, out), folder / "log")
                wait_for(lambda: [*out.glob("lock"), *out.glob(".*lock")], started)  # noqa: B023
                second = ran(self._line(case, out), folder / "second")
                code = started.wait()
                told = second.one_line() and f"process {started.pid} on" in second.said()
                equal = code == 0 and case.result(out) == self.whole[case.name]
                count.add(told and code == 0, equal, f"{case.name}: {code}, {second.code}: {second.said()[-500:]}")

    def power(self) -> None:
        """A power cut at each moment of writing checkpoints and a file, on a file system that forgets all it may."""
        if "pretrain" not in self.cases:
            return
        count = self.counts.setdefault("power cut (simulated), checkpoint", Count())
        folder = self.room / "power"
        folder.mkdir()
        for step in range(1, 8):
            with recorded(folder) as disk:
                save_checkpoint(folder, step, {"w": torch.full((500,), float(step))})
            for what, content in disk.ends():
                leave(self.room / "left", content)
                state = load_checkpoint(self.room / "left")
                found = 0 if state is None else int(state["step"])
                equal = state is None or bool((state["w"] == found).all())
                count.add(found in (step - 1, step), equal, f"step {step}, {what}: {found}")
        count = self.counts.setdefault("power cut (simulated), other files", Count())
        folder = self.room / "files"
        folder.mkdir()
        (folder / "file").write_text("0")
        for number in range(1, 6):
            with recorded(folder) as disk:
                write_text(folder / "file", str(number))
            for what, content in disk.ends():
                found = content["file"].decode()
                count.add(found in (str(number - 1), str(number)), True, f"{what}: {found!r}")

    def same(self) -> None:
        """No fault: other numbers of data workers, and shards in place of the folder."""
        for name, numbers in {"pretrain": (1, 2, 3), "finetune": (1, 2), "propose": (2,), "pack": (2,)}.items():
            if name not in self.cases:
                continue
            words = ", ".join(map(str, numbers))
            count = self.counts.setdefault(f"none: {words} workers, {name}", Count())
            for workers in numbers:
                out = next(self.rooms) / "out"
                line = self._line(self.cases[name], out, workers)
                count.add(*self.ends_alike(self.cases[name], out, line, out.parent / "log"))
        if "pretrain" in self.cases:
            self._from_shards(self.cases["pretrain"])

    def _from_shards(self, case: Case) -> None:
        count = self.counts.setdefault("none: shards in place of the folder, pretrain", Count())
        folder = next(self.rooms)
        images = str(case.data / "images" / "unlabelled")
        ran(["pack", "--data", images, "--out", str(folder / "shards")], folder / "log")
        for workers in (0, 2):
            out = folder / f"out-{workers}"
            line = self._line(case, out, workers, folder / "shards" / "manifest.json")
            count.add(*self.ends_alike(case, out, line, folder / "log"))


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of some bytes on a folder; call what it gives to make it large."""
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def table(rows: dict[str, dict[str, Any]], machine: str) -> str:
    """The counts as a table of Markdown."""
    lines = ["| fault | tried | survived | result equal |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {row['tried']} | {row['survived']} | {row['equal']} |" for name, row in rows.items()]
    total = [sum(row[key] for row in rows.values()) for key in ("tried", "survived", "equal")]
    lines.append(f"| **all** | **{total[0]}** | **{total[1]}** | **{total[2]}** |")
    return "\n".join([machine, "", *lines])


def put(page: Path, text: str) -> None:
    """Put a text between the marks of a page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: expected the lines {BEGIN!r} and {END!r}")
    write_text(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


CASES = ("pretrain", "finetune", "propose", "pack", "compare")
FAULTS = ("kill", "disk", "worker", "rank", "drive", "damage", "lock", "power", "same")


def import_all() -> None:
    """Import what forks would import, each again, and perhaps from files that have changed meanwhile."""
    for module in pkgutil.walk_packages(boxless.__path__, "boxless."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)


def main(argv: list[str] | None = None) -> int:
    """Try the faults and write down what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(FAULTS), help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as often as usual")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default drawn")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(argv)
    seed = given.seed if given.seed is not None else random.randrange(10**6)
    random.seed(seed)
    import_all()
    os.environ["BOXLESS_PROGRESS"] = "none"
    before = json.loads(given.results.read_text())["rows"] if given.results.exists() else {}
    known = facts("torch")
    rows: dict[str, Any] = {}

    def keep(counts: dict[str, Count]) -> None:
        rows.update({**before, **{name: vars(count) | {"seed": seed} for name, count in counts.items()}})
        write(given.results, {**known, "rows": rows})

    with tempfile.TemporaryDirectory(prefix="boxless-chaos-") as room:
        os.environ["XDG_CACHE_HOME"] = f"{room}/cache"
        chaos = Chaos(Path(room), given.scale, given.cases.split(","), keep)
        for name in given.only.split(","):
            print(f"{name} ...", file=sys.stderr)
            getattr(chaos, name)()
            keep(chaos.counts)
    text = table(rows, f"{known['cores']} cores of {known['processor']}, PyTorch {known['torch']}.")
    put(given.page, text)
    print(text)
    return int(any(row["wrong"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
