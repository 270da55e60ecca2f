"""All else that is read: recipes, weights, tables of proposals, shards, folders of runs, and the command line."""

import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import shutil
import struct
import sys
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from fuzz_labels import _images, _yaml_bomb
from fuzz_mutations import LENGTHS, NAMES, Case, broken_bytes, broken_json, hostile, json_bytes
from safetensors.torch import save

import boxless.tasks.pretrain  # noqa: F401 (before memory is limited)
from boxless.cli import COMMANDS, main
from boxless.commands.pack import pack
from boxless.data.images import decode
from boxless.data.open import index_images
from boxless.data.shards.read import open_shards
from boxless.errors import UserError
from boxless.interop.files import converted, read_tensors
from boxless.proposals.baselines import Grid
from boxless.proposals.generate import make_proposals
from boxless.proposals.table import ProposalTable
from boxless.recipes.load import describe, load
from boxless.recipes.overrides import keys
from boxless.report.build import make_page, read_reports

sys.path.append(str(Path(__file__).parents[1] / "report"))
from fake_runs import detected, finetuned, pictured, pretrained

RECIPES = ("soco-small", "byol-small", "faster-rcnn-fpn", "compare-small")


def _recipe(random: Random, folder: Path) -> None:
    name = random.choice(RECIPES)
    given = yaml.safe_load(describe(load(name, object), name))
    path = folder / "recipe.yaml"
    if random.random() < 0.7:
        content = broken_json(random, given)
        text = json.dumps(content)
        if random.random() < 0.5:
            text = text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
        path.write_text(text)
    elif random.random() < 0.5:
        path.write_bytes(_yaml_bomb(random, given))
    else:
        path.write_bytes(broken_bytes(random, yaml.safe_dump(given).encode()))
    recipe = load(path, object)
    for key, entry in keys(recipe).items():
        values = entry.value if isinstance(entry.value, tuple) else (entry.value,)
        assert all(math.isfinite(value) for value in values if isinstance(value, float)), f"{key} is {entry.value}"
    again = folder / "again.yaml"
    again.write_text(describe(recipe, path))
    assert load(again, object) == recipe


class _Code:
    """A pickle that writes a file when it is loaded by a loader that trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _tensors() -> dict[str, torch.Tensor]:
    numbers = torch.arange(12.0)
    return {"conv1.weight": numbers.view(3, 4), "bn1.running_mean": torch.ones(4), "steps": torch.tensor(3)}


def _bounded(found: dict[str, torch.Tensor], file: Path) -> None:
    assert found and all(type(key) is str for key in found)
    total = 0
    for value in found.values():
        assert value.layout == torch.strided and value.device.type == "cpu"
        total += value.numel() * value.element_size()
    assert total <= 4 * file.stat().st_size, f"{total} bytes out of a file of {file.stat().st_size}"


def _safetensors(random: Random, folder: Path) -> None:
    data = save(_tensors(), {"boxless.parts": "backbone"})
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.6:
        header = json_bytes(random, broken_json(random, json.loads(data[8 : 8 + size])))
        length = random.choice((len(header),) * 8 + LENGTHS)
        data = (length % 2**64).to_bytes(8, "little") + header + data[8 + size :]
    else:
        data = broken_bytes(random, data)
    path = folder / "weights.safetensors"
    path.write_bytes(data)
    _bounded(read_tensors(path), path)


def _torch_content(random: Random, folder: Path) -> object:
    marker, one = folder / "ran", torch.ones(1)
    odd: list[Any] = [
        _Code(marker), {"model": _Code(marker)}, one.expand(10**6, 10**5), {1: one}, {(1, 2): one}, 7, "text", None,
        torch.ones(2, device="meta"), torch.sparse_coo_tensor([[0]], [1.0], (10**9,)), torch.nn.Parameter(one), [one],
        torch.quantize_per_tensor(one, 0.1, 0, torch.quint8), torch.tensor([float("nan")]), torch.ones(0, 10**12),
        torch.nested.nested_tensor([one, torch.ones(2)]), torch.complex(one, one), np.ones(3), Path("x"), {"model": {}},
    ]  # fmt: skip
    tensors: dict[Any, Any] = dict(_tensors())
    for _ in range(random.choice((0, 1, 1, 2))):
        tensors[random.choice(("odd", "conv1.weight", 5, None, "\0"))] = random.choice(odd)
    return random.choice(
        (
            tensors,
            {"state_dict": tensors, "epoch": 3},
            {"model": tensors, "args": random.choice(odd)},
            random.choice(odd),
        )
    )


def _torch(random: Random, folder: Path) -> None:
    buffer = io.BytesIO()
    content = _torch_content(random, folder)
    torch.save(content, buffer, _use_new_zipfile_serialization=random.random() < 0.7)
    data = buffer.getvalue()
    if random.random() < 0.5:
        data = broken_bytes(random, data)
    elif zipfile.is_zipfile(buffer) and random.random() < 0.4:
        data = _rezipped(random, data)
    path = folder / random.choice(("weights.pth", "weights.ckpt", "weights.pt", "weights.bin"))
    path.write_bytes(data)
    _weights(random, path)


def _weights(random: Random, path: Path) -> None:
    try:
        found = read_tensors(path) if random.random() < 0.5 else converted(path)[0]
        _bounded(found, path)
        path.with_suffix(".safetensors").write_bytes(save({k: v.clone().contiguous() for k, v in found.items()}))
    finally:
        assert not (path.parent / "ran").exists(), "code of a file was run"


def _rezipped(random: Random, data: bytes) -> bytes:
    """The same archive, compressed, with a part that grows a thousandfold, or with names that lead out of it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", random.choice((0, 8))) as new:
        for name in old.namelist():
            body = old.read(name)
            if random.random() < 0.3:
                body = random.choice((broken_bytes(random, body), bytes(3 * 10**7), b""))
                if len(body) > 10**7:
                    new.writestr(name, body, zipfile.ZIP_DEFLATED)
                    continue
            new.writestr(random.choice((name,) * 9 + ("../../x", "/etc/x")), body)
    return out.getvalue()


