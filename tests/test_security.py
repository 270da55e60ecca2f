"""Nothing that a file says is run, nothing leads out of its folder or into a page, and nobody is called."""

import ast
import hashlib
import http.client
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from boxless.cli import main
from boxless.data.annotations.read import read_labels
from boxless.data.images import decode
from boxless.data.open import index_images
from boxless.data.scenes import make_scenes
from boxless.data.shards.files import ShardFile
from boxless.data.shards.read import PackedSample, open_shards
from boxless.errors import UserError
from boxless.interop.files import converted, read_tensors
from boxless.proposals.table import ProposalTable
from boxless.recipes.load import load
from boxless.report.build import make_page, read_reports
from boxless.report.serve import make_server
from boxless.training.checkpoint import load_checkpoint
from boxless.untrusted import parse_yaml

sys.path.append(str(Path(__file__).parent / "report"))
from fake_runs import detected, finetuned, pictured, pretrained

SOURCE = Path(__file__).parents[1] / "src" / "boxless"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'{{7*7}}&lt;"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Attack:
    """Makes a folder when a pickle of it is loaded by a loader that trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


# No pickle


def _calls(tree: ast.AST) -> list[tuple[str, dict[str, Any]]]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg}) for call in calls]


def test_no_source_file_loads_pickles_or_code() -> None:
    forbidden = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "torch.jit.load", "eval", "exec"}
    forbidden |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "np.fromfile", "torch.hub.load"}
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        for name, keywords in _calls(ast.parse(file.read_text(encoding="utf-8"))):
            bad = name in forbidden or name.endswith((".extract", ".extractall")) or keywords.get("shell") == "True"
            bad |= name == "torch.load" and keywords.get("weights_only") != "True"
            bad |= name == "np.load" and keywords.get("allow_pickle") != "False"
            if bad:
                wrong.append(f"{file.relative_to(SOURCE)}: {name}")
    assert wrong == []


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt", ".bin", ".pkl", ".safetensors"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path: Path, suffix: str, form: str) -> None:
    marker, file = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content = {"state_dict": {"conv1.weight": torch.ones(1)}, "more": Attack(marker)}
    if form == "pickle":
        file.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}, "more": Attack(marker)}, 2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    for read in (read_tensors, converted):
        with pytest.raises(UserError, match="weights"):
            read(file)
    assert not marker.exists()
    load = pickle.loads if form == "pickle" else lambda data: torch.load(io.BytesIO(data), weights_only=False)
    load(file.read_bytes())
    assert marker.exists(), "the attack itself works"


def test_commands_refuse_malicious_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, file = tmp_path / "ran", tmp_path / "weights.ckpt"
    torch.save({"model": Attack(marker)}, file)
    make_scenes(tmp_path / "scenes", unlabelled=2, train=2, val=2, size=64)
    images, labels = tmp_path / "scenes" / "images" / "unlabelled", tmp_path / "scenes" / "annotations"
    small = ["--trunk.backbone=resnet18", "--trunk.fpn_channels=16", "--trunk.box_head_width=32", "--workers=0"]
    pretrain = f"pretrain --data {images} --out {tmp_path}/p --recipe byol-small --weights {file}".split()
    finetune = (
        f"finetune --data {labels}/train.json --val {labels}/val.json --out {tmp_path}/f --weights {file}".split()
    )
    for line in (
        [*pretrain, *small],
        [*finetune, *small],
        ["convert", "--file", str(file), "--out", str(tmp_path / "out.safetensors")],
        ["evaluate", "--run", str(file), "--data", f"{labels}/val.json"],
        ["export", "--run", str(file), "--to", "torchvision-backbone", "--out", str(tmp_path / "out.pth")],
    ):
        assert main(line) == 2, line
        assert capsys.readouterr().err.count("\n") >= 1
        assert not marker.exists(), line


def test_a_malicious_checkpoint_of_a_run_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 3, "module": Attack(tmp_path / "ran")}, tmp_path / "new.pt")
    digest = hashlib.sha256((tmp_path / "new.pt").read_bytes()).hexdigest()
    (tmp_path / "new.pt").rename(tmp_path / f"step-00000003-{digest[:16]}.pt")
    with pytest.raises(UserError, match="holds objects, which no checkpoint of boxless does"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\n(U\x07echo ranttR.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in the memo for which the reader in C clears 16 GB
        b"\x80\x04\x96" + bytes([0, 0, 0, 0, 0, 1, 0, 0]) + b"x.",  # a terabyte of bytes
        b"\x80\x02cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\n(U\x01Ot\x52U\x08AAAAAAAAt\x52.",  # an object made of bytes
        b"\x80\x02" + b"(" * 100_000 + b".",
    ],
    ids=["system", "memo", "bytes", "object", "marks"],
)
def test_programs_in_pickles_are_refused(tmp_path: Path, program: bytes) -> None:
    file = tmp_path / "weights.pkl"
    file.write_bytes(program)
    with pytest.raises(UserError, match=r"weights\.pkl"):
        converted(file)


def test_tensors_that_claim_more_than_the_file_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "claim.pth")
    with pytest.raises(UserError, match=r"more than a file of .* bytes holds"):
        read_tensors(tmp_path / "claim.pth")
    plain = torch.ones(3)
    odd = {1: plain, "sparse": plain.to_sparse(), "meta": torch.ones(2, device="meta"), "good": plain}
    torch.save(odd, tmp_path / "odd.pth")
    assert list(read_tensors(tmp_path / "odd.pth")) == ["good"]
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"compressed, which torch.save never does"):
        read_tensors(tmp_path / "bomb.pth")


# Inside


def test_relative_names_in_coco_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for place in ("secret.png", "data/a.png", "data/sub/b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / place)
    names = [
        "a.png",
        "sub/b.png",
        "sub/../a.png",
        "../secret.png",
        "sub/../../secret.png",
        str(tmp_path / "secret.png"),  # what says where it is, as predictions do, is meant
    ]
    images = [{"id": n, "file_name": name, "width": 9, "height": 9} for n, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    file = tmp_path / "data" / "labels.json"
    file.write_text(json.dumps(content))
    data = read_labels(file)
    assert [image.image_id for image in data.images] == [0, 1, 2, 5]
    assert [problem.entry for problem in data.problems] == ["image 3", "image 4"]
    assert all("leads out of the folder" in problem.message for problem in data.problems)
    below = tmp_path / "data" / "sub" / "labels.json"
    below.write_text(json.dumps(content | {"images": [images[3] | {"file_name": "../../secret.png"}]}))
    with pytest.raises(UserError, match=r"labels\.json: no images left of 1: file_name leads out of the folder"):
        read_labels(below)


def test_names_in_a_voc_split_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    for folder in ("voc/Annotations", "voc/JPEGImages", "voc/ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "voc" / "JPEGImages" / "a.png")
    for place in ("voc/Annotations/a.xml", "secret.xml"):
        (tmp_path / place).write_text("<annotation><filename>a.png</filename></annotation>")
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text(f"a\n../../secret\n{tmp_path}/secret\n")
    data = read_labels(tmp_path / "voc")
    assert len(data) == 1 and ["leads out" in problem.message for problem in data.problems] == [True, True]


def test_shards_are_never_unpacked_and_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    assert main(["pack", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "packed"), "--quiet"]) == 0
    for name in ("extract", "extractall"):
        monkeypatch.setattr(tarfile.TarFile, name, lambda *_: pytest.fail("unpacked"))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    index = open_shards(tmp_path / "packed")
    assert decode(index.path(0)).shape == (9, 9, 3)
    manifest = tmp_path / "packed" / "manifest.json"
    good = json.loads(manifest.read_text())
    for changes in ({"file": "../../etc/passwd"}, {"file": "/etc/passwd"}, {"sha256": "../../../x"}, {"bytes": "9"}):
        manifest.write_text(json.dumps(good | {"shards": [good["shards"][0] | changes]}))
        with pytest.raises(UserError, match=r"manifest\.json: broken"):
            open_shards(tmp_path / "packed")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


@pytest.mark.parametrize("size", [b"-7777777777", b"77777777777", b"x          "])
def test_sizes_in_a_tar_file_are_checked(tmp_path: Path, size: bytes) -> None:
    block = (b"a.png" + bytes(119) + size + bytes(377)).ljust(1024, b"\0")
    (tmp_path / "shard-000000.tar").write_bytes(block)
    shard = ShardFile(str(tmp_path / "shard-000000.tar"), len(block), "0" * 64)
    with pytest.raises(UserError, match="no sample at byte 0"):
        PackedSample(shard, 0, len(block), zlib.crc32(block)).members()


# XML, YAML, Parquet


@pytest.mark.parametrize(
    "entity",
    [
        '<!ENTITY a "ha"><!ENTITY b "&a;&a;">',
        '<!ENTITY b SYSTEM "file:///etc/passwd">',
        '<!ENTITY % p SYSTEM "http://x/">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_in_xml_are_refused(tmp_path: Path, entity: str, encoding: str) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "a.png")
    text = f"<!DOCTYPE x [{entity}]><annotation><object><name>&b;</name></object></annotation>"
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"a\.xml: file: annotation file cannot be read: <!DOCTYPE> is not allowed"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("a: &a [x]\nb: *a", r"line 2: write \*a out: aliases are not allowed"),
        ("a: &a [*a]", "aliases are not allowed"),
        ("a: {<<: *b}", "aliases are not allowed"),
        ("[" * 500, "nested too deeply"),
        ("a: 2001-99-99", "month must be in"),
        ("a: !!bool x", "x"),
        ("- " * 1_100_000, "longer than"),
    ],
)
def test_yaml_is_plain_values_alone(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    for name in ("recipe.yaml", "data.yaml"):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load(tmp_path / "recipe.yaml", object)
    with pytest.raises(UserError, match=r"data\.yaml"):
        read_labels(tmp_path / "data.yaml")


def test_every_flipped_bit_of_a_table_of_boxes_shows(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    file = tmp_path / "boxes.parquet"
    assert main(f"propose --data {tmp_path}/images --out {file} --method grid --workers 1 --quiet".split()) == 0
    data, sound = file.read_bytes(), ProposalTable.open(file).values
    random = np.random.default_rng(0)
    for at in random.integers(4, len(data) - 4, 150).tolist():
        broken = bytearray(data)
        broken[at] ^= 1 << int(random.integers(8))
        file.write_bytes(broken)
        try:
            values = ProposalTable.open(file).values
        except UserError as error:
            assert "boxes.parquet" in str(error)
        else:
            np.testing.assert_array_equal(values, sound)
    assert index_images(tmp_path / "images")


# Pages


class Page(HTMLParser):
    """What a browser would run, load or show of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.strange: list[str] = []
        self.text = ""
        self._kind = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._kind = tag if tag in ("script", "style") else ""
        self.strange += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        self.strange += [
            f"{tag} {v}" for k, v in attrs if k in ("src", "href") and not str(v).startswith(("data:", "#"))
        ]

    def handle_data(self, data: str) -> None:
        if self._kind == "script":
            self.scripts.append(data)
        elif not self._kind:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._kind = ""


