"""Files in the names of other projects are recognised, said aloud and loaded; what would load and be wrong is not."""

import argparse
import collections
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import boxless
from boxless.cli import main
from boxless.detectors.transformer import TransformerConfig
from boxless.detectors.trunk import Trunk, TrunkConfig
from boxless.errors import UserError
from boxless.interop.files import converted, read_tensors
from boxless.interop.weights import load_trunk

SMALL = TransformerConfig(width=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=64, queries=10)


def test_foreign_files_are_recognised_and_give_the_same_features(cells: ModuleType, tmp_path: Path) -> None:
    network = cells.new_resnet()
    files = cells.layouts(network.state_dict())
    assert len(files) >= 12
    converted_first = set()
    for name, (says, write) in files.items():
        (folder := tmp_path / name).mkdir()
        said, difference, needed = cells.import_difference(folder, write, network)
        assert said.startswith(says) and difference <= 1e-5, name
        converted_first |= {name} if needed else set()
    assert converted_first == {"DINO, whole checkpoint", "PixPro", "DETR", "Detectron2, body"}  # objects beside tensors


@pytest.mark.parametrize("prefix", ["resnet.", "model.backbone.conv_encoder.model.", "model.resnet.", "net.body."])
def test_hugging_faces_resnet_is_found_behind_any_prefix(prefix: str, cells: ModuleType, tmp_path: Path) -> None:
    own = cells.new_resnet().state_dict()
    named = {key.replace("resnet.", prefix, 1): value for key, value in cells._as_resnet(own).items()}
    torch.save({"state_dict": named | {"model.classifier.1.weight": torch.zeros(2, 2)}}, tmp_path / "file.ckpt")
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32))
    report = load_trunk(trunk, tmp_path / "file.ckpt", 1.0)
    assert report.shares["backbone"] == 1 and report.recognised.startswith("Hugging Face transformers")
    assert torch.equal(trunk.backbone.body.layer4[1].bn2.running_var, own["layer4.1.bn2.running_var"])