def _pickle(random: Random, folder: Path) -> None:
    """Plain pickles of arrays, as Detectron2 has them, and programs in the language of pickles."""
    arrays: dict[Any, Any] = {"conv1_w": np.ones((2, 3), np.float32), "lr": np.float64(1)}
    extra = (
        _Code(folder / "ran"),
        np.array([{}], object),
        np.zeros(2, "f4,i4"),
        np.array(["a"]),
        [1],
        {"x": 1},
        hostile(random),
    )
    if random.random() < 0.4:
        arrays["extra"] = random.choice(extra)
    protocol = random.choice((0, 2, 2, 4))
    data = pickle.dumps(random.choice(({"model": arrays}, {"blobs": arrays}, arrays)), protocol)
    if protocol == 2 and random.random() < 0.5:
        data = data.replace(b"numpy._core", b"numpy.core")
    find = b"cnumpy._core.multiarray\n_reconstruct\n"
    programs = (
        b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".",
        b"\x80\x02" + find + b"(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR.",
        b"\x80\x02cos\nsystem\n(U\x02idtR.",
        b"\x80\x02c_codecs\nencode\n(X\x01\0\0\0xX\x03\0\0\0hextR.",
        b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02]" + b"]a" * 50_000 + b".",
        b"\x80\x02cnumpy\nndarray\n(J\x00\x00\x00\x01\x85cnumpy\ndtype\nU\x01O\x85RU\x08AAAAAAAAtR.",
        b"\x80\x02K\x01" + b"\x86" * 3 + b".",
        b"\x80\x02]q\x00" + b"(h\x00h\x00tq\x00" * 60 + b".",
    )
    if random.random() < 0.2:
        data = random.choice(programs)
    elif random.random() < 0.4:
        ops = [(op, at) for op, _, at in pickletools.genops(data)]
        at = random.choice(ops)[1]
        data = (
            data[:at]
            + random.choice((b"", b"0", b"b", b"R", b"\x81", b"u", b"N", data[at : at + 9] * 2))
            + data[at + 1 :]
        )
    elif random.random() < 0.7:
        data = broken_bytes(random, data)
    path = folder / "weights.pkl"
    path.write_bytes(data)
    _weights(random, path)


@cache
def _kept() -> Path:
    """A folder of images with a table of boxes and shards of both, that inputs are made from."""
    folder = Path(mkdtemp(prefix="boxless-fuzz-kept-"))
    _images(folder / "images", "a.png", "b.png", "sub/c.png")
    make_proposals(index_images(folder / "images"), folder / "boxes.parquet", Grid(), workers=1, quiet=True)
    pack(str(folder / "images"), str(folder / "packed"), str(folder / "boxes.parquet"), 1, quiet=True)
    return folder


