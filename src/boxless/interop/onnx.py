"""A whole detector as an ONNX file: an image in, boxes out, for images of any size.

PyTorch's older exporter is used, which traces: torchvision's detectors have paths of their own for it, and its newer
one does not take them. RT-DETR's file asks for the traced number of queries: an image must have as many cells.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxless.detectors.detector import keep_above, kept_above
from boxless.errors import UserError
from boxless.interop import compared
from boxless.interop.exported import OPENED, Exported, names, resized

OPSET = 17
SIZES = ((224, 320), (256, 192), (40, 56), (640, 1056))
"""Height and width of the images that a file is traced and tried with, px; it is traced with the first."""
OUTPUTS = ("boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores")
"""Names of a file's outputs, in their order."""
INPUT = "image: (3, H, W) float32, RGB in 0..1; normalised inside"


class _OneImage(nn.Module):
    """A detector of lists of images as a function of one."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Values of what is found in an image (3, H, W), in the order of `OUTPUTS`."""
        found = self.detector([image])[0]
        return tuple(found[name] for name in _ordered(found))


def require() -> None:
    """Check that ONNX and its runtime are installed.

    Raises:
        UserError: if they are not.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError:
        raise UserError("to: onnx needs onnx and onnxruntime; install them with pip install 'boxless[onnx]'") from None
    assert onnx.__version__


def export(
    path: Path, detector: nn.Module, classes: Sequence[str], facts: Mapping[str, Any] | None = None
) -> list[str]:
    """Write the file; returns the names of its outputs.

    Args:
        path: path of the .onnx file.
        detector: in evaluation mode, on the CPU.
        classes: names; label k is classes[k - 1].
        facts: more entries of the file's metadata, written as JSON.
    """
    import onnx

    image = pictures()[0]
    with torch.no_grad():
        names = _ordered(detector([image])[0])
    with warnings.catch_warnings(), _attention_in_steps():
        warnings.simplefilter("ignore")  # of tracing: what torchvision's own paths for ONNX keep constant
        torch.onnx.export(
            _OneImage(detector).eval(),
            (image,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "found"} for name in names}},
        )
    model = onnx.load(path)
    _narrow_cosines(model)
    kept = {"classes": list(classes), "first_label": 1, "input": INPUT, **(facts or {})}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in kept.items()})
    onnx.save(model, path)
    return names


def _ordered(found: Mapping[str, Tensor]) -> list[str]:
    """Names of what a detector finds, in the order of every file."""
    return [name for name in OUTPUTS if name in found]


def _narrow_cosines(model: Any) -> None:
    """Let cosines be of 32 bits: RT-DETR's positions are of 64, whose cosine onnxruntime before 1.31 lacks."""
    import onnx

    nodes = []
    for node in model.graph.node:
        if node.op_type == "Cos":
            (given,), (wanted,) = node.input, node.output
            narrow, cosine = f"{wanted}_of_32_bits", f"{wanted}_in_32_bits"
            nodes.append(onnx.helper.make_node("Cast", [given], [narrow], to=onnx.TensorProto.FLOAT))
            nodes.append(onnx.helper.make_node("Cos", [narrow], [cosine]))
            nodes.append(onnx.helper.make_node("CastLike", [cosine, given], [wanted]))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """PyTorch's attention in one step, which it takes where no gradients are asked for, has no name in ONNX."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def difference(path: Path, detector: nn.Module, images: Sequence[Tensor] = ()) -> float:
    """The largest difference between what onnxruntime and the detector find, see `compared.difference`.

    Args:
        path: path of the .onnx file.
        detector: the one that it was made of.
        images: (3, H, W), 0..1; by default drawn ones of many sizes. If nothing is found in any of them, a copy of the
            file is tried that keeps everything it finds.
    """
    images = images or pictures()
    found, expected = _answers(path, images), [_expected(detector, image) for image in images]
    if any(len(one["scores"]) for one in expected):
        return compared.difference(found, expected)
    usual = kept_above(detector)
    try:
        keep_above(detector, -1.0)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            export(copy, detector, [])
            found = _answers(copy, images)
            return compared.difference(found, [_expected(detector, image) for image in images])
    finally:
        keep_above(detector, usual)


def _answers(path: Path, images: Sequence[Tensor]) -> list[compared.Found]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    runs = (session.run(names, {"image": image.numpy()}) for image in images)
    return [dict(zip(names, values, strict=True)) for values in runs]


@torch.no_grad()
def _expected(detector: nn.Module, image: Tensor) -> compared.Found:
    return {name: value.numpy() for name, value in detector([image])[0].items()}


def how_to_load(export: Exported) -> str:
    """The lines of Python that run the file."""
    return "\n".join(
        [
            "import numpy",
            "import onnxruntime",
            "from PIL import Image, ImageOps",
            "",
            f"session = onnxruntime.InferenceSession({export.file!r})",
            "outputs = [output.name for output in session.get_outputs()]",
            names(export.classes, background=True),
            "",
            "",
            "def detect(path):  # boxes (px), scores, labels: classes[label] is a name",
            OPENED,
            *resized(export.sizes),
            "    pixels = numpy.asarray(small, numpy.float32).transpose(2, 0, 1) / 255  # (3, H, W), RGB, 0..1",
            '    found = dict(zip(outputs, session.run(outputs, {"image": pixels})))',
            '    found["boxes"] *= numpy.float32([image.width / small.width, image.height / small.height] * 2)',
            "    return found",
        ]
    )


def pictures() -> list[Tensor]:
    """Drawn images (3, H, W), 0..1, that a file is traced and tried with: blank, small and large ones among them."""
    drawn = [_scene(size, seed) for seed, size in enumerate(SIZES)]
    return [*drawn, torch.full((3, 96, 96), 0.5)]


def _scene(size: tuple[int, int], seed: int) -> Tensor:
    """Rectangles of many sizes on noise."""
    random = torch.Generator().manual_seed(seed)
    image = 0.4 + 0.2 * torch.rand(3, *size, generator=random)
    for _ in range(12):
        height, width = (max(2, int(side * 0.6 * torch.rand((), generator=random) ** 2)) for side in size)
        top, left = (
            int((side - own) * torch.rand((), generator=random))
            for side, own in zip(size, (height, width), strict=True)
        )
        image[:, top : top + height, left : left + width] = torch.rand(3, 1, 1, generator=random)
    return image