def test_a_report_escapes_every_string(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "∕")  # a folder's name has no slash
    for folder, bad in (("plain", "cat"), ("hostile", HOSTILE)):
        place = tmp_path / folder
        runs = [str(place / (name if bad == HOSTILE else "run") / kind) for kind in ("pretrained", "finetuned")]
        for run in runs:
            Path(run).parent.mkdir(parents=True, exist_ok=True)
        changes = {"health_report": f"pretraining: healthy - {bad}", "recipe": {"recipe": bad, bad: bad, "seed": bad}}
        pretrained(Path(runs[0]), [3.0, 2.0], **changes)
        finetuned(Path(runs[1]), {bad: 0.5, "dog": 0.25}, summary={"weights": bad, "skipped": {bad: bad}})
        (Path(runs[0]) / "environment.json").write_text(
            json.dumps({"machine": bad, "torch": bad, "inputs": {bad: bad}, "command": ["boxless", bad]})
        )
        (Path(runs[0]) / "metrics.csv").write_text(f'step,name,value\n0,"{bad.replace(chr(34), "")}",1\n1,loss,2\n')
        files = pictured(place / "images", 2)
        named = (
            [file.rename(file.with_name(f"{name}{n}.jpg")) for n, file in enumerate(files)] if bad == HOSTILE else files
        )
        detected(Path(runs[1]), named, (bad, "dog"))
        (Path(runs[1]) / "figures").mkdir()
        Image.new("RGB", (9, 9)).save(Path(runs[1]) / "figures" / "a.png")
        (Path(runs[1]) / "figures" / "captions.json").write_text(json.dumps({"a.png": bad, "../../x.png": bad}))
        text = make_page(read_reports(runs))
        page = Page(text)
        if bad == "cat":
            scripts = len(page.scripts)
    assert not page.strange and len(page.scripts) == scripts
    assert "<img src=x" not in text and "{{7*7}}" in page.text
    assert page.text.count("onerror=alert(1)>") > 5, "shown as text"
    for data in page.scripts[:2]:
        assert "<" not in data and "onerror" in data and json.loads(data)