def _parquet(random: Random, folder: Path) -> None:
    path = folder / "boxes.parquet"
    data = (_kept() / "boxes.parquet").read_bytes()
    honest = random.random() < 0.5
    if honest:  # damage, which the file's own checksums must show
        path.write_bytes(broken_bytes(random, data))
    else:
        pq.write_table(_odd_table(random, pq.read_table(io.BytesIO(data))), path)
    index = index_images(_kept() / "images")
    table = ProposalTable.open(path)
    if honest and path.read_bytes() != data:
        clean = ProposalTable.open(_kept() / "boxes.parquet")
        same = np.array_equal(table.values, clean.values) and table.keys.equals(clean.keys)
        assert same and np.array_equal(table.sizes, clean.sizes), "damaged data were read as sound"
    try:
        boxes = table.aligned_to(index)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for row in range(len(index)):
        own = boxes.boxes(row)
        assert own.dtype == np.float32 and own.shape[1] == 4 and np.isfinite(own).all()
        assert (own >= 0).all() and (own[:, 2:] > own[:, :2]).all() and own.max(initial=0) < 1e7


def _odd_table(random: Random, table: pa.Table) -> pa.Table:
    names = table.column_names
    number = random.randrange(len(names))
    kind = table.schema.field(number).type
    values = table.column(number).to_pylist()
    match random.randrange(5):
        case 0:
            return table.drop_columns([names[number]])
        case 1:
            values[random.randrange(len(values))] = None
        case 2:
            odd = (
                [1.0, 2.0, 3.0],
                [float("nan")] * 4,
                [float("inf")] * 4,
                [9.0, 9.0, 1.0, 1.0],
                [-5.0, 0.0, 5.0, 5.0],
                [1.0] * 6,
                [],
            )
            values = table["boxes"].to_pylist()
            values[random.randrange(len(values))] = list(random.choice(odd))
            number, kind = names.index("boxes"), pa.list_(pa.float32())
        case 3:
            kind = random.choice(
                (pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int64()), pa.large_list(pa.float32()))
            )
            values = [None] * len(values)
        case 4:
            metadata = {b"boxless.proposals": random.choice((b"{", b"[]", b"7", b"null", b"{}", b"[" * 10**5, b"\xff"))}
            return table.slice(0, random.choice((0, 1, 3))).replace_schema_metadata(metadata)
    return table.set_column(number, pa.field(names[number], kind), pa.array(values, kind))


def _shards(random: Random, folder: Path) -> None:
    place = folder / "packed"
    shutil.copytree(_kept() / "packed", place)
    (shard,) = place.glob("*.tar")
    index, manifest = place / "index.arrow", place / "manifest.json"
    what = random.choice(("manifest", "index", "rows", "shard", "shard"))
    if what == "manifest":
        manifest.write_bytes(json_bytes(random, broken_json(random, json.loads(manifest.read_text()))))
    elif what == "rows":
        _odd_rows(random, index)
    else:
        file = index if what == "index" else shard
        file.write_bytes(broken_bytes(random, file.read_bytes()))
    if what != "manifest" and random.random() < 0.8:  # whoever means harm mends the checksums too
        told = json.loads(manifest.read_text())
        for entry, file in ((told["index"], index), (told["shards"][0], shard)):
            entry |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        manifest.write_text(json.dumps(told))
    if what == "shard" and random.random() < 0.8:
        _right_sums(index, shard, manifest)
    opened = open_shards(place)
    assert all(Path(file.place).parent.resolve() == place.resolve() for file in opened.files)
    for row in range(len(opened)):
        decode(opened.path(row))
        boxes = opened.boxes(row)
        assert boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()


def _odd_rows(random: Random, index: Path) -> None:
    table = pa.ipc.open_file(index).read_all()
    name = random.choice(table.column_names)
    values = table[name].to_pylist()
    values[random.randrange(len(values))] = "../x" if name == "key" else random.choice((None, *LENGTHS))
    try:
        column = pa.array(values, table[name].type)
    except (pa.ArrowException, OverflowError):
        column = pa.array(values)
    changed = table.set_column(table.column_names.index(name), name, column)
    changed = random.choice((changed, table.drop_columns([name]), table.slice(0, 0), pa.concat_tables([table, table])))
    with pa.ipc.new_file(index, changed.schema) as writer:
        writer.write_table(changed)