def test_socos_pyramid_and_head_come_along(cells: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(3)
    own = Trunk(TrunkConfig("resnet18", fpn_channels=64, box_head_width=64)).state_dict()
    network = cells.new_resnet().state_dict()
    torch.manual_seed(0)
    _, write = cells.layouts(network)["SoCo"]
    write(tmp_path / "soco.pth")
    loaded = Trunk(TrunkConfig("resnet18", fpn_channels=64, box_head_width=64))
    report = load_trunk(loaded, tmp_path / "soco.pth", 1.0)
    assert report.parameter_share == 1 and str(report).startswith("recognised: SoCo (module.encoder.*, ")
    there = torch.load(tmp_path / "soco.pth", weights_only=True)["model"]
    state = loaded.state_dict()
    assert torch.equal(state["box_head.1.0.weight"], there["module.head.conv2.weight"])
    assert torch.equal(
        state["backbone.fpn.layer_blocks.2.1.running_var"], there["module.neck.fpn_convs.2.bn.running_var"]
    )
    assert not torch.equal(state["box_head.5.weight"], own["box_head.5.weight"])


class AuthorsLayer(nn.Module):
    """DETR's layers as its authors wrote them (transformer.py, `forward_post`), with torch's attention."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(32, 4)
        if decoder:
            self.multihead_attn = nn.MultiheadAttention(32, 4)
            self.norm3 = nn.LayerNorm(32)
        self.linear1, self.linear2 = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: Tensor, places: Tensor, memory: Tensor | None = None, memory_places: Any = None) -> Tensor:
        x = self.norm1(x + self.self_attn(x + places, x + places, x)[0])
        last = self.norm2
        if memory is not None:
            x = self.norm2(x + self.multihead_attn(x + places, memory + memory_places, memory)[0])
            last = self.norm3
        return last(x + self.linear2(self.linear1(x).relu()))


class AuthorsDETR(nn.Module):
    """What is behind the body, under the names of DETR's and UP-DETR's files."""

    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.Conv2d(512, 32, 1)
        self.query_embed = nn.Embedding(10, 32)
        self.transformer = nn.Module()
        self.transformer.encoder, self.transformer.decoder = nn.Module(), nn.Module()
        self.transformer.encoder.layers = nn.ModuleList([AuthorsLayer(False)])
        self.transformer.decoder.layers = nn.ModuleList([AuthorsLayer(True), AuthorsLayer(True)])
        self.transformer.decoder.norm = nn.LayerNorm(32)
        self.bbox_embed = nn.Module()
        self.bbox_embed.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)])
        self.class_embed = nn.Linear(32, 4)

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        memory = self.input_proj(features).flatten(2).permute(2, 0, 1)  # (hw, B, width)
        memory = self.transformer.encoder.layers[0](memory, places)  # type: ignore[index]
        queries = self.query_embed.weight[:, None]
        state = torch.zeros_like(queries)
        for layer in self.transformer.decoder.layers:  # type: ignore[union-attr]
            state = layer(state, queries, memory, places)
        x = self.transformer.decoder.norm(state)  # type: ignore[operator]
        for number, linear in enumerate(self.bbox_embed.layers):  # type: ignore[arg-type]
            x = linear(x).relu() if number < 2 else linear(x)
        return x.sigmoid()[:, 0]


@pytest.mark.parametrize("name", ["DETR", "UP-DETR"])
def test_detrs_own_transformer_gives_the_same_boxes(name: str, cells: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(1)
    authors = AuthorsDETR().eval()
    own = cells.new_resnet().state_dict()
    content = {f"backbone.0.body.{key}": value for key, value in own.items()} | authors.state_dict()
    content |= {"patch2query.weight": torch.zeros(2)} if name == "UP-DETR" else {}
    torch.save({"model": content}, tmp_path / "detr.pth")
    trunk = Trunk(TrunkConfig("resnet18", neck="transformer", transformer=SMALL)).eval()
    report = load_trunk(trunk, tmp_path / "detr.pth", 1.0)
    assert report.recognised == f"{name} (backbone.0.body.*)" and report.parameter_share == 1
    features, seen = torch.rand(1, 512, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    with torch.no_grad():
        places = trunk.transformer.position_embedding(features.shape, features.device, torch.float32, seen)
        expected = authors(features, places.flatten(2).permute(2, 0, 1))
        given = trunk.transformer.boxes(trunk.transformer(features, seen))[-1, 0]
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_a_pyramid_without_norms_is_another_one(tmp_path: Path) -> None:
    trunk = Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32))
    old = {key: value for key, value in trunk.state_dict().items() if "fpn" not in key}
    for number, width in enumerate((64, 128, 256, 512)):  # as torchvision wrote it before 0.13
        old |= {f"backbone.fpn.inner_blocks.{number}.weight": torch.zeros(16, width, 1, 1)}
        old |= {f"backbone.fpn.inner_blocks.{number}.bias": torch.zeros(16)}
    save_file(old, tmp_path / "old.safetensors")
    report = load_trunk(trunk, tmp_path / "old.safetensors", 1.0)
    assert report.shares == {"backbone": 1.0, "FPN": 0.0, "RoI head": 1.0}


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["ATTACKED"],)


def wrong_files(folder: Path) -> dict[Path, tuple[Callable[[Path], object], str]]:
    """Files that are refused: by which function, and what it says."""

    def into_trunk(path: Path) -> object:
        return load_trunk(Trunk(TrunkConfig("resnet18", fpn_channels=16, box_head_width=32)), path, 1.0)

    msra = {"conv1_w": np.zeros((64, 3, 7, 7), np.float32), "res2_0_branch2a_w": np.zeros(3, np.float32)}
    bgr = {"backbone.bottom_up.stem.conv1.weight": torch.zeros(2), "pixel_mean": torch.tensor([103.5, 116, 124])}
    contents: dict[str, tuple[object, Callable[[Path], object], str]] = {
        "arguments.pth": ({"a": torch.ones(2), "b": argparse.Namespace()}, read_tensors, "Namespace .*boxless convert"),
        "detectron2.pkl": (pickle.dumps({"model": msra}), read_tensors, "perhaps of Detectron2 .* boxless convert"),
        "code.pth": ({"model": Attack()}, converted, "asks for .*mkdir, which is no data"),
        "code.pkl": (pickle.dumps({"model": Attack()}), converted, "holds .*mkdir, which is no array; nothing was run"),
        "bgr.pth": ({"model": bgr}, into_trunk, "pixel_mean begins with blue"),
        "caffe2.pth": ({key: torch.from_numpy(value) for key, value in msra.items()}, into_trunk, "names are Caffe2's"),
        "page.pth": (b"<html>404</html>", converted, "is no checkpoint"),
        "text.pkl": (pickle.dumps({"model": {"name": "resnet"}}), converted, "holds no named tensors"),
    }  # fmt: skip
    result = {}
    for name, (content, function, message) in contents.items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        result[path] = (function, message)
    return result


def test_wrong_files_are_refused_in_one_line_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTACKED", str(tmp_path / "attacked"))
    for path, (function, message) in wrong_files(tmp_path).items():
        with pytest.raises(UserError, match=rf"^{path}: [^\n]*{message}[^\n]*$"):
            function(path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_the_converter_keeps_tensors_alone(zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = torch.rand(3)
    content = {
        "state_dict": {"backbone.weight": shared, "encoder_q.0.weight": shared[:2]},  # they share their memory
        "args": argparse.Namespace(lr=0.1, sizes=[1, 2]),
        "log": collections.Counter("abc"),
        "rate": np.float64(0.5),
        "mean": np.ones(3),
    }
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=zipped)
    words = ["convert", "--file", str(tmp_path / "old.pth"), "--out", str(tmp_path / "new" / "plain.safetensors")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 tensors; left out: argparse.Namespace, " in said
    tensors = read_tensors(tmp_path / "new" / "plain.safetensors")
    assert torch.equal(tensors["backbone.weight"], shared) and tensors.keys() == content["state_dict"].keys()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_are_read_whatever_their_protocol(protocol: int, tmp_path: Path) -> None:
    arrays = {"stem.conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3)}
    content = pickle.dumps({"model": arrays, "__author__": "them", "matching_heuristics": True}, protocol)
    (tmp_path / "file.pkl").write_bytes(content)
    path = boxless.convert(str(tmp_path / "file.pkl"), str(tmp_path / "file.safetensors"), quiet=True)
    tensors = read_tensors(path)
    assert tensors["count"] == 3 and torch.equal(tensors["stem.conv1.weight"], torch.arange(6.0).view(2, 3))
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        boxless.convert(str(tmp_path / "file.pkl"), str(tmp_path / "file.bin"))