def test_the_watch_server_answers_this_machine_alone(tmp_path: Path) -> None:
    run = str(pretrained(tmp_path / "run", [2.0, 1.0]))
    with make_server([run], 0) as server:
        assert server.server_address[0] == "127.0.0.1" and server.socket.family == socket.AF_INET
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port

        def answer(path: str, host: str, method: str = "GET") -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            status = connection.getresponse().status
            connection.close()
            return status

        own = f"127.0.0.1:{port}"
        assert answer("/", own) == 200 and answer("/state", f"localhost:{port}") == 200
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example:80",
            "",
            f"evil@127.0.0.1.x:{port}",
        ):
            assert answer("/", host) == 403, host
        for path in (
            "/../../etc/passwd",
            "/%2e%2e/recipe.yaml",
            "//etc/passwd",
            "/recipe.yaml",
            "http://evil.example/",
        ):
            assert answer(path, own) == 404, path
        assert answer("/", own, "POST") == 501
        server.shutdown()
    assert main(["report", "--run", run, "--watch", "--port", "99999999", "--out", str(tmp_path / "r.html")]) == 2


# The network


def test_no_command_asks_for_the_network(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).parent / "without_network.py")]
    make_scenes(tmp_path / "scenes", unlabelled=2, train=2, val=3, size=64)
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "WANDB_MODE")}
    work = subprocess.Popen(
        [*script, str(tmp_path / "scenes"), str(tmp_path / "out")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    noticed = subprocess.run([*script, "attempt"], capture_output=True, text=True, check=False)
    assert noticed.returncode and ("NETWORK" in noticed.stderr)
    said, _ = work.communicate(timeout=500)
    assert "NETWORK" not in said and work.returncode == 0, said[-2000:]
    assert said.count("DONE") == 15


def test_unreadable_weights_do_not_hide_behind_names(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert list(read_tensors(tmp_path / "a.safetensors")) == ["a"]
    for wrong in ("x" * 300 + ".pth", "a\0.pth", "."):
        with pytest.raises(UserError, match="no such weights file"):
            read_tensors(tmp_path / wrong)