def _right_sums(index: Path, shard: Path, manifest: Path) -> None:
    table, data = pa.ipc.open_file(index).read_all(), shard.read_bytes()
    sums = [
        zlib.crc32(data[o : o + s]) for o, s in zip(table["offset"].to_pylist(), table["size"].to_pylist(), strict=True)
    ]
    column = table.column_names.index("crc32")
    table = table.set_column(column, "crc32", pa.array(sums, pa.uint32()))
    with pa.ipc.new_file(index, table.schema) as writer:
        writer.write_table(table)
    told = json.loads(manifest.read_text())
    told["index"] |= {"bytes": index.stat().st_size, "sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(told))


WORDS = (
    "--", "-", "--data", "--out", "--run", "--runs", "--recipe", "--val", "--weights", "--init", "--epochs", "--seed",
    "--batch-size", "--port", "--watch", "--workers", "--file", "--score", "--optim.base_lr", "--method.size",
    "--help", "--methods", "--fractions", "--unknown", "--data=", "--=", "--optim", "nan", "inf", "-1", "0", "1e999",
    "9" * 5000, "true", "--name", "[1,2", "{", "a,b,,", "soco-small", "byol-r50", "null", "~", "*", "%s", "\n",
    "--labels", "--to", "--quiet",
)  # fmt: skip


def _cli(random: Random, folder: Path) -> None:
    command = random.choice(
        [name for name in COMMANDS if name not in ("demo", "publish")] * 3 + ["", "demo2", "--x", "-h"]
    )
    words = [random.choice((*WORDS, *NAMES, str(folder / "nothing"))) for _ in range(random.randrange(7))]
    words = [word.replace("\0", "") for word in words if "://" not in word]  # neither is ever an argument of a process
    out, told = io.StringIO(), io.StringIO()
    where = Path.cwd()
    os.chdir(folder)
    try:
        with redirect_stdout(out), redirect_stderr(told):
            code = main([command, *words])
    finally:
        os.chdir(where)
    assert code in (0, 2), f"exit code {code}: {told.getvalue()[-300:]}"
    if code == 2:
        lines = told.getvalue().splitlines()
        assert len(lines) == 1 and lines[0].startswith("boxless: error: "), f"{len(lines)} lines"
        raise UserError(f"{folder}: {lines[0]}")


class _Page(HTMLParser):
    """What a browser would run or load of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts, self.strange, self._inside = 0, [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self._inside = "json" if ("type", "application/json") in attrs else ""
        self.strange += [name for name, _ in attrs if name.startswith("on")]
        self.strange += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#"))]

    def handle_data(self, data: str) -> None:
        if self._inside:
            json.loads(data, parse_constant=lambda name: self.strange.append(name))
            self._inside = ""


@cache
def _told() -> tuple[Path, int]:
    """A folder with runs as they leave them, and how many scripts its page has."""
    folder = Path(mkdtemp(prefix="boxless-fuzz-kept-"))
    pretrained(folder / "pretrained", [3.0, 2.0, 1.0])
    finetuned(folder / "finetuned", {"cat": 0.5, "dog": None})
    detected(folder / "finetuned", pictured(folder / "images", 2), ("cat", "dog"))
    page = make_page(read_reports([str(folder / "pretrained"), str(folder / "finetuned")]))
    return folder, _Page(page).scripts


def _report(random: Random, folder: Path) -> None:
    told, scripts = _told()
    shutil.copytree(told, folder, dirs_exist_ok=True)
    for _ in range(random.choice((1, 1, 3))):
        run = folder / random.choice(("pretrained", "finetuned"))
        file = random.choice(sorted(path for path in run.iterdir() if path.is_file()))
        data = file.read_bytes()
        if file.suffix in (".json", ".yaml") and random.random() < 0.8:
            try:
                file.write_bytes(json_bytes(random, broken_json(random, json.loads(data))))
                continue
            except ValueError:  # broken already
                pass
        file.write_bytes(broken_bytes(random, data))
    text = make_page(read_reports([str(folder / "pretrained"), str(folder / "finetuned")]))
    page = _Page(text)
    assert page.scripts <= scripts and not page.strange, f"{page.scripts} scripts, {page.strange[:3]}"


KINDS: dict[str, tuple[int, Case]] = {
    "recipe": (300, _recipe),
    "safetensors": (1500, _safetensors),
    "torch": (1000, _torch),
    "pickle": (1500, _pickle),
    "parquet": (1200, _parquet),
    "shards": (1500, _shards),
    "cli": (1000, _cli),
    "report": (300, _report),
}
